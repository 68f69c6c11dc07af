"""Parse an article, leaving out the parts that would be dropped later.

The library tokenises wikitext in C and builds a tree of Python objects from the tokens, which takes ten times as long
as tokenising. Most tokens of a Wikipedia article are inside templates, references and tables, so these are left out
before the tree is built.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

GAP = "\x04"
"""Mark where something inline was left out. Control characters cannot occur in a dump's XML."""

_Token = dict[str, Any]


class Selection(Protocol):
    """Decide what to leave out of an article, and count it."""

    def keeps_template(self, name: str) -> bool:
        """Return whether to keep a template; `name` is empty if it is not plain text."""

    def replaces_tag(self, name: str) -> str | None:
        """Return the replacement for a tag and its content, by the tag's name; None to keep it."""

    def drop(self, reason: str, characters: int) -> None:
        """Count the characters of a comment, a tag, or attributes of a tag."""

    def drop_template(self, name: str, characters: int, source: Callable[[], str]) -> None:
        """Count a template; `source` returns its text."""


class _Kinds(NamedTuple):
    """The library's token types that are used here."""

    depth: dict[type, int]  # 1 opens something, -1 closes it
    lengths: dict[type, int]  # characters in the source, for types where it is constant
    text: type
    comment: type
    argument: type
    template: type
    template_ends_name: tuple[type, type]
    tag: type
    tag_ends_name: tuple[type, type]
    closing_tag: type
    tag_end: type
    attribute: type
    link: type
    link_separator: type
    heading: type
    quote: type
    hexadecimal: type


def parse_without(text: str, selection: Selection) -> Any:
    """Parse wikitext, leaving out comments, attributes of tags, and the unwanted templates and tags.

    Returns:
        The library's tree of the remaining markup, with the text `GAP` in place of omitted content.

    Raises:
        ParserError: the library failed.
    """
    from mwparserfromhell.parser.builder import Builder

    return Builder().build(_left_out(tokens_of(text), selection))


def tokens_of(text: str) -> list[Any]:
    """Return the library's tokens of wikitext.

    Raises:
        ParserError: the library failed.
    """
    from mwparserfromhell import parser
    from mwparserfromhell.parser.tokenizer import Tokenizer

    tokenizer = parser.CTokenizer() if parser.use_c else Tokenizer()
    tokens: list[Any] = tokenizer.tokenize(text)
    return tokens


def source_length(tokens: list[Any]) -> int:
    """Return the number of source characters of complete tokens, such as all tokens of an article."""
    kinds, place, length = _kinds(), 0, 0
    while place < len(tokens):
        place, characters = _skip(tokens, place, kinds)
        length += characters
    return length


def _left_out(tokens: list[Any], selection: Selection) -> list[Any]:
    kinds = _kinds()
    text, template, tag, attribute, comment, argument = (
        kinds.text,
        kinds.template,
        kinds.tag,
        kinds.attribute,
        kinds.comment,
        kinds.argument,
    )
    gap = text(text=GAP)
    kept: list[Any] = []
    place, count = 0, len(tokens)
    while place < count:
        token = tokens[place]
        kind = type(token)
        if kind is text:
            pass
        elif kind is template:
            name = _template_name(tokens, place, kinds)
            if not selection.keeps_template(name):
                start = place
                place, length = _skip(tokens, place, kinds)
                selection.drop_template(name, length, partial(_source, tokens[start:place]))
                kept.append(gap)
                continue
        elif kind is tag:
            name = _name(tokens, place + 1, kinds)[0]
            substitute = selection.replaces_tag(name)
            if substitute is not None:
                place, length = _skip(tokens, place, kinds)
                selection.drop(name, length)
                kept.append(text(text=substitute) if substitute != GAP else gap)
                continue
        elif kind is attribute:
            place, length = _skip_attributes(tokens, place, kinds)
            selection.drop("attributes", length)
            continue
        elif kind is comment or kind is argument:
            place, length = _skip(tokens, place, kinds)
            selection.drop("comments" if kind is comment else "arguments", length)
            kept.append(gap)
            continue
        kept.append(token)
        place += 1
    return kept


def _source(tokens: list[Any]) -> str:
    """Return the source of complete tokens."""
    from mwparserfromhell.parser.builder import Builder

    return str(Builder().build(tokens))


def _template_name(tokens: list[Any], place: int, kinds: _Kinds) -> str:
    """Return the name of a template (parser functions: with the first argument); empty if it is not plain text."""
    name, end = _name(tokens, place + 1, kinds)
    return name if type(tokens[end]) in kinds.template_ends_name or ":" in name else ""


