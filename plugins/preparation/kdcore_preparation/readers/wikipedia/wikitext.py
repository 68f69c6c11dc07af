"""Convert MediaWiki markup to plain paragraphs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

from kdcore_preparation.readers.character_account import CharacterStage
from kdcore_preparation.readers.named_counts import NamedCounts
from kdcore_preparation.readers.wikipedia.language_variants import resolve_variants
from kdcore_preparation.readers.wikipedia.template_rules import DROP, Rule, TemplateArguments, rule_of
from kdcore_preparation.readers.wikipedia.template_tables import known_function, known_rule
from kdcore_preparation.readers.wikipedia.wiki_languages import Wiki
from kdcore_preparation.readers.wikipedia.wikitext_tokens import GAP, parse_without

# Temporary marks, like `GAP`: start of a list item, start of a heading, end of a paragraph.
_ITEM = "\x02"
_HEADING = "\x03"
_BREAK = "\x05"
# Characters of text, from <nowiki> and entities, that tidying would take for markup, and their replacements until then.
# The replacements are not white space.
_LOOKS_LIKE_MARKUP = "[]{}<>'_|!:"
_HIDE = str.maketrans({character: chr(0x0E + number) for number, character in enumerate(_LOOKS_LIKE_MARKUP)})
_SHOW = {ord(mark): chr(character) for character, mark in _HIDE.items()}

# fmt: off
_DROPPED_TAGS = frozenset((
    "ref", "references", "table", "gallery", "math", "chem", "ce", "timeline", "score", "imagemap",
    "syntaxhighlight", "source", "pre", "hiero", "graph", "mapframe", "maplink", "templatestyles", "indicator",
    "inputbox", "categorytree", "section", "includeonly", "style", "script", "poll", "templatedata",
))
_BLOCK_TAGS = frozenset((
    "p", "div", "blockquote", "center", "poem", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "hr",
    "br", "tr",
))
# fmt: on
_LIST_TAGS = frozenset(("li", "dt", "dd"))

# Characters of a URL. Letters beyond ASCII are allowed for scripts that put spaces between words; in other scripts,
# such as Chinese, the sentence may continue directly after the URL.
_ADDRESS_CHARACTERS = (
    r"[A-Za-z0-9_.~:/?#@!$&'()*+,;=%\[\]" "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f\u1e00-\u1fff-]+"
)
_ADDRESS = re.compile(rf"(?:https?|ftp)://{_ADDRESS_CHARACTERS}", re.IGNORECASE)
_ANY_ADDRESS = re.compile(rf"[a-z][a-z0-9+.-]*:{_ADDRESS_CHARACTERS}", re.IGNORECASE)
_AFTER_ADDRESS = ".,;:!?'"
_MAGIC_WORD = re.compile(
    "__(?:NOTOC|FORCETOC|TOC|NOEDITSECTION|NEWSECTIONLINK|NONEWSECTIONLINK|NOGALLERY|HIDDENCAT|NOCONTENTCONVERT|NOCC|"
    "NOTITLECONVERT|NOTC|INDEX|NOINDEX|STATICREDIRECT|DISAMBIG|NOGLOBAL|EXPECTUNUSEDCATEGORY|EXPECTUNUSEDTEMPLATE|"
    r"START|END|ARCHIVEDTALK|NOTALK)__|^\s*__[^\W_]+(?:_[^\W_]+)*__\s*$"
)
_EMPHASIS = re.compile(r"'{2,}")
_GAPS = re.compile(rf"(\s*){GAP}[\s{GAP}]*")
# Punctuation left over next to a gap.
_HOLLOW_BRACKETS = re.compile(
    rf"\((?=[^()]*{GAP})[\s,;:/–{GAP}-]*\)|\[(?=[^\[\]]*{GAP})[\s{GAP}]*\]|（(?=[^（）]*{GAP})[\s，、；：,;:{GAP}]*）"
)
_BRACKET_START = re.compile(rf"([(（])(?=[\s,;:，、；：]*{GAP})[\s,;:，、；：{GAP}]+")
_BRACKET_END = re.compile(rf"[\s,;:，、；：]{{0,9}}{GAP}[\s,;:，、；：{GAP}]*([)）])")
_REPEATED_POINT = re.compile(rf"([,;،؛，、；])(?=[\s,;،؛，、；]{{0,9}}{GAP})[\s,;،؛，、；{GAP}]*[,;،؛，、；]")
_SPACE_BEFORE_POINT = re.compile(rf"\s+{GAP}\s*(?:([,.;:!?](?![^\s{GAP}]))|([،؛؟，、。；：！？]))")
_SPACE_BEFORE_FRENCH_POINT = re.compile(rf"\s+{GAP}\s*(?:([,.](?![^\s{GAP}]))|( [;:!?»]))")

_ROW = re.compile(r"[|!]|\{\|")
# A table row, even if no table is open; a line that begins with | may be text, such as |x| in mathematics.
_SURE_ROW = re.compile(
    r"\{\||\|\}|\|-+\s*(?:$|[\w-]+\s*=)|\|\+\s|\|\s+\w[\w ]*=|\|\s.*\|\||!\s.*(?:!!|\|\|)|"
    r"[|!]\s*(?:style|class|align|valign|colspan|rowspan|scope|width|height|bgcolor|id|nowrap|data-[\w-]+)\s*=",
    re.IGNORECASE,
)
_INTERWIKI = re.compile(r"^[a-z]{2,3}(?:-[a-z-]+)?:(?=\S)|^simple:")
_LEFT_TAGS = (
    r"</?(?:ref|math|gallery|table|tr|td|th|div|span|blockquote|center|small|big|font|poem|nowiki|sup|sub|br)\b[^<>]*>?|"
    r"</?(?:[bipsuq]|li|ul|ol|dl|dt|dd|h[1-6r]|em|strong|code|tt|cite|abbr|del|ins|strike|var|kbd|samp|dfn|mark|time|"
    r"ruby|r[bpt]|wbr|bdi|caption|noinclude|onlyinclude|includeonly|section)(?:\s+[\w-]+\s*=[^<>]*)?\s*/?>"
)
_LINE_BREAKS = "line breaks"
# Reasons under which dropped parts are counted, by tag name.
_REASONS = {
    "attributes": "attributes of tags",
    "comments": "comments",
    "arguments": "parameters of templates",
    "ref": "references",
    "references": "references",
    "table": "tables",
    "gallery": "files and categories",
    "math": "formulae",
    "chem": "formulae",
    "ce": "formulae",
}
_PAGE_NAMES = frozenset(("pagename", "fullpagename", "basepagename", "seitenname", "nompage", "имястраницы"))
_SUBSTITUTED = re.compile(r"^(?:(?:safe)?subst|msg|msgnw|raw)\s*:\s*")
_NAMES_IN_MEMORY = 2**14


class WikitextCleaner:
    """Convert the markup of an article to paragraphs of plain text.

    Tables, references, galleries, formulae, comments, files and categories are removed. The words of links, emphasis,
    headings, lists, and templates with a rule are kept. A heading without text below it is also removed.

    Args:
        wiki: the wiki of the article; its language determines templates, files, number formats and variants.
        templates: rules for templates by name, as written in a recipe; they replace the built-in rules.
        variant: code of the language variant to take from `-{...}-`; None is the main form of the wiki.
    """

    def __init__(
        self, wiki: Wiki | None = None, templates: Mapping[str, int | str] | None = None, variant: str | None = None
    ) -> None:
        self.wiki = wiki or Wiki.of("en")
        self._hidden = {name.casefold() for name in self.wiki.hidden}
        self._variants = self.wiki.variants(variant)
        self._stated = {
            template_name(name): None if spec == DROP else rule_of(spec) for name, spec in (templates or {}).items()
        }
        hidden = "|".join(sorted(map(re.escape, self.wiki.hidden), reverse=True))  # longer names first
        self._debris = re.compile(rf"\[\[(?:{hidden})\s*:.*|\[\[|\]\]|\{{\{{+|\}}\}}+|{_LEFT_TAGS}", re.IGNORECASE)
        self._french = self.wiki.base_language == "fr"
        self._rule = lru_cache(_NAMES_IN_MEMORY)(self._find_rule)
        self.dropped_templates = NamedCounts("templates dropped")

    def paragraphs(
        self, wikitext: str, report: Counter[str], characters: CharacterStage | None = None, title: str = ""
    ) -> list[str]:
        """Extract the plain paragraphs of `wikitext`; headings are separate paragraphs.

        Dropped templates and markup that could not be parsed are counted in `report`. `characters`
        receives the counts of characters, including one newline between paragraphs. The title replaces `{{PAGENAME}}`.

        Raises:
            ParserError, RecursionError: the markup cannot be parsed; nothing is counted at the stage.
        """
        stage = CharacterStage()
        stage.received += len(wikitext)
        if self._variants:
            wikitext, dropped = resolve_variants(wikitext, self._variants)
            if dropped:
                stage.drop("other language variants", dropped)
        source = _Article(self, report, stage, title)
        rendered = source.text_of(wikitext)
        kept: list[tuple[str, int]] = []
        for line, level in _lines(rendered, report, stage):
            paragraph = self._tidy(line, report, stage, heading=level > 0)
            if not paragraph:
                continue
            while level and kept and kept[-1][1] >= level:
                _drop_heading(kept, stage)  # the heading before has nothing below it
            kept.append((paragraph, level))
        while kept and kept[-1][1]:
            _drop_heading(kept, stage)
        if len(kept) > 1:
            stage.rewrite(_LINE_BREAKS, 0, len(kept) - 1)
        stage.passed += sum([len(paragraph) for paragraph, _ in kept]) + max(0, len(kept) - 1)
        if characters is not None:
            characters.add(stage)
        return [paragraph.translate(_SHOW) if source.hides_markup else paragraph for paragraph, _ in kept]

    def rule(self, name: str) -> tuple[Rule, str] | None:
        """Return the rule for a template or parser function and its plain name; None if it is dropped.

        Args:
            name: the name in lower case; for a parser function, including its value.
        """
        if ":" in name:  # the value of a parser function is not part of its name
            function, _, value = name.partition(":")
            function = function.strip()
            if function in self.wiki.template_namespaces or _SUBSTITUTED.match(name):
                return self.rule(value.strip())
            if function in self._stated:
                return self._rule(function)
            if rule := known_function(function):
                return rule, function
        return self._rule(name)

    def _find_rule(self, name: str) -> tuple[Rule, str] | None:
        name = template_name(name)
        rule = self._stated[name] if name in self._stated else known_rule(name, self.wiki.base_language)
        return None if rule is None else (rule, name)

    def hides(self, namespace: str) -> bool:
        """Return whether links to a namespace are files or categories, not text."""
        return namespace.strip().replace("_", " ").casefold() in self._hidden

    def _tidy(self, line: str, report: Counter[str], stage: CharacterStage, *, heading: bool) -> str:
        """Remove markup leftovers from one paragraph; return an empty text if no word is left."""
        text, broken = self._debris.subn(f" {GAP} ", line)
        if broken:
            report["pieces of broken markup removed"] += broken
            stage.rewrite("broken markup", _visible(line) - _visible(text) + 2 * broken, 2 * broken)
        if "__" in text:
            text = _dropped(_MAGIC_WORD.sub(GAP, text), text, "magic words", stage)
        if "''" in text:
            text = _dropped(_EMPHASIS.sub("", text), text, "markup", stage)
        if "://" in text:
            without = _ADDRESS.sub(lambda found: GAP + found[0][_address_end(found[0]) :], text)
            text = _dropped(without, text, "addresses", stage)
        if GAP in text:
            text = _dropped(" ".join(text.split()), text, "repeated spaces", stage)
            text = _dropped(self._tidy_gaps(text), text, "spaces and punctuation next to what was dropped", stage)
        text = _dropped(" ".join(text.split()), text, "repeated spaces", stage)
        if heading or any(character.isalnum() for character in text):
            return text
        return _dropped("", text, "paragraphs without a letter or digit", stage)

    def _tidy_gaps(self, text: str) -> str:
        """Remove the marks of omitted content, and leftover spaces and punctuation around them."""
        text = _HOLLOW_BRACKETS.sub(GAP, text)
        text = _GAPS.sub(_one_gap, text)
        text = _BRACKET_START.sub(r"\1", text)
        text = _BRACKET_END.sub(r"\1", text)
        text = _REPEATED_POINT.sub(r"\1", text)
        text = (_SPACE_BEFORE_FRENCH_POINT if self._french else _SPACE_BEFORE_POINT).sub(r"\1\2", text)
        return text.replace(GAP, "")


class _Article:
    """Convert one article's tree to text with marks.

    Args:
        cleaner: the cleaner.
        report: counts of omitted content.
        stage: counts of characters.
        title: the article's title.

    Attributes:
        hides_markup: whether characters of the text that look like markup have been hidden.
    """

    def __init__(self, cleaner: WikitextCleaner, report: Counter[str], stage: CharacterStage, title: str) -> None:
        self._cleaner = cleaner
        self._report = report
        self._stage = stage
        self._title = title
        self._markup = self._targets = 0  # the most frequent counts of characters
        self.hides_markup = False

    def text_of(self, wikitext: str) -> str:
        """Return the text; lines end at the line ends of the source or at a mark."""
        text = self._render(parse_without(wikitext, self))
        for reason, characters in (("markup", self._markup), ("link targets", self._targets)):
            if characters:
                self._stage.drop(reason, characters)
        return text

    def keeps_template(self, name: str) -> bool:
        """Return whether the template has a rule."""
        return bool(name) and (self._cleaner.rule(name) is not None or name in _PAGE_NAMES)

    def replaces_tag(self, name: str) -> str | None:
        """Replace a dropped tag by a paragraph end if it is between paragraphs."""
        if name in _DROPPED_TAGS:
            return _BREAK if name in ("table", "gallery", "pre") else GAP
        return None

    def drop(self, reason: str, characters: int) -> None:
        """Count content that is left out before the tree is built."""
        self._stage.drop(_REASONS.get(reason, "other elements"), characters)

    def drop_template(self, name: str, characters: int, source: Callable[[], str]) -> None:
        """Count a template that is dropped."""
        self._stage.drop("templates", characters)
        self._cleaner.dropped_templates.count(self._report, template_label(name), source)

    def _render(self, code: Any) -> str:
        return "".join([self._node(node) for node in code.nodes])

    def _node(self, node: Any) -> str:
        match type(node).__name__:
            case "Text":
                return str(node.value)
            case "Wikilink":
                return self._link(node)
            case "Tag":
                return self._tag(node)
            case "ExternalLink":
                return self._external_link(node)
            case "Heading":
                title = self._render(node.title)
                self._markup += 2 * int(node.level)
                shown = " ".join(title.replace(_BREAK, " ").split())
                if (before := _visible(title)) != (after := _visible(shown)):
                    self._stage.rewrite(_LINE_BREAKS, before, after)
                return f"{_BREAK}{_HEADING}{node.level}{shown}{_BREAK}"
            case "HTMLEntity":
                return self._entity(node)
            case "Template":
                return self._template(node)
        self._stage.drop("other elements", _visible(str(node)))
        return GAP

    def _entity(self, node: Any) -> str:
        character = _character(node)
        self._stage.rewrite("entities", len(str(node)), len(character))
        return self._hidden(character)

    def _hidden(self, text: str) -> str:
        """Hide the characters of a text that look like markup."""
        hidden = text.translate(_HIDE)
        self.hides_markup = self.hides_markup or hidden != text
        return hidden

    def _link(self, node: Any) -> str:
        stated = str(node.title)
        title = stated.strip(f" \t\n{GAP}")
        if title.startswith(":"):
            title = title[1:]
        elif ":" in title:
            if self._cleaner.hides(title.partition(":")[0]):
                self._stage.drop("files and categories", _visible(str(node)))
                return GAP
            if node.text is None and _INTERWIKI.match(title):
                self._stage.drop("links to other languages", _visible(str(node)))
                return GAP
        if node.text is not None:
            self._markup += 5
            self._targets += _visible(stated)
            return self._render(node.text)
        self._markup += 4
        shown = self._render(node.title)
        text = shown.removeprefix(":")
        self._markup += len(shown) - len(text)
        return text

    def _external_link(self, node: Any) -> str:
        if node.title is not None:
            title = self._render(node.title)
            address = str(node.url)
            self._markup += 2 if node.suppress_space else 3
            self._stage.drop("addresses", _visible(address))
            return title
        if node.brackets:
            self._stage.drop("addresses", _visible(str(node)))
            return GAP
        address = self._render(node.url).translate(_SHOW)
        end = _address_end(address)
        self._stage.drop("addresses", _visible(address[:end]))
        return GAP + address[end:]

    def _tag(self, node: Any) -> str:
        name = str(node.tag).strip().casefold()
        if node.wiki_markup:
            between = len(node.padding or "") + len(node.wiki_style_separator or "")
            closing = 0 if node.self_closing else len(node.closing_wiki_markup or "")
            self._markup += len(node.wiki_markup) + between + closing
            if name in _LIST_TAGS:
                return _ITEM
        else:
            contents = 0 if node.contents is None else len(str(node.contents))
            self._markup += len(str(node)) - contents
        inside = self._render(node.contents) if node.contents is not None else ""
        if name == "nowiki":
            if lines := inside.count("\n"):
                self._stage.rewrite(_LINE_BREAKS, lines, lines)
            return self._hidden(inside.replace("\n", " "))
        if name == "br":
            self._stage.rewrite(_LINE_BREAKS, 0, 1)
            return f" {inside}"
        if name in _LIST_TAGS:
            return f"{_BREAK}{_ITEM}{inside}{_BREAK}"
        return f"{_BREAK}{inside}{_BREAK}" if name in _BLOCK_TAGS else inside

    def _template(self, node: Any) -> str:
        source = str(node)
        stated = str(node.name).replace(GAP, "").strip()
        found = self._cleaner.rule(stated.casefold())
        if found is None and self._title:  # the name of the page
            self._stage.rewrite("templates", _visible(source), len(self._title))
            return self._title
        if found is not None:
            rule, name = found
            # The template is counted as a whole, without counting the markup inside it separately.
            outside = self._stage, self._markup, self._targets
            self._stage = CharacterStage()
            value = self._render(node.name).partition(":")[2] if ":" in stated else ""
            text = rule(TemplateArguments(node, name, value, self._cleaner.wiki, self._render))
            self._stage, self._markup, self._targets = outside
            if text:
                self._stage.rewrite("templates", _visible(source), _visible(text))
                return text
        self.drop_template(stated, _visible(source), lambda: source.replace(GAP, ""))
        return GAP


def template_name(name: str) -> str:
    """Normalise a template name as in the tables: redirects may differ in case, underscores and spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def template_label(name: str) -> str:
    """Return the name under which a dropped template is counted; parser functions are counted together."""
    function, colon, _ = name.partition(":")
    return template_name(function) + ":" if colon else template_name(name) or "(name that is computed)"


