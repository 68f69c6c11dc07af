"""Encode many texts at once to one array of token ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcore import special_ids, vocabulary_size
from kdcore_preparation.readers.cleaning import cut_text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK_CHARACTERS = 100_000
"""Longer texts are encoded in pieces: the encoder keeps about 150 bytes per token until a piece is done."""

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_OFF_AFTER_USE = "False"  # differs from the usual "false" that a user may have set
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTexts:
    """The tokens of some texts.

    Attributes:
        tokens: (tokens,) ids without special tokens.
        ends: (texts,) where each text ends in `tokens`.
        sentence_ends: ascending ends of sentences, including each text's end; None if sentences are not detected.
        offsets: (tokens, 2) first character and end of each token in the concatenated texts; None if not requested.
    """

    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]
    sentence_ends: NDArray[np.int64] | None
    offsets: NDArray[np.int64] | None = None


class TextEncoder:
    """Encode texts to token ids without truncation.

    Special tokens that occur in a text ("[MASK]") are encoded as ordinary text.

    Args:
        tokenizer: a `transformers` fast tokenizer.
        split_sentences: cuts a text into pieces whose concatenation is the text; None if sentences are not needed.
        all_cores: use threads where that is possible.
        offsets: also return the characters of each token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        split_sentences: Callable[[str], list[str]] | None = None,
        all_cores: bool = True,
        offsets: bool = False,
    ) -> None:
        ids = special_ids(tokenizer)
        self._backend = plain_backend(tokenizer)
        self._unk = ids.unk
        # A unigram model has its control pieces in its vocabulary and may match them in a text, whatever the settings.
        self._forbidden = np.zeros(vocabulary_size(tokenizer), dtype=bool)
        self._forbidden[[index for index in ids.all if index != ids.unk]] = True
        self._split_sentences = split_sentences
        self._all_cores = all_cores
        self._offsets = offsets

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode some texts."""
        pieces, sentences, pieces_a_text = self._cut(texts)
        with tokenizer_threads(self._all_cores):
            encode = self._backend.encode_batch if self._offsets else self._backend.encode_batch_fast
            encodings = encode(pieces, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        piece_ends = np.concatenate([[0], np.cumsum(lengths)])
        # Lists of ids are created and dropped one by one: thousands at once would keep the garbage collector busy.
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        tokens = np.fromiter(ids, np.int32, int(piece_ends[-1]))
        if self._unk is not None:
            tokens[self._forbidden[tokens]] = self._unk
        ends = piece_ends[np.cumsum(pieces_a_text, dtype=np.int64)]
        offsets = _joined_offsets(pieces, encodings, lengths) if self._offsets else None
        if self._split_sentences is None:
            return EncodedTexts(tokens, ends, None, offsets)
        sentence_ends = np.unique(np.concatenate([piece_ends[1:][sentences], ends]))
        return EncodedTexts(tokens, ends, sentence_ends[sentence_ends > 0], offsets)

    def _cut(self, texts: Sequence[str]) -> tuple[list[str], list[bool], list[int]]:
        """Cut texts: the pieces to encode, whether each ends a sentence, and the number of pieces of each text."""
        pieces: list[str] = []
        sentences: list[bool] = []
        pieces_a_text = []
        if self._split_sentences is None and max(map(len, texts), default=0) <= CHUNK_CHARACTERS:
            return list(texts), [], [1] * len(texts)
        for text in texts:
            before = len(pieces)
            for sentence in [text] if self._split_sentences is None else _leading_space(self._split_sentences(text)):
                if len(sentence) <= CHUNK_CHARACTERS:
                    pieces.append(sentence)
                    sentences.append(True)
                else:
                    cut = list(cut_text(sentence, CHUNK_CHARACTERS))
                    pieces += cut
                    sentences += [False] * (len(cut) - 1) + [True]
            pieces_a_text.append(len(pieces) - before)
        return pieces, sentences, pieces_a_text


def _joined_offsets(
    pieces: Sequence[str], encodings: Sequence[Encoding], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return offsets of all tokens (tokens, 2) in the concatenated pieces, given the number of tokens of each piece."""
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    numbers = chain.from_iterable(chain.from_iterable(encoding.offsets) for encoding in encodings)
    offsets = np.fromiter(numbers, np.int64, 2 * int(lengths.sum())).reshape(-1, 2)
    return offsets + np.repeat(np.cumsum(sizes) - sizes, lengths)[:, None]


def _leading_space(sentences: list[str]) -> Iterator[str]:
    """Move white space between two sentences to the front of the second, as `cut_text` does."""
    carried = ""
    for number, sentence in enumerate(sentences):
        whole = carried + sentence
        kept = whole if number == len(sentences) - 1 else whole.rstrip()
        carried = whole[len(kept) :]
        yield kept


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the code point of each character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def text_of(points: NDArray[np.uint32]) -> str:
    """Return the text with these code points."""
    return points.tobytes().decode("utf-32-le", "surrogatepass")


@contextmanager
def tokenizer_threads(wanted: bool) -> Iterator[None]:
    """Enable the threads of the tokenizers library in this process if wanted, but not in processes forked later.

    Its threads do not survive a fork: encoding would hang, which the library avoids with a warning at each fork unless
    the variable is set. A value set by the user is kept.
    """
    if os.environ.get(_PARALLELISM, _OFF_AFTER_USE) != _OFF_AFTER_USE:
        yield
        return
    os.environ[_PARALLELISM] = "true" if wanted and not _forked else _OFF_AFTER_USE
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = _OFF_AFTER_USE


def plain_backend(tokenizer: Any) -> Tokenizer:
    """Copy the Rust tokenizer of a `transformers` fast tokenizer, without truncation and padding.

    Special tokens that are spelled in a text ("[SEP]") are encoded as ordinary text.

    Args:
        tokenizer: a `transformers` fast tokenizer.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend
