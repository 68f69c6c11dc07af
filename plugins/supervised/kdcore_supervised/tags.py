"""Tags of words and the spans that they encode, in the schemes IOB1, BIO (IOB2) and BIOES."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

TagScheme = Literal["bio", "bioes", "iob1"]
"""`iob1` marks the first word of a span with B only if a span of the same type ends right before it."""

OUTSIDE = "O"

IGNORED = -100
"""Label of tokens without a label, as in transformers."""

_PREFIXES: dict[TagScheme, str] = {"bio": "BI", "bioes": "BIES", "iob1": "BI"}


class TaggedSpan(NamedTuple):
    """Consecutive words of one type: `start` is the first word, `end` is one past the last."""

    start: int
    end: int
    type: str


def output_tags(types: Iterable[str], scheme: TagScheme) -> tuple[str, ...]:
    """Return the tags that a model predicts: `O`, then the tags of each type. Models for `iob1` data predict `bio`."""
    return OUTSIDE, *(f"{prefix}-{type_}" for type_ in types for prefix in _PREFIXES[scheme])


def tag_problem(tag: str, types: Iterable[str], scheme: TagScheme) -> str | None:
    """Explain why a tag in a file is invalid; None for a valid tag."""
    if tag == OUTSIDE:
        return None
    prefix, dash, type_ = tag.partition("-")
    if not dash or not type_ or prefix not in tuple("BIES"):
        return f"has the tag {tag!r}, which is neither `O` nor a prefix, a hyphen and a type"
    if prefix not in _PREFIXES[scheme]:
        return f"has the tag {tag!r}, whose prefix does not belong to the scheme `{scheme}`"
    return None if type_ in types else f"has the tag {tag!r} of the unknown type {type_!r}"


def spans_of(tags: Sequence[str]) -> list[TaggedSpan]:
    """Read the spans of a sequence of tags in any scheme by the rule of CoNLL's evaluation script.

    A span starts at B or S, and at an I or E that does not continue a span of its type. It ends after E or S, before a
    new span, before O, and at the end. Invalid sequences are therefore read as if the missing B were present.
    """
    found: list[TaggedSpan] = []
    start, open_type = 0, ""  # start and type of the span that the next word may continue
    for place, tag in enumerate(tags):
        prefix, _, type_ = tag.partition("-")
        if open_type and (prefix not in ("I", "E") or type_ != open_type):
            found.append(TaggedSpan(start, place, open_type))
            open_type = ""
        if prefix != OUTSIDE and not open_type:
            start, open_type = place, type_
        if prefix in ("E", "S"):
            found.append(TaggedSpan(start, place + 1, type_))
            open_type = ""
    if open_type:
        found.append(TaggedSpan(start, len(tags), open_type))
    return found


def tags_of(spans: Iterable[TaggedSpan], length: int, scheme: TagScheme) -> list[str]:
    """Encode spans that do not overlap, in the order of words, as the tags of `length` words."""
    tags = [OUTSIDE] * length
    before = TaggedSpan(0, 0, "")
    for span in spans:
        tags[span.start : span.end] = [f"I-{span.type}"] * (span.end - span.start)
        if scheme != "iob1" or before[1:] == (span.start, span.type):
            tags[span.start] = f"B-{span.type}"
        if scheme == "bioes":
            tags[span.end - 1] = f"{'S' if span.end - span.start == 1 else 'E'}-{span.type}"
        before = span
    return tags