def _address_end(address: str) -> int:
    """Return the end of a URL at the start of a text; punctuation after it belongs to the sentence."""
    found = _ANY_ADDRESS.match(address)
    if found is None:
        return len(address)
    end = found.end()
    while end and (
        address[end - 1] in _AFTER_ADDRESS
        or (address[end - 1] == ")" and address.count("(", 0, end) < address.count(")", 0, end))
    ):
        end -= 1
    return end


def _one_gap(run: re.Match[str]) -> str:
    """Replace adjacent gaps and spaces with a single gap that has at most one space on each side."""
    before = " " if run[1] else ""
    after = " " if any(character.isspace() for character in run[0][len(run[1]) :]) else ""
    return f"{before}{GAP}{after}"


def _character(node: Any) -> str:
    """Return the character of an entity; empty for an invalid one, such as &#xD800;, or a control character."""
    try:
        character = str(node.normalize())
    except (ValueError, KeyError, OverflowError):
        return ""
    return character if character >= " " or character in "\t\n" else ""


def _visible(text: str) -> int:
    """Return the number of characters that are not marks; a heading's mark is followed by its level."""
    marks = text.count(GAP) + text.count(_BREAK) + text.count(_ITEM) + 2 * text.count(_HEADING)
    return len(text) - marks


def _dropped(text: str, before: str, reason: str, stage: CharacterStage) -> str:
    """Return a text and count the characters removed from it."""
    if text is not before:
        lost = len(before) - len(text) - before.count(GAP) + text.count(GAP)
        if lost:
            stage.drop(reason, lost)
    return text


