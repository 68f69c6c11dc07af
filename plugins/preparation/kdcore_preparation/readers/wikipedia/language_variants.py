"""Resolve the language variants in wikitext: `-{zh-hans:计算机;zh-hant:電腦}-`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

# Start of elements whose content is not markup, and start and end of `-{...}-`.
_PIECE = re.compile(
    r"<!--|<(?P<tag>nowiki|pre|math|chem|ce|syntaxhighlight|source|score|templatedata)\b[^<>]*>"
    r"|-\{(?!\{(?!\{))|(?:(?<!\})|(?<=\}\}))\}-",  # `-{{name}}` and `{{name}}-` are templates
    re.IGNORECASE,
)
_SHOWS_NOTHING = frozenset("THN-")  # title, hidden rule, name of a variant, removed rule
_LEFT_AS_IT_IS = frozenset("R")
_FLAG = re.compile(r"[A-Z+-]|[a-z]{2,3}(?:-[a-z]+)?")


def resolve_variants(text: str, variants: Sequence[str]) -> tuple[str, int]:
    """Replace each `-{...}-` with its text in one variant.

    The text for the first available variant of `variants` is used, or its first text if none is available. Rules
    without visible text (flags `H`, `T`, `N`, `-`) are removed. An unclosed `-{` is kept.

    Args:
        text: the wikitext.
        variants: codes of the language's variants, the preferred one first.

    Returns:
        The text, and the number of characters that were dropped.
    """
    if "-{" not in text:
        return text, 0
    resolved = _Resolver(variants).resolve(text)
    return resolved, len(text) - len(resolved)


class _Resolver:
    def __init__(self, variants: Sequence[str]) -> None:
        self._variants = tuple(variants)

    def resolve(self, text: str) -> str:
        opened: list[list[str]] = [[]]
        place = 0
        for start, end in _pieces(text):
            mark = text[start:end]
            opened[-1].append(text[place:start])
            place = end
            if mark == "-{":
                opened.append([])
            elif mark == "}-" and len(opened) > 1:
                content = "".join(opened.pop())
                opened[-1].append(self._shown(content))
            else:
                opened[-1].append(mark)
        opened[-1].append(text[place:])
        whole = "".join(opened[0])
        return whole + "".join("-{" + "".join(unclosed) for unclosed in opened[1:])

    def _shown(self, content: str) -> str:
        flags, bar, rest = content.partition("|")
        stated = [flag.strip() for flag in flags.split(";") if flag.strip()]
        if bar and all(_FLAG.fullmatch(flag) for flag in stated):
            content = rest
            if not _SHOWS_NOTHING.isdisjoint(stated):
                return ""
            if not _LEFT_AS_IT_IS.isdisjoint(stated):
                return content
        texts: dict[str, str] = {}
        for alternative in _separator(self._variants).split(content):
            source, arrow, target = alternative.rpartition("=>")
            code, colon, text = target.partition(":")
            if not colon or code.strip().casefold() not in self._variants:
                if alternative.strip():
                    return content  # plain text that is protected from conversion
                continue
            texts.setdefault(code.strip().casefold(), source.strip() if arrow else text.strip())
        for variant in self._variants:
            if texts.get(variant):
                return texts[variant]
        return ""


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each `-{`, `}-`, comment, and element without inner markup, in linear time."""
    never_closed: set[str] = set()
    place = 0
    while piece := _PIECE.search(text, place):
        place = piece.end()
        if piece[0] == "<!--":
            end = text.find("-->", place)
            place = len(text) if end < 0 else end + len("-->")
        elif piece["tag"] and not piece[0].endswith("/>"):
            name = piece["tag"].casefold()
            closing = None if name in never_closed else _closing(name).search(text, place)
            if closing is None:
                never_closed.add(name)
                place = piece.start() + 1
                continue
            place = closing.end()
        yield piece.start(), place


@cache
def _closing(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\s*>", re.IGNORECASE)


@cache
def _separator(variants: tuple[str, ...]) -> re.Pattern[str]:
    """Match the semicolons that separate alternatives (before a variant), not semicolons in text or entities."""
    codes = "|".join(sorted(map(re.escape, variants), reverse=True))
    return re.compile(rf";(?=\s*(?:(?:{codes})\s*:|[^;]*?=>\s*(?:{codes})\s*:|\Z))", re.IGNORECASE)
