"""MediaWiki XML dumps, such as those of Wikipedia."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from pydantic import Field

from kdcore.data.base import Corpus, Document
from kdcore.data.files import input_files, open_input
from kdcore.data.wikitext import WikitextCleaner
from kdcore.errors import DataError
from kdcore.recipe.schema import ComponentConfig, PathString

_FILE_NAMESPACES = ("-2", "6", "14")  # Media, File, Category


class WikipediaCorpus(Corpus):
    """Reads the articles of a `pages-articles` dump as plain paragraphs.

    Pages of other namespaces than the articles', redirects and pages that are not wikitext are skipped; each kind is
    counted. The dump is streamed: memory holds one page.
    """

    class Config(ComponentConfig):
        """Where the dump is."""

        path: PathString = Field(
            description="MediaWiki XML, plain, .gz or .bz2 (multistream too); a folder or glob for a dump in parts."
        )

    config: Config

    def files(self) -> Mapping[str, Path]:
        """Files by their names below `path`."""
        return input_files(self.config.path)

    def documents(self) -> Iterator[Document]:
        """Yield articles named by their page id."""
        for path in self.files().values():
            with open_input(path) as stream:
                yield from self._articles(stream, path)

    def _articles(self, stream: IO[bytes], path: Path) -> Iterator[Document]:
        cleaner = WikitextCleaner()
        pages = 0
        root: ElementTree.Element | None = None
        hidden: list[str] = []
        try:
            for event, element in ElementTree.iterparse(stream, events=("start", "end")):
                if root is None:
                    root = element
                    _check_root(root, path)
                if event == "start":
                    continue
                name = _local(element.tag)
                if name == "namespace":
                    if element.get("key") in _FILE_NAMESPACES and element.text:
                        hidden.append(element.text)
                elif name == "siteinfo":
                    cleaner = WikitextCleaner(hidden)
                elif name == "page":
                    pages += 1
                    document = self._article(element, cleaner)
                    root.clear()  # also forgets the page, which the tree would otherwise keep
                    if document is not None:
                        yield document
        except (ElementTree.ParseError, EOFError) as error:
            raise DataError(
                f"the dump is damaged or ends too early, after {pages} whole pages ({error})",
                where=str(path),
                hint="fetch the dump again and compare it with the checksum that its site publishes",
            ) from error
        if not pages:
            raise DataError("the dump holds no pages", where=str(path), allowed="a pages-articles dump of MediaWiki")

    def _article(self, page: ElementTree.Element, cleaner: WikitextCleaner) -> Document | None:
        import mwparserfromhell

        fields = {_local(element.tag): element for element in page}
        if "ns" in fields and (fields["ns"].text or "").strip() != "0":
            self.report["pages of other namespaces skipped"] += 1
            return None
        revision = {_local(element.tag): element.text or "" for element in fields.get("revision", ())}
        text = revision.get("text", "")
        if "redirect" in fields or text[:9].casefold() == "#redirect":
            self.report["redirects skipped"] += 1
            return None
        if revision.get("model", "wikitext") != "wikitext":
            self.report["pages that are not wikitext skipped"] += 1
            return None
        try:
            paragraphs = cleaner.paragraphs(text, self.report)
        except (mwparserfromhell.parser.ParserError, RecursionError):
            self.report["pages with markup that cannot be parsed skipped"] += 1
            return None
        if not paragraphs:
            self.report["articles without text skipped"] += 1
            return None
        return Document((fields["id"].text or "").strip(), "\n".join(paragraphs))


def _check_root(root: ElementTree.Element, path: Path) -> None:
    if _local(root.tag) != "mediawiki":
        raise DataError(
            f"is no MediaWiki dump: its first element is <{_local(root.tag)}>",
            where=str(path),
            allowed="a pages-articles dump of MediaWiki",
        )


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