def _drop_heading(kept: list[tuple[str, int]], stage: CharacterStage) -> None:
    heading, _ = kept.pop()
    stage.drop("headings without text below them", len(heading))


def _lines(rendered: str, report: Counter[str], stage: CharacterStage) -> list[tuple[str, int]]:
    """Join lines into paragraphs: (text, heading level or 0). List items and headings are separate paragraphs."""
    paragraphs: list[tuple[str, int]] = []
    open_lines: list[str] = []
    ends = rendered.count("\n")  # characters that separate lines, and the spaces next to them
    spaces = 0  # number of spaces that join lines

    def close() -> None:
        nonlocal spaces
        if open_lines:
            paragraphs.append((" ".join(open_lines), 0))
            spaces += len(open_lines) - 1
            open_lines.clear()

    found = rendered.replace(_BREAK, "\n\n").split("\n")
    lines = [line.strip() for line in found]
    ends += sum(map(len, found)) - sum(map(len, lines))
    rows = _rows_of_tables(lines) if _ROW.search(rendered) else frozenset()
    for number, text in enumerate(lines):
        if text.startswith(_HEADING):
            close()
            paragraphs.append((_without_marks(text[2:], stage), int(text[1])))
        elif text.startswith(_ITEM):
            close()
            paragraphs.append((_without_marks(text, stage), 0))
        elif number in rows:
            close()
            report["lines of unclosed tables dropped"] += 1
            stage.drop("unclosed tables", _visible(text))
        elif not text or not text.strip(f" {GAP}"):
            ends += _visible(text)
            close()
        else:
            open_lines.append(_without_marks(text, stage))
    close()
    if ends or spaces:
        stage.rewrite(_LINE_BREAKS, ends, spaces)
    return paragraphs


