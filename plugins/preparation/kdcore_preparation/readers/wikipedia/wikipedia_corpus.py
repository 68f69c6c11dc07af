"""MediaWiki XML dumps, such as those of Wikipedia."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any
from xml.etree import ElementTree

from pydantic import AfterValidator, Field, StrictInt

from kdcore import DataError, Document, Part, PathString
from kdcore_preparation.readers.cleaning import clean_text, decode_utf8
from kdcore_preparation.readers.file_corpus import BadRecords, FileCorpus, ranges
from kdcore_preparation.readers.wikipedia.template_rules import DROP, rule_of
from kdcore_preparation.readers.wikipedia.wiki_languages import REDIRECT, variants_of_all_languages
from kdcore_preparation.readers.wikipedia.wikipedia_dump import DumpPart, part_bytes, read_wiki
from kdcore_preparation.readers.wikipedia.wikitext import WikitextCleaner, template_name


def _checked_rule(spec: int | str) -> int | str:
    if spec != DROP:
        rule_of(spec)
    return spec


def _checked_name(name: str) -> str:
    if not template_name(name) or set(name) & set("{}|[]<>#:"):
        raise ValueError(f"`{name}` is not a template's name (expected a name without braces, namespace or arguments)")
    return name


def _checked_names(templates: dict[str, int | str]) -> dict[str, int | str]:
    stated: dict[str, str] = {}
    for name in templates:
        other = stated.setdefault(template_name(name), name)
        if other != name:
            raise ValueError(f"`{other}` and `{name}` are one template")
    return templates


def _checked_variant(code: str | None) -> str | None:
    if code is not None and code not in variants_of_all_languages():
        raise ValueError(
            f"`{code}` is not the code of a language variant (found {code}, expected one of "
            f"{', '.join(sorted(variants_of_all_languages()))})"
        )
    return code


class WikipediaCorpus(FileCorpus):
    """Read the articles of a `pages-articles` dump as plain paragraphs.

    Pages outside the article namespace, redirects and pages that are not wikitext are skipped; each kind is counted.
    The dump is streamed, with one page in memory at a time. Pages that are not valid XML are left out and raise an
    error at the end. Plain and multistream dumps are read in parts; any other compressed file is one part.
    """

    revision = 3

    class Config(FileCorpus.Config):
        """Keys of the corpus."""

        path: PathString = Field(
            description="MediaWiki XML, plain, .bz2 (preferably multistream), .gz or .zst; also a folder or glob."
        )
        templates: Annotated[
            dict[
                Annotated[str, AfterValidator(_checked_name)],
                Annotated[StrictInt | str, AfterValidator(_checked_rule)],
            ],
            AfterValidator(_checked_names),
        ] = Field(
            {},
            description="Text to keep of each template, by name: the number or name of an argument, a text with "
            "arguments in braces such as `{1} {unit}`, or `drop`. These rules replace and extend the built-in ones.",
        )
        variant: Annotated[str | None, AfterValidator(_checked_variant)] = Field(
            None,
            description="Language variant to take from `-{...}-`, such as `zh-tw`. Default: the main form of the wiki.",
        )

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._pages = self.characters.stage("pages")
        self._markup = self.characters.stage("markup")
        self._clean = self.characters.stage("clean")

    def parts(self) -> Sequence[Part]:
        """List ranges of plain and multistream files; other files as a whole."""
        parts: list[Part] = []
        for name, path in self.files().items():
            size = path.stat().st_size
            parts += ranges(name, size, part_bytes(path, size)) if size else [Part(name, 0, name)]
        return parts

    def read(self, part: Part) -> Iterator[Document]:
        """Yield articles, named by their page ids."""
        path = self.path_of(part)
        cleaner = WikitextCleaner(read_wiki(path), self.config.templates, self.config.variant)
        dump = DumpPart(path, part)
        bad = BadRecords(
            path, allowed="pages that are valid XML", hint="download the dump again and compare it with its checksum"
        )
        pages = 0
        for pages, raw in enumerate(dump.pages(), start=1):
            self.bytes_read = dump.bytes_read
            try:
                page = self._parsed(raw)
            except ElementTree.ParseError as error:
                bad.add(f"page {pages} of the part `{part.name}`", f"is not valid XML ({error})", good=pages - 1)
                continue
            document = self._article(page, cleaner)
            if document is not None:
                yield document
        bad.raise_if_any()
        if not pages and part.start == 0 and part.end is None:
            raise DataError("the dump contains no pages", where=str(path), allowed="a pages-articles dump of MediaWiki")

    def _parsed(self, raw: bytes) -> ElementTree.Element:
        try:
            return ElementTree.fromstring(raw)
        except ElementTree.ParseError:
            return ElementTree.fromstring(decode_utf8(raw, self.report))

    def _article(self, page: ElementTree.Element, cleaner: WikitextCleaner) -> Document | None:
        import mwparserfromhell

        fields = {element.tag: element for element in page}
        revision = {element.tag: element.text or "" for element in fields.get("revision", ())}
        text = revision.get("text", "")
        title = page.findtext("title", "").strip()
        name = page.findtext("id", "").strip() or title
        skipped = None
        if "ns" in fields and (fields["ns"].text or "").strip() != "0":
            skipped = "pages of other namespaces"
        elif "redirect" in fields or REDIRECT.match(text):
            skipped = "redirects"
        elif revision.get("model", "wikitext") != "wikitext":
            skipped = "pages that are not wikitext"
        elif not name:
            skipped = "pages without id and title"
        else:
            try:
                paragraphs = cleaner.paragraphs(text, self.report, self._markup, title)
            except (mwparserfromhell.parser.ParserError, RecursionError):
                skipped = "pages with markup that cannot be parsed"
        if skipped is not None:
            self.report[f"{skipped} skipped"] += 1
            self._pages.refuse(skipped, len(text))
            return None
        self._pages.received += len(text)
        self._pages.passed += len(text)
        article = clean_text("\n".join(paragraphs), self.report, self._clean)
        if not article:
            self.report["articles without text skipped"] += 1
            return None
        return Document(name, article)
