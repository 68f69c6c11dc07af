"""Parse an article without the parts that are dropped anyway.

The library tokenises wikitext in C and builds a tree of Python objects from the tokens, which takes ten times as long.
Most of a Wikipedia's tokens are inside templates, references and tables: they are left out before that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple


class _Kinds(NamedTuple):
    """The library's token types that are used here."""

    depth: dict[type, int]  # 1 opens something, -1 closes it
    text: type
    nothing: tuple[type, type]  # comments and arguments
    template: type
    template_ends_name: tuple[type, type]
    tag: type
    attribute: type
    attributes_end: tuple[type, type]


def parse_without(text: str, keeps_template: Callable[[str], bool], replaces_tag: Callable[[str], str | None]) -> Any:
    """Parse wikitext, leaving out comments, attributes of tags, and the unwanted templates and tags.

    Args:
        text: the wikitext.
        keeps_template: whether to keep a template, by its name.
        replaces_tag: replacement of a tag and its content, by the tag's name; None to keep it.

    Returns:
        The library's tree of the rest.

    Raises:
        ParserError: the library failed.
    """
    from mwparserfromhell import parser
    from mwparserfromhell.parser.builder import Builder
    from mwparserfromhell.parser.tokenizer import Tokenizer

    tokenizer = parser.CTokenizer() if parser.use_c else Tokenizer()
    return Builder().build(_left_out(tokenizer.tokenize(text), keeps_template, replaces_tag))


def _left_out(
    tokens: list[Any], keeps_template: Callable[[str], bool], replaces_tag: Callable[[str], str | None]
) -> list[Any]:
    kinds = _kinds()
    kept: list[Any] = []
    place = 0
    while place < len(tokens):
        token = tokens[place]
        kind = type(token)
        if kind is kinds.template:
            if not keeps_template(_template_name(tokens, place, kinds)):
                place = _end(tokens, place, kinds)
                continue
        elif kind is kinds.tag:
            substitute = replaces_tag(_words(tokens, place + 1, kinds)[0])
            if substitute is not None:
                kept.append(kinds.text(text=substitute))
                place = _end(tokens, place, kinds)
                continue
        elif kind is kinds.attribute:
            place = _end_of_attributes(tokens, place, kinds)
            continue
        elif kind in kinds.nothing:
            place = _end(tokens, place, kinds)
            continue
        kept.append(token)
        place += 1
    return kept


def _template_name(tokens: list[Any], place: int, kinds: _Kinds) -> str:
    """Return the name of a template; empty if it is not plain text."""
    name, end = _words(tokens, place + 1, kinds)
    return name if type(tokens[end]) in kinds.template_ends_name else ""


def _words(tokens: list[Any], place: int, kinds: _Kinds) -> tuple[str, int]:
    """Return the normalised text that begins at `place`, and where it ends."""
    end = place
    while type(tokens[end]) is kinds.text:
        end += 1
    return "".join(token.text for token in tokens[place:end]).strip().casefold(), end


def _end(tokens: list[Any], place: int, kinds: _Kinds) -> int:
    """Return the position after what begins at `place`."""
    depth = 0
    while True:
        depth += kinds.depth.get(type(tokens[place]), 0)
        place += 1
        if not depth:
            return place


def _end_of_attributes(tokens: list[Any], place: int, kinds: _Kinds) -> int:
    depth = 0
    while depth or type(tokens[place]) not in kinds.attributes_end:
        depth += kinds.depth.get(type(tokens[place]), 0)
        place += 1
    return place


@cache
def _kinds() -> _Kinds:
    from mwparserfromhell.parser import tokens

    opening = ("Template", "Argument", "Wikilink", "ExternalLink")
    starting = ("HTMLEntity", "Heading", "Comment")
    depth = {getattr(tokens, f"{name}Open"): 1 for name in opening}
    depth |= {getattr(tokens, f"{name}Close"): -1 for name in opening}
    depth |= {getattr(tokens, f"{name}Start"): 1 for name in starting}
    depth |= {getattr(tokens, f"{name}End"): -1 for name in starting}
    depth |= {tokens.TagOpenOpen: 1, tokens.TagCloseClose: -1, tokens.TagCloseSelfclose: -1}
    return _Kinds(
        depth,
        tokens.Text,
        (tokens.CommentStart, tokens.ArgumentOpen),
        tokens.TemplateOpen,
        (tokens.TemplateParamSeparator, tokens.TemplateClose),
        tokens.TagOpenOpen,
        tokens.TagAttrStart,
        (tokens.TagCloseOpen, tokens.TagCloseSelfclose),
    )