def _rows_of_tables(lines: list[str]) -> frozenset[int]:
    """Find the lines of unclosed tables and templates.

    A line that begins with `|` or `!` counts as a row if it is inside an open table or template, if it is next to a
    line that is certainly a row, or if it and a neighbouring line both begin with such a mark followed by a space.
    Otherwise it is text, as in MediaWiki.
    """
    rows: set[int] = set()
    in_table, open_templates = False, 0
    numbered = [(number, line.lstrip(f"{GAP} ")) for number, line in enumerate(lines)]
    for is_row, block in groupby(numbered, key=lambda each: _ROW.match(each[1]) is not None):
        found = list(block)
        if is_row:
            sure = any(_SURE_ROW.match(line) for _, line in found)
            cells = len(found) > 1 and all(line[1:2] in ("", " ") for _, line in found)
            if in_table or open_templates or sure or cells:
                rows.update(number for number, _ in found)
            for _, line in found:
                in_table = (in_table or line.startswith("{|")) and not line.startswith("|}")
        for _, line in found:
            if line.startswith(_HEADING):
                in_table = False
            if "{{" in line or "}}" in line:
                open_templates = max(0, open_templates + line.count("{{") - line.count("}}"))
    return frozenset(rows)


def _without_marks(line: str, stage: CharacterStage) -> str:
    """Drop marks inside a line except the colon of `; term : meaning`."""
    if _ITEM not in line:
        return line
    text = line.lstrip(f"{_ITEM} ")
    if spaces := line.count(" ", 0, len(line) - len(text)):
        stage.drop("repeated spaces", spaces)
    if _ITEM not in text:
        return text
    joined, marks = re.subn(rf"\s*{_ITEM}\s*", ": ", text)
    stage.rewrite("marks of list items", _visible(text) - _visible(joined) + 2 * marks, 2 * marks)
    return joined
