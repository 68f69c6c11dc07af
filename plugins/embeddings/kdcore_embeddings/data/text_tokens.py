"""Tokenise texts for one model, and find the common units of two models' tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from kdcore_preparation import plain_backend, tokenizer_threads
from numpy.typing import NDArray

from kdcore import Batch, Units, load_tokenizer

_CHUNK = 10_000


@dataclass(frozen=True)
class TextTokens:
    """Concatenated sequences, including their special tokens.

    Attributes:
        tokens: (tokens,) ids.
        ends: (n,) end of each sequence in `tokens`.
        places: (tokens, 2) start and end of each token in characters of the text without its prompt; empty spans for
            special tokens and tokens of the prompt.
        pad_id: id used for padding.
        cut: number of sequences that were truncated.
    """

    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]
    places: NDArray[np.int32]
    pad_id: int
    cut: int

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each sequence."""
        return np.diff(self.ends, prepend=0)

    def slice_of(self, sample: int) -> slice:
        """Return the slice of `tokens` that contains a sequence."""
        return slice(int(self.ends[sample] - self.lengths[sample]), int(self.ends[sample]))

    def rows(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sequences by index: ids (B, L) padded to the longest, and lengths (B,)."""
        lengths = self.lengths[samples]
        columns = np.arange(int(lengths.max()))
        real = columns < lengths[:, None]
        starts = (self.ends[samples] - lengths)[:, None]
        ids = np.where(real, self.tokens[np.where(real, starts + columns, 0)], self.pad_id)
        return ids.astype(np.int64), lengths

    def batch(self, samples: NDArray[np.int64]) -> Batch:
        """Return a batch of sequences by index, without columns and without tokens to predict."""
        ids, lengths = self.rows(samples)
        real = np.arange(ids.shape[1]) < lengths[:, None]
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=lengths,
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=nothing,
            masked_labels=nothing,
        )

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of the sequences."""
        digest = hashlib.sha256(repr((self.pad_id, len(self.ends))).encode())
        digest.update(self.tokens.tobytes())
        digest.update(self.ends.tobytes())
        return digest.digest()


class TextTokenizer:
    """Tokenise texts for one model, each preceded by its prompt.

    Args:
        source: folder or hub name of the tokenizer.
        max_length: maximum number of tokens in a sequence, including special tokens; longer sequences are truncated.
        lower_case: whether texts are converted to lower case first.
        own_side: whether texts are truncated on the side specified by the tokenizer; otherwise at the end.
    """

    def __init__(self, source: str, max_length: int, *, lower_case: bool = False, own_side: bool = False) -> None:
        self.source = source
        self.tokenizer = load_tokenizer(source)
        self.max_length = max_length
        self._lower_case = lower_case
        self._backend = plain_backend(self.tokenizer)
        self._side = self.tokenizer.truncation_side if own_side else "right"
        self._backend.enable_truncation(max_length, direction=self._side)

    def encode(self, texts: Sequence[str], prompts: Sequence[str]) -> TextTokens:
        """Tokenise texts, each with the prompt at the same index."""
        tokens: list[NDArray[np.int32]] = []
        places: list[NDArray[np.int32]] = []
        cut = 0
        for start in range(0, len(texts), _CHUNK):
            own = prompts[start : start + _CHUNK]
            whole = [prompt + text for prompt, text in zip(own, texts[start : start + _CHUNK], strict=True)]
            if self._lower_case:
                whole = [text.lower() for text in whole]
            with tokenizer_threads(True):
                encodings = self._backend.encode_batch(whole)
            for prompt, encoding in zip(own, encodings, strict=True):
                tokens.append(np.array(encoding.ids, dtype=np.int32))
                found = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
                found[np.array(encoding.special_tokens_mask, dtype=bool)] = 0
                places.append(np.maximum(found - len(prompt), 0))
                cut += bool(encoding.overflowing)
        return TextTokens(
            np.concatenate(tokens) if tokens else np.empty(0, np.int32),
            np.cumsum(list(map(len, tokens)), dtype=np.int64),
            np.concatenate(places) if places else np.empty((0, 2), np.int32),
            int(self.tokenizer.pad_token_id),
            cut,
        )

    def prompt_tokens(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, including the special tokens around a text."""
        self._backend.no_truncation()
        found = len(self._backend.encode(prompt).ids)
        self._backend.enable_truncation(self.max_length, direction=self._side)
        return found


def common_units(own: TextTokens, theirs: TextTokens, samples: NDArray[np.int64]) -> tuple[Units, Units]:
    """Return the units of both models' tokens: the shortest spans between common boundaries of their tokens.

    Units end where the shorter of two truncated sequences ends. Special tokens and prompts belong to no unit.

    Args:
        own: the student's tokens.
        theirs: the teacher's tokens of the same texts.
        samples: (B,) indices of the texts.
    """
    sides: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    counts = []
    for sample in samples.tolist():
        places = [side.places[side.slice_of(sample)].astype(np.int64) for side in (own, theirs)]
        numbers, count = _unit_numbers(*places)
        for side, found in zip(sides, numbers, strict=True):
            side.append(found)
        counts.append(count)
    lengths = np.array(counts, dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    made = []
    for side in sides:
        flat = np.concatenate(
            [np.where(part < 0, lengths.sum(), part + start) for part, start in zip(side, first, strict=True)]
        )
        order = np.argsort(flat, kind="stable")
        starts = np.searchsorted(flat[order], np.arange(int(lengths.sum()) + 1))
        made.append(Units(torch.from_numpy(order[: starts[-1]]), torch.from_numpy(starts[:-1]), lengths))
    return made[0], made[1]


def whole_texts(tokens: TextTokens, samples: NDArray[np.int64]) -> Units:
    """Return one unit per text, including special tokens and prompts, for texts in different languages.

    Args:
        tokens: tokens of one model.
        samples: (B,) indices of the texts.
    """
    lengths = tokens.lengths[samples]
    starts = np.cumsum(lengths) - lengths
    return Units(torch.arange(int(lengths.sum())), torch.from_numpy(starts), np.ones(len(samples), np.int64))


def _unit_numbers(*sides: NDArray[np.int64]) -> tuple[list[NDArray[np.int64]], int]:
    """Number the units of one text from 0; return the unit of each model's tokens (-1: none) and the unit count."""
    characters = max((int(side.max(initial=0)) for side in sides), default=0)
    crossed = np.zeros(characters + 2, np.int64)
    for places in sides:
        starts, ends = places[places[:, 1] > places[:, 0]].T
        np.add.at(crossed, starts + 1, 1)
        np.add.at(crossed, ends, -1)
        # A token of one character crosses no boundary: its two changes cancel.
    spans = np.cumsum(np.cumsum(crossed)[:characters] == 0) - 1
    shared = np.ones(int(spans[-1]) + 1 if characters else 0, np.bool_)
    for places in sides:
        covered = np.zeros_like(shared)
        covered[spans[places[places[:, 1] > places[:, 0], 0]]] = True
        shared &= covered
    renumbered = np.where(shared, np.cumsum(shared) - 1, -1)
    numbers = []
    for places in sides:
        real = places[:, 1] > places[:, 0]
        found = np.full(len(places), -1, np.int64)
        found[real] = renumbered[spans[places[real, 0]]]
        numbers.append(found)
    return numbers, int(shared.sum())
