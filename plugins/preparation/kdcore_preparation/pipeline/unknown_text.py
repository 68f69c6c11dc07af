"""Count the characters of texts that a tokenizer encodes as [UNK]."""

from __future__ import annotations

from collections.abc import Sequence
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
        self._separates_words = self._words_are_separate()

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
                words = [texts[place].split() for place in places]
                known = self._known({word for each in words for word in each})
                again = []
                for place, each in zip(places, words, strict=True):
                    counts = [known[word] for word in each]
                    found[place] = sum(count.characters for count in counts)
                    same = sum(count.tokens for count in counts) == tokens[place]
                    if not same or sum(count.unknown for count in counts) != unknown[place]:
                        again.append(place)
                read = sum(map(len, known.keys() - self._words.keys()))
            for place, encoding in zip(again, self._encode([texts[place] for place in again]), strict=True):
                found[place] = self._in(encoding).characters
                read += len(texts[place])
        self.needs_offsets = read > _MUCH * sum(map(len, texts))
        return found

    def _words_are_separate(self) -> bool:
        """Return whether tokens lie within words, and white space outside of unknown tokens."""
        if self._backend.pre_tokenizer is None or self._in(self._encode([_WHITE_SPACE])[0]).unknown:
            return False
        normalizer = self._backend.normalizer
        text = _THREE_WORDS if normalizer is None else normalizer.normalize_str(_THREE_WORDS)
        return len(self._backend.pre_tokenizer.pre_tokenize_str(text)) >= _THREE_WORDS.count("a")

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
