"""Make a tokenizer.json clean raw text as in training, and treat spelled-out special tokens as plain text."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


_LINE_ENDS, _NONCHARACTERS = r"\x{b}\x{c}\x{1c}-\x{1e}\x{85}", r"\x{fdd0}-\x{fdef}\x{fffe}\x{ffff}"
# The cleaning of raw and labelled texts before they are tokenised, as normalizers: line ends become newlines, control
# characters and noncharacters are removed, letters are composed.
_CLEANING: list[dict[str, Any]] = [
    _replace(r"\r\n|[\r" + _LINE_ENDS + r"\x{2028}\x{2029}]", "\n"),
    _replace(r"[\x{0}-\x{8}\x{e}-\x{1f}\x{7f}-\x{9f}\x{feff}" + _NONCHARACTERS + "]", ""),
    {"type": "NFC"},
]
# What is left of it before the normalizer of uncased BERT models, which removes other control characters and accents.
_BERT_CLEANING = [_replace(f"[{_LINE_ENDS}]", "\n"), _replace(f"[{_NONCHARACTERS}]", "")]
_STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}


def with_cleaning(content: dict[str, Any], *, strip: bool) -> dict[str, Any]:
    """Return the content of a tokenizer.json that cleans text in the same way as training.

    A unigram model would encode a special token that is spelled out in a text as one piece. A pre-tokenizer splits such
    text, so that it is encoded as plain text if `split_special_tokens` is set.

    Args:
        content: the content of a tokenizer.json, with or without cleaning.
        strip: whether to remove white space at the ends. The text between two added tokens is normalised separately, so
            this must not be set if added tokens are recognised inside texts.
    """
    content = without_cleaning(content)
    own = [] if content["normalizer"] is None else [content["normalizer"]]
    cleaning = _BERT_CLEANING if _is_uncased_bert(content) else [*_CLEANING, *([_STRIP] if strip else [])]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": cleaning}, *own]}
    if (divided := _special_pieces_divided(content)) is not None:
        own = [] if content["pre_tokenizer"] is None else [content["pre_tokenizer"]]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*own, divided]}
    return content


def without_cleaning(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a tokenizer.json without what `with_cleaning` adds."""
    content = dict(content)
    first, *own = (content["normalizer"] or {}).get("normalizers") or [{}]
    if any(first.get("normalizers", [])[: len(added)] == added for added in (_CLEANING, _BERT_CLEANING)):
        content["normalizer"] = own[0] if own else None
    *own, last = (content["pre_tokenizer"] or {}).get("pretokenizers") or [None]
    if last is not None and last == _special_pieces_divided(content):
        content["pre_tokenizer"] = own[0] if own else None
    return content


def _is_uncased_bert(content: dict[str, Any]) -> bool:
    """Return whether the tokenizer cleans texts, removes accents and separates words at white space, as BERT does."""
    bert, words = content["normalizer"] or {}, content["pre_tokenizer"] or {}
    both = (bert.get("type"), words.get("type")) == ("BertNormalizer", "BertPreTokenizer")
    return bool(both and bert["clean_text"] and bert["lowercase" if bert["strip_accents"] is None else "strip_accents"])


def _special_pieces_divided(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a pre-tokenizer that splits the special tokens among a unigram model's pieces; None if there are none.

    Each of these tokens is split between two adjacent characters, if possible a pair that no other piece contains.
    Every segmentation then separates them, unless both are unknown, because consecutive unknown characters form a
    single token.
    """
    if content["model"].get("type") != "Unigram":
        return None
    pieces = {piece for piece, _ in content["model"]["vocab"]}
    special = {token["content"] for token in content["added_tokens"] if token["special"]} & pieces
    texts = pieces - special
    neighbours = Counter(piece[at : at + 2] for piece in texts for at in range(len(piece) - 1))
    patterns = []
    for name in sorted(special):
        cuts = [
            (neighbours[name[at - 1 : at + 1]], texts.isdisjoint(name[at - 1 : at + 1]), at)
            for at in range(1, len(name))
        ]
        if cuts:
            at = min(cuts)[-1]
            before = f"(?<={re.escape(name[: at - 1])})" if at > 1 else ""
            patterns.append(f"{before}{re.escape(name[at - 1])}(?={re.escape(name[at:])})")
    if not patterns:
        return None
    pattern = {"Regex": "|".join(patterns)}
    return {"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False}