def _name(tokens: list[Any], place: int, kinds: _Kinds) -> tuple[str, int]:
    """Return the text that begins at `place`, without comments, and its end."""
    end = place
    name = ""
    while True:
        kind = type(tokens[end])
        if kind is kinds.text:
            name += tokens[end]["text"]
            end += 1
        elif kind is kinds.comment:
            end, _ = _skip(tokens, end, kinds)
        else:
            return name.strip().casefold(), end


def _skip(tokens: list[Any], place: int, kinds: _Kinds) -> tuple[int, int]:
    """Return the position after the element that begins at `place`, and its number of source characters."""
    depths, lengths, text = kinds.depth, kinds.lengths, kinds.text
    depth = length = 0
    markups: list[_Token] = []  # tags that are open
    while True:
        token = tokens[place]
        kind = type(token)
        place += 1
        if kind is text:
            length += len(token["text"])
        elif kind in lengths:
            length += lengths[kind]
            depth += depths.get(kind, 0)
        else:
            depth += depths.get(kind, 0)
            more, place = _length(token, kind, tokens, place, markups, kinds)
            length += more
        if not depth:
            return place, length


def _length(
    token: _Token, kind: type, tokens: list[Any], place: int, markups: list[_Token], kinds: _Kinds
) -> tuple[int, int]:
    """Return the number of characters of a token whose length varies, and the position of the next token.

    The name of a tag that is written as markup, such as `b` for three quotes, is a token but does not occur in the
    source.
    """
    if kind is kinds.tag:
        markups.append(token)
        if token.get("wiki_markup"):
            return len(token["wiki_markup"]), place + 1
        return (2 if token.get("invalid") else 1), place
    if kind in kinds.tag_ends_name:
        own = markups[-1]
        length = len(token.get("padding") or "")
        if kind is kinds.tag_ends_name[1]:
            markups.pop()
            return length + (0 if own.get("wiki_markup") else 1 if token.get("implicit") else 2), place
        return length + (len(token.get("wiki_markup") or "") if own.get("wiki_markup") else 1), place
    if kind is kinds.closing_tag:
        own = markups[-1]
        if not own.get("wiki_markup"):
            return 2, place
        markup = token.get("wiki_markup")
        return len(own["wiki_markup"] if markup is None else markup), place + 1
    if kind is kinds.tag_end:
        return (0 if markups.pop().get("wiki_markup") else 1), place
    if kind is kinds.attribute:
        return sum(len(token.get(pad) or "") for pad in ("pad_first", "pad_before_eq", "pad_after_eq")), place
    if kind is kinds.quote:
        return 2 * len(token["char"]), place
    if kind is kinds.link:
        return (2 if token.get("brackets") else 0), place
    if kind is kinds.link_separator:
        return (0 if token.get("suppress_space") else 1), place
    if kind is kinds.heading:
        return 2 * int(token["level"]), place
    return len(token["char"]), place  # the x of &#x20;


def _skip_attributes(tokens: list[Any], place: int, kinds: _Kinds) -> tuple[int, int]:
    """Return the position after the attributes of a tag, and their number of source characters."""
    length = 0
    while type(tokens[place]) not in kinds.tag_ends_name:
        place, characters = _skip(tokens, place, kinds)
        length += characters
    return place, length


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
    lengths = {
        tokens.TemplateOpen: 2,
        tokens.TemplateParamSeparator: 1,
        tokens.TemplateParamEquals: 1,
        tokens.TemplateClose: 2,
        tokens.ArgumentOpen: 3,
        tokens.ArgumentSeparator: 1,
        tokens.ArgumentClose: 3,
        tokens.WikilinkOpen: 2,
        tokens.WikilinkSeparator: 1,
        tokens.WikilinkClose: 2,
        tokens.ExternalLinkClose: 0,  # counted where the link opens
        tokens.HTMLEntityStart: 1,
        tokens.HTMLEntityNumeric: 1,
        tokens.HTMLEntityEnd: 1,
        tokens.HeadingEnd: 0,
        tokens.CommentStart: 4,
        tokens.CommentEnd: 3,
        tokens.TagAttrEquals: 1,
    }
    return _Kinds(
        depth,
        lengths,
        tokens.Text,
        tokens.CommentStart,
        tokens.ArgumentOpen,
        tokens.TemplateOpen,
        (tokens.TemplateParamSeparator, tokens.TemplateClose),
        tokens.TagOpenOpen,
        (tokens.TagCloseOpen, tokens.TagCloseSelfclose),
        tokens.TagOpenClose,
        tokens.TagCloseClose,
        tokens.TagAttrStart,
        tokens.ExternalLinkOpen,
        tokens.ExternalLinkSeparator,
        tokens.HeadingStart,
        tokens.TagAttrQuote,
        tokens.HTMLEntityHex,
    )
