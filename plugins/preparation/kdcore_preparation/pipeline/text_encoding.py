"""Encode many texts at once into one array of token ids."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcore import special_ids
from kdcore_preparation.pipeline.unknown_text import UnknownText

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK_CHARACTERS = 100_000
"""Longer texts are encoded in pieces: the encoder keeps about 150 bytes per token until a piece is done."""

UNBROKEN_CHARACTERS = 1_000_000
"""Longer texts without white space at which they may be cut are cut after this many characters."""

_HIDDEN = "\ufdd0"  # a noncharacter, which cleaning removes from texts
_BEFORE_A_CUT = (
    "a",
    "B",
    "1",
    ".",
    "-",
    "\u00e9",
    "\u3002",
    "\u4eca",
    "\u304b",
    "\u0e01",
    "\u0915\u093f",
    "\U0001f600",
)
_AFTER_A_CUT = ("b", "B", "1", ".", "'s", "\u0301b", "\u4eca", "\u0e01", "\U0001f600", " b", "\nb", " \n b", "\u3000b")

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
        ends: (texts,) end of each text in `tokens`.
        sentence_ends: ascending ends of sentences, including each text's end; None if sentences are not detected.
        unknown_characters: (texts,) characters of each text that are inside [UNK].
        offsets: (tokens, 2) start and end of each token in the concatenated texts; None if not requested.
    """

    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]
    sentence_ends: NDArray[np.int64] | None
    unknown_characters: NDArray[np.int64]
    offsets: NDArray[np.int64] | None = None


class TextEncoder:
    """Encode texts to token ids without truncation.

    The tokens of a text are the same as if the tokenizer encoded the whole text at once. A text is cut for encoding
    only where this does not change the tokens: before white space, if the tokenizer separates words there. Other
    sentence ends, as in Chinese, are located using the token offsets; a token that spans such an end belongs to the
    first sentence. Special tokens that occur in a text ("[MASK]") are encoded as ordinary text.

    Args:
        tokenizer: a `transformers` fast tokenizer.
        split_sentences: cuts a text into pieces whose concatenation is the text; None if sentences are not needed.
        all_cores: use threads where possible.
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
        self._backend = plain_backend(tokenizer)
        self._separators = separators_of(self._backend)
        self._unk = special_ids(tokenizer).unk
        self._unknown_text = UnknownText(self._backend, self._unk)
        self._split_sentences = split_sentences
        self._all_cores = all_cores
        self._offsets = offsets

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode some texts."""
        cut = self._cut(texts)
        with tokenizer_threads(self._all_cores):
            located = self._offsets or self._unknown_text.needs_offsets
            encodings = self._encode(cut, located=located)
            lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
            piece_ends = _starting_at_0(lengths)
            # Lists of ids are created and dropped one by one: thousands at once would keep the garbage collector busy.
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            tokens = np.fromiter(ids, np.int32, int(piece_ends[-1]))
            unknown = np.diff(np.searchsorted(np.flatnonzero(tokens == self._unk), piece_ends))
            lost = self._unknown_text.characters(cut.pieces, lengths, unknown, encodings if located else None)
        text_ends = np.cumsum(cut.of_text, dtype=np.int64)
        ends = piece_ends[text_ends]
        lost = np.diff(_starting_at_0(lost)[text_ends], prepend=0)
        offsets = _joined_offsets(cut.pieces, encodings, lengths) if self._offsets else None
        if self._split_sentences is None:
            return EncodedTexts(tokens, ends, None, lost, offsets)
        inner = [piece_ends[piece] + _tokens_before(encodings[piece], places) for piece, places in cut.inner.items()]
        sentence_ends = np.unique(np.concatenate([piece_ends[1:][cut.sentences], ends, *inner]))
        return EncodedTexts(tokens, ends, sentence_ends[sentence_ends > 0], lost, offsets)

    def _encode(self, cut: _Cut, *, located: bool) -> list[Encoding]:
        """Encode pieces; compute offsets, which are slow, only if requested or for pieces with inner sentence ends."""
        backend = self._backend
        if located:
            return backend.encode_batch(cut.pieces, add_special_tokens=False)
        if not cut.inner:
            return backend.encode_batch_fast(cut.pieces, add_special_tokens=False)
        plain = [piece for number, piece in enumerate(cut.pieces) if number not in cut.inner]
        without = iter(backend.encode_batch_fast(plain, add_special_tokens=False))
        inner = iter(backend.encode_batch([cut.pieces[number] for number in cut.inner], add_special_tokens=False))
        return [next(inner if number in cut.inner else without) for number in range(len(cut.pieces))]

    def _cut(self, texts: Sequence[str]) -> _Cut:
        if self._split_sentences is None and max(map(len, texts), default=0) <= CHUNK_CHARACTERS:
            return _Cut(list(texts), [], [1] * len(texts), {})
        cut = _Cut([], [], [], {})
        for text in texts:
            before = len(cut.pieces)
            ends = [len(text)] if self._split_sentences is None else _ends_of(self._split_sentences(text))
            start, inner = 0, []
            for end in ends:
                if end < len(text) and text[end] not in self._separators:
                    inner.append(end)
                    continue
                for chunk_end in self._chunk_ends(text, start, end):
                    if places := [place - start for place in inner if start < place <= chunk_end]:
                        cut.inner[len(cut.pieces)] = places
                    cut.pieces.append(text[start:chunk_end])
                    cut.sentences.append(chunk_end == end)
                    start = chunk_end
                inner = []
            cut.of_text.append(len(cut.pieces) - before)
        return cut

    def _chunk_ends(self, text: str, start: int, end: int) -> Iterator[int]:
        """Yield chunk ends in `text[start:end]`: positions before white space where the text may be cut."""
        while end - start > CHUNK_CHARACTERS:
            place = self._last_separator(text, start, start + CHUNK_CHARACTERS)
            reach = start + CHUNK_CHARACTERS
            while place is None and reach < min(end, start + UNBROKEN_CHARACTERS):
                reach += CHUNK_CHARACTERS
                place = self._last_separator(text, start, min(reach, end - 1))
            start = min(place or start + UNBROKEN_CHARACTERS, end)
            yield start
        if start < end:
            yield end

    def _last_separator(self, text: str, start: int, end: int) -> int | None:
        """Return the last position in `start < position <= end` where a text may be cut, if there is one."""
        while place := max((text.rfind(one, start + 1, end + 1) for one in self._separators), default=-1) + 1:
            end = place - 2
            if not text[end].isspace():
                return place - 1
        return None


