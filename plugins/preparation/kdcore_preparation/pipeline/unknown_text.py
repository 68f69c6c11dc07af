"""Count the characters of texts that a tokenizer encodes as [UNK]."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcore_preparation.pipeline.code_points import code_points, count_in_texts, text_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_MOST_WORDS = 200_000
_LONGEST_WORD = 64
_MUCH = 0.2
_WHITE_SPACE = " \t\n "
_THREE_WORDS = "a a\na"
_FIVE_WORDS_WITHOUT_SPACES = "a\u4eba\uff0c\u3002a"
_IDEOGRAPH_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
_PUNCTUATION_RANGES = ((0x2010, 0x205E), (0x3001, 0x3030), (0xFF01, 0xFF65))
_INSIDE, _NEW, _KNOWN, _UNKNOWN = range(4)


class _Counts(NamedTuple):
    tokens: int
    unknown: int  # tokens
    characters: int  # inside unknown tokens


class UnknownText:
    """Count the characters inside [UNK] of texts whose number of unknown tokens is known.

    Encoding with offsets takes 20% longer than without, and few texts contain unknown tokens. The words of those texts
    are looked up in a cache. If tokenization depends on more than single words, the token counts of the words may not
    add up to the token counts of the text. The text is then encoded again with offsets.

    Args:
        backend: the Rust tokenizer.
        unknown: the id of [UNK]; None if the tokenizer has none.

    Attributes:
        needs_offsets: whether so much text had to be encoded twice that encoding all text with offsets is faster.
    """

    def __init__(self, backend: Tokenizer, unknown: int | None) -> None:
        self.needs_offsets = False
        self._backend = backend
        self._unknown = unknown
        self._words: dict[str, int] = {}  # row of each word in `_counts`
        self._counts = np.empty((0, 3), np.int64)
        self._separates_words = (
            self._count_pieces(_THREE_WORDS) >= 3 and not self._in(self._encode([_WHITE_SPACE])[0]).unknown
        )
        # By code point: part of a word; a word whose token has not been looked up; one that is [UNK] or another token.
        self._kinds = np.zeros(0x110000, np.uint8)
        if self._count_pieces(_FIVE_WORDS_WITHOUT_SPACES) >= 5:
            self._kinds[_words_of_a_character()] = _NEW

    def characters(
        self,
        texts: Sequence[str],
        tokens: NDArray[np.int64],
        unknown: NDArray[np.int64],
        encodings: Sequence[Encoding] | None,
    ) -> NDArray[np.int64]:
        """Return the number of characters inside [UNK] of each text (texts,).

        Args:
            texts: the texts as encoded.
            tokens: (texts,) number of tokens of each text.
            unknown: (texts,) number of unknown tokens of each text.
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

    def _count_pieces(self, text: str) -> int:
        """Count the pieces of a text that contain tokens."""
        if self._backend.pre_tokenizer is None:
            return 1
        normalizer = self._backend.normalizer
        normalized = text if normalizer is None else normalizer.normalize_str(text)
        return len(self._backend.pre_tokenizer.pre_tokenize_str(normalized))

    def _sums_of_words(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], int]:
        """Add up the counts of the words of each text (texts, 3); also return the number of characters in long words.

        Long words are not cached.
        """
        sizes = list(map(len, texts))
        points = code_points("".join(texts))
        self._look_up(points[self._kinds[points] == _NEW])
        kinds = self._kinds[points]
        alone = kinds != _INSIDE
        rest = text_of(np.where(alone, np.uint32(ord(" ")), points))
        ends = accumulate(sizes)
        words = [rest[end - size : end].split() for size, end in zip(sizes, ends, strict=True)]
        new = sorted({*chain.from_iterable(words)} - self._words.keys())
        self._add(new)
        rows = np.fromiter(map(self._words.__getitem__, chain.from_iterable(words)), np.int64)
        found = _sums(self._counts[rows], list(map(len, words)))
        found[:, 0] += count_in_texts(alone, sizes)
        found[:, 1:] += count_in_texts(kinds == _UNKNOWN, sizes)[:, None]
        return found, self._forget(new)

    def _look_up(self, points: NDArray[np.uint32]) -> None:
        """Classify characters that are words; those that are not a single token count as inner characters."""
        new = np.flatnonzero(np.bincount(points))
        counts = map(self._in, self._encode(list(map(chr, new.tolist()))))
        kinds = {_Counts(1, 0, 0): _KNOWN, _Counts(1, 1, 1): _UNKNOWN}
        self._kinds[new] = [kinds.get(count, _INSIDE) for count in counts]

    def _add(self, words: list[str]) -> None:
        """Encode words, and store their counts."""
        first = len(self._counts)
        self._words.update(zip(words, range(first, first + len(words)), strict=True))
        counts = np.fromiter(chain.from_iterable(map(self._in, self._encode(words))), np.int64, 3 * len(words))
        self._counts = np.concatenate([self._counts, counts.reshape(-1, 3)])

    def _forget(self, words: list[str]) -> int:
        """Keep only the counts of short words, up to a limit; return the number of characters in long words."""
        long = [word for word in words if len(word) > _LONGEST_WORD]
        for word in long:
            del self._words[word]
        if len(self._counts) > _MOST_WORDS:
            self._words.clear()
            self._counts = self._counts[:0].copy()
        return sum(map(len, long))

    def _encode(self, texts: list[str]) -> list[Encoding]:
        return self._backend.encode_batch(texts, add_special_tokens=False)

    def _in(self, encoding: Encoding) -> _Counts:
        places = [place for place, token in enumerate(encoding.ids) if token == self._unknown]
        spans = [encoding.token_to_chars(place) for place in places]
        return _Counts(len(encoding), len(places), sum(span[1] - span[0] for span in spans if span is not None))


@cache
def _words_of_a_character() -> list[int]:
    """Return the code points of ideographs, and of the punctuation used between them."""
    ideographs = chain.from_iterable(range(first, last + 1) for first, last in _IDEOGRAPH_RANGES)
    marks = chain.from_iterable(range(first, last + 1) for first, last in _PUNCTUATION_RANGES)
    return [*ideographs, *(mark for mark in marks if unicodedata.category(chr(mark)).startswith("P"))]


def _sums(counts: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return the sums of successive groups of rows of counts; `sizes` is the number of rows in each group."""
    ends = np.cumsum(sizes)
    before = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])
    sums: NDArray[np.int64] = before[ends] - before[ends - sizes]
    return sums
