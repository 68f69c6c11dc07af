"""Count the characters of texts that a tokenizer encodes as [UNK]."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_MOST_WORDS = 200_000
_LONGEST_WORD = 64
_MUCH = 0.2
_WHITE_SPACE = " \t\n "
_THREE_WORDS = "a a\na"
_IDEOGRAPH_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
_IDEOGRAPHS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _IDEOGRAPH_RANGES)
_WORD = re.compile(r"\S+")
_WORD_BETWEEN_IDEOGRAPHS = re.compile(rf"[^\s{_IDEOGRAPHS}]+")
_THREE_WORDS_WITHOUT_SPACES = "a\u4ebaa"


class _Counts(NamedTuple):
    tokens: int
    unknown: int  # tokens
    characters: int  # inside unknown tokens


class UnknownText:
    """Count the characters inside [UNK] of texts whose number of unknown tokens is known.

    Encoding with offsets takes a fifth longer than without, and few texts hold unknown tokens. Their words are looked
    up in a cache. Where the words of a text have another number of tokens or of unknown tokens than the text, because
    its tokens depend on more than words, the text is encoded again with offsets.

    Args:
        backend: the Rust tokenizer.
        unknown: the id of [UNK]; None if the tokenizer has none.

    Attributes:
        needs_offsets: whether so much text had to be encoded again that encoding all text with offsets is faster.
    """

    def __init__(self, backend: Tokenizer, unknown: int | None) -> None:
        self.needs_offsets = False
        self._backend = backend
        self._unknown = unknown
        self._words: dict[str, _Counts] = {}
        self._separates_words = self._separates(_THREE_WORDS) and not self._in(self._encode([_WHITE_SPACE])[0]).unknown
        self._separates_ideographs = self._separates(_THREE_WORDS_WITHOUT_SPACES)

    def characters(
        self,
        texts: Sequence[str],
        tokens: NDArray[np.int64],
        unknown: NDArray[np.int64],
        encodings: Sequence[Encoding] | None,
    ) -> NDArray[np.int64]:
        """Return the number of characters inside [UNK] of each text (texts,).

        Args:
            texts: texts, as they were encoded.
            tokens: (texts,) number of tokens of each.
            unknown: (texts,) number of unknown tokens of each.
            encodings: encodings of the texts; None if they have no offsets.
        """
        found = np.zeros(len(texts), np.int64)
        places = np.flatnonzero(unknown).tolist()
        read = 0  # characters that need offsets
        if encodings is not None:
            for place in places:
                found[place] = self._in(encodings[place]).characters
                read += len(texts[place])
        elif places:
            again = places
            if self._separates_words:
                sums, read = self._sums_of_words([texts[place] for place in places])
                found[places] = sums[:, 2]
                same = (sums[:, 0] == tokens[places]) & (sums[:, 1] == unknown[places])
                again = [place for place, right in zip(places, same.tolist(), strict=True) if not right]
            for place, encoding in zip(again, self._encode([texts[place] for place in again]), strict=True):
                found[place] = self._in(encoding).characters
                read += len(texts[place])
        self.needs_offsets = read > _MUCH * sum(map(len, texts))
        return found

    def _separates(self, three_words: str) -> bool:
        """Return whether tokens are inside words such as these three."""
        if self._backend.pre_tokenizer is None:
            return False
        normalizer = self._backend.normalizer
        text = three_words if normalizer is None else normalizer.normalize_str(three_words)
        return len(self._backend.pre_tokenizer.pre_tokenize_str(text)) >= 3

    def _sums_of_words(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], int]:
        """Return the sums of the counts of the words of each text (texts, 3), and the characters encoded for that."""
        pattern = _WORD_BETWEEN_IDEOGRAPHS if self._separates_ideographs else _WORD
        words = [pattern.findall(text) for text in texts]
        points = _ideographs(texts) if self._separates_ideographs else np.empty(0, np.uint32)
        distinct = np.flatnonzero(np.bincount(points)[1:]) + 1
        known = self._known({*chain.from_iterable(words), *map(chr, distinct.tolist())})
        numbers = {word: number for number, word in enumerate(known)}
        counts = np.array(list(known.values()), np.int64).reshape(-1, 3)
        found = _sums(
            counts[np.fromiter(map(numbers.__getitem__, chain.from_iterable(words)), np.int64)], list(map(len, words))
        )
        if len(points):
            of_points = np.zeros((int(points.max()) + 1, 3), np.int64)
            of_points[distinct] = counts[[numbers[chr(point)] for point in distinct.tolist()]]
            found += _sums(of_points[points], list(map(len, texts)))
        return found, sum(map(len, known.keys() - self._words.keys()))

    def _known(self, words: set[str]) -> dict[str, _Counts]:
        """Return the counts of words, and keep those of short ones."""
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        found = {word: self._words[word] for word in words & self._words.keys()}
        new = sorted(words - found.keys())
        found.update(zip(new, map(self._in, self._encode(new)), strict=True))
        self._words.update((word, found[word]) for word in new if len(word) <= _LONGEST_WORD)
        return found

    def _encode(self, texts: list[str]) -> list[Encoding]:
        return self._backend.encode_batch(texts, add_special_tokens=False)

    def _in(self, encoding: Encoding) -> _Counts:
        places = [place for place, token in enumerate(encoding.ids) if token == self._unknown]
        spans = [encoding.token_to_chars(place) for place in places]
        return _Counts(len(encoding), len(places), sum(span[1] - span[0] for span in spans if span is not None))


def _ideographs(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the code point of each character of the concatenated texts, 0 for those that are not ideographs."""
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    chosen = np.zeros(len(points), np.bool_)
    for first, last in _IDEOGRAPH_RANGES:
        chosen |= (points >= first) & (points <= last)
    return np.where(chosen, points, np.uint32(0))


def _sums(counts: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return the sums of successive rows of counts, `sizes` of them each."""
    ends = np.cumsum(sizes)
    before = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])
    sums: NDArray[np.int64] = before[ends] - before[ends - sizes]
    return sums
