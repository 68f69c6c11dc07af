"""Convert MediaWiki markup to plain paragraphs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from kdcore_preparation.readers.wikipedia.wikitext_tokens import parse_without

# Temporary marks at the start of a line; control characters cannot occur in a dump's XML.
_ITEM = "\x02"
_HEADING = "\x03"

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

# Templates whose words belong to the sentence around them; without them it would have holes. Which arguments are kept.
_KEPT_TEMPLATES = {"lang": 2, "nowrap": 1, "nobr": 1, "transl": -1, "transliteration": -1, "quote": 1, "blockquote": 1}
_CONVERSIONS = frozenset(("convert", "cvt"))
_RANGE_WORDS = frozenset(("to", "-", "–", "and", "by", "x", "or", "×"))

_BARE_LINK = re.compile(r"(?:https?|ftp)://\S+")
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_EMPHASIS = re.compile(r"'{2,}")
_DEBRIS = re.compile(
    r"\[\[(?:File|Image|Category|Media):.*|\[\[|\]\]|\{\{+|\}\}+|"
    r"</?(?:ref|math|gallery|table|tr|td|th|div|span|blockquote|center|small|big|font|poem|nowiki|sup|sub|br)\b[^<>]*>?",
    re.IGNORECASE,
)
_DEBRIS_LINE = re.compile(r"^(?:\{\||\|[}\-+|]?|!)")
_HOLLOW_BRACKETS = re.compile(r"\(\s*(?:[,;:/–-]\s*)*\)|\[\s*\]")
_BRACKET_START = re.compile(r"\((?:\s*[,;:])*\s+|\((?:\s*[,;:])+")
_BRACKET_END = re.compile(r"(?:\s*[,;:])*\s+\)|(?:\s*[,;:])+\)")
_SPACE_BEFORE_POINT = re.compile(r"\s+([,.;:!?](?:\s|$))")
_REPEATED_POINT = re.compile(r"([,;])(?:\s*[,;])+")
_INTERWIKI = re.compile(r"^[a-z]{2,3}(?:-[a-z-]+)?:(?=\S)|^simple:")


class WikitextCleaner:
    """Convert the markup of an article to paragraphs of plain text.

    Tables, references, galleries, formulae, templates, comments, files and categories are removed; the words of links,
    emphasis, headings and lists stay. A heading without text below it is removed, too.

    Args:
        hidden_namespaces: names of the namespaces whose links are not text (files, categories), in the wiki's language.
    """

    def __init__(self, hidden_namespaces: Collection[str] = ()) -> None:
        self._hidden = {name.casefold() for name in ("File", "Image", "Media", "Category", *hidden_namespaces)}

    def paragraphs(self, wikitext: str, report: Counter[str]) -> list[str]:
        """Extract plain paragraphs of `wikitext`; headings are separate paragraphs.

        Markup that could not be parsed is counted in `report`.
        """
        kept: list[tuple[str, int]] = []
        for line, level in _lines(self._render(parse_without(wikitext, _keeps_template, _replaces_tag))):
            paragraph = _tidy(line, report)
            if not paragraph:
                continue
            while level and kept and kept[-1][1] >= level:
                kept.pop()  # the heading before has nothing below it
            kept.append((paragraph, level))
        while kept and kept[-1][1]:
            kept.pop()
        return [paragraph for paragraph, _ in kept]

    def _render(self, code: Any) -> str:
        return "".join(self._node(node) for node in code.nodes)

    def _node(self, node: Any) -> str:
        match type(node).__name__:
            case "Text":
                return str(node.value)
            case "Wikilink":
                return self._link(node)
            case "Tag":
                return self._tag(node)
            case "ExternalLink":
                return self._render(node.title) if node.title is not None else ""
            case "Heading":
                title = " ".join(self._render(node.title).split())
                return f"\n\n{_HEADING}{node.level}{title}\n\n"
            case "HTMLEntity":
                return _entity(node)
            case "Template":
                return self._template(node)
        return ""

    def _link(self, node: Any) -> str:
        title = str(node.title).strip()
        if title.startswith(":"):
            title = title[1:]
        else:
            namespace, colon, _ = title.partition(":")
            if colon and namespace.strip().casefold() in self._hidden:
                return ""
            if node.text is None and _INTERWIKI.match(title):
                return ""  # the same article in another language
        if node.text is not None:
            return self._render(node.text)
        return self._render(node.title).removeprefix(":")

    def _tag(self, node: Any) -> str:
        name = str(node.tag).strip().casefold()
        if name in _LIST_TAGS and node.wiki_markup:
            return _ITEM
        inside = self._render(node.contents) if node.contents is not None else ""
        if name == "br":
            return " "
        if name in _LIST_TAGS:
            return f"\n{_ITEM}{inside}\n"
        return f"\n\n{inside}\n\n" if name in _BLOCK_TAGS else inside

    def _template(self, node: Any) -> str:
        name = _template_name(str(node.name).strip().casefold())
        words = [parameter.value for parameter in node.params if not parameter.showkey]
        if name in _CONVERSIONS and len(words) >= 2:
            shown = [self._render(word).strip() for word in words]
            length = 4 if shown[1] in _RANGE_WORDS else 2
            return " ".join(shown[:length])
        argument = _KEPT_TEMPLATES.get(name)
        if argument is None or len(words) < abs(argument):
            return ""
        return self._render(words[argument - 1 if argument > 0 else argument])


def _template_name(name: str) -> str:
    return name.replace("_", " ")


def _keeps_template(name: str) -> bool:
    name = _template_name(name)
    return name in _KEPT_TEMPLATES or name in _CONVERSIONS


def _replaces_tag(name: str) -> str | None:
    """Replace a dropped tag by a paragraph end if it is between paragraphs."""
    if name in _DROPPED_TAGS:
        return "\n\n" if name in ("table", "gallery", "pre") else ""
    return None


def _entity(node: Any) -> str:
    try:
        return str(node.normalize())
    except (ValueError, KeyError, OverflowError):
        return ""  # &#xD800; and the like name no character


def _lines(rendered: str) -> list[tuple[str, int]]:
    """Join what is one paragraph: (text, level of the heading or 0). List items and headings are separate."""
    paragraphs: list[tuple[str, int]] = []
    open_lines: list[str] = []

    def close() -> None:
        if open_lines:
            paragraphs.append((" ".join(open_lines), 0))
            open_lines.clear()

    for line in rendered.split("\n"):
        text = line.strip()
        if text.startswith(_HEADING):
            close()
            paragraphs.append((text[2:], int(text[1])))
        elif text.startswith(_ITEM):
            close()
            paragraphs.append((_without_marks(text), 0))
        elif not text or _DEBRIS_LINE.match(text):
            close()
            if text:
                paragraphs.append((text, 0))
        else:
            open_lines.append(_without_marks(text))
    close()
    return paragraphs


def _without_marks(line: str) -> str:
    """Drop marks inside a line except the colon of `; term : meaning`."""
    return re.sub(rf"\s*{_ITEM}\s*", ": ", line.lstrip(f"{_ITEM} "))


def _tidy(line: str, report: Counter[str]) -> str:
    """Remove leftovers of markup from one paragraph; empty when no word is left."""
    if _DEBRIS_LINE.match(line):
        report["lines of unclosed tables dropped"] += 1
        return ""
    text, broken = _DEBRIS.subn(" ", line)
    if broken:
        report["pieces of broken markup removed"] += broken
    text = _EMPHASIS.sub("", _MAGIC_WORD.sub("", _BARE_LINK.sub("", text)))
    text = " ".join(text.split())
    text = _HOLLOW_BRACKETS.sub("", text)
    text = _BRACKET_START.sub("(", text)
    text = _BRACKET_END.sub(")", text)
    text = _REPEATED_POINT.sub(r"\1", text)
    text = _SPACE_BEFORE_POINT.sub(r"\1", " ".join(text.split()))
    return text if any(character.isalnum() for character in text) else ""