@dataclass(frozen=True, slots=True)
class _Cut:
    """Texts cut into pieces.

    Attributes:
        pieces: the pieces to encode.
        sentences: whether each piece ends a sentence; empty if sentences are not needed.
        of_text: number of pieces of each text.
        inner: for each piece index, the ascending character positions of sentence ends inside that piece.
    """

    pieces: list[str]
    sentences: list[bool]
    of_text: list[int]
    inner: dict[int, list[int]]


def _tokens_before(encoding: Encoding, places: Sequence[int]) -> NDArray[np.int64]:
    """Count the tokens that begin before each of the given positions in a piece."""
    starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(encoding))
    return np.searchsorted(np.maximum.accumulate(starts), places, side="left").astype(np.int64)


def _starting_at_0(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Return the cumulative sums of the counts, starting with 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _joined_offsets(
    pieces: Sequence[str], encodings: Sequence[Encoding], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the offsets (tokens, 2) of all tokens in the concatenated pieces, given the token count of each piece."""
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    numbers = chain.from_iterable(chain.from_iterable(encoding.offsets) for encoding in encodings)
    offsets = np.fromiter(numbers, np.int64, 2 * int(lengths.sum())).reshape(-1, 2)
    return offsets + np.repeat(np.cumsum(sizes) - sizes, lengths)[:, None]


def _ends_of(sentences: list[str]) -> Iterator[int]:
    """Yield the position after each sentence; white space between two sentences belongs to the second."""
    place = 0
    for number, sentence in enumerate(sentences, start=1):
        place += len(sentence)
        yield place if number == len(sentences) else place - len(sentence) + len(sentence.rstrip())


@contextmanager
def tokenizer_threads(wanted: bool) -> Iterator[None]:
    """Enable the threads of the tokenizers library in this process if requested, but not in processes forked later.

    The threads do not survive a fork, so encoding in a forked process would hang. The library avoids this and warns at
    each fork, unless the environment variable is set. A value set by the user is kept.
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

    Special tokens that occur in a text ("[SEP]") are encoded as ordinary text, even if the model's pieces include them.
    Special tokens have different names in the copy, so refer to them by id.

    Args:
        tokenizer: a `transformers` fast tokenizer.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    _hide_special_tokens(content)
    backend = Tokenizer.from_str(json.dumps(content))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _hide_special_tokens(content: dict[str, Any]) -> None:
    """Rename special tokens in the content of a tokenizer.json to names that no text contains; ids are unchanged."""
    names = {token["content"]: _HIDDEN + token["content"] for token in content["added_tokens"] if token["special"]}
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])


def separators_of(backend: Tokenizer) -> str:
    """Return the white space before which a text may be cut without changing tokens: space, newline, both or none.

    The tokenizer's normalizer and pre-tokenizer are tested on many kinds of text.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    if any(token.lstrip or token.rstrip or any(map(str.isspace, token.content)) for token in added):
        return ""
    return "".join(
        separator
        for separator in " \n"
        if all(
            _pieces(backend, before + separator + after)
            == [*_pieces(backend, before), *_pieces(backend, separator + after)]
            for before in _BEFORE_A_CUT
            for after in _AFTER_A_CUT
        )
    )


def _pieces(backend: Tokenizer, text: str) -> list[str]:
    """Return the pieces of a text that the model encodes one by one."""
    normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [normalized]
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]
