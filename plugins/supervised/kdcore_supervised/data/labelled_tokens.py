"""Tokenise labelled texts: the tokens of a part in flat arrays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from kdcore_preparation import clean_text, plain_backend, tokenizer_threads
from numpy.typing import NDArray

_CHUNK = 10_000


@dataclass(frozen=True)
class TokenizedTexts:
    """Concatenated sequences, including their special tokens.

    Attributes:
        tokens: (tokens,) ids.
        ends: (n,) end of each sequence in `tokens`.
        types: (tokens,) 1 for tokens of the second text of a pair; None if the tokenizer does not mark them.
        pad_id: id used for padding.
        cut: number of sequences that were truncated.
        unknown: fraction of the characters other than white space that are inside [UNK].
    """

    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]
    types: NDArray[np.uint8] | None
    pad_id: int
    cut: int
    unknown: float = 0.0

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(n,) where each sequence starts."""
        return np.concatenate([[0], self.ends[:-1]]) if len(self.ends) else self.ends

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each sequence."""
        return self.ends - self.starts

    def rows(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
        """Return sequences by index: ids (B, L) padded to the longest, lengths (B,), types (B, L) or None."""
        ids = self.padded(self.tokens, samples, self.pad_id).astype(np.int64)
        types = None if self.types is None else self.padded(self.types, samples, 0).astype(np.int64)
        return ids, self.lengths[samples], types

    def padded(self, values: NDArray[Any], samples: NDArray[np.int64], fill: Any) -> NDArray[Any]:
        """Return token values (tokens,) of sequences by index as (B, L), with `fill` in the padding."""
        starts, lengths = self.starts[samples], self.lengths[samples]
        columns = np.arange(int(lengths.max()))
        real = columns < lengths[:, None]
        return np.where(real, values[np.where(real, starts[:, None] + columns, 0)], values.dtype.type(fill))

    def fingerprint(self) -> str:
        """Return the SHA-256 of all arrays and the padding id."""
        digest = hashlib.sha256(repr((self.pad_id, len(self.ends))).encode())
        arrays: list[NDArray[Any]] = [self.tokens, self.ends, *([] if self.types is None else [self.types])]
        for array in arrays:
            digest.update(array.tobytes())
        return digest.hexdigest()


def tokenize(
    tokenizer: Any,
    texts: Sequence[Sequence[str]],
    max_length: int,
    report: Counter[str] | None = None,
    *,
    cleaned: bool = False,
) -> TokenizedTexts:
    """Tokenise texts, or pairs of texts, with the tokenizer's special tokens around them.

    Texts are cleaned like raw text, by `kdcore_preparation.clean_text`. Sequences longer than `max_length` are
    truncated at the end; for pairs, the longer text is truncated first. Special tokens that occur in a text ("[SEP]")
    are encoded as ordinary text.

    Args:
        tokenizer: a `transformers` fast tokenizer.
        texts: a list of texts, or two lists of equal length for pairs.
        max_length: maximum number of tokens in a sequence, including special tokens.
        report: receives counts of the changes made by cleaning.
        cleaned: whether the texts have been cleaned already, like those of `LabelledTexts`.
    """
    report = Counter() if report is None else report
    backend = plain_backend(tokenizer)
    backend.enable_truncation(max_length, strategy="longest_first")
    columns = texts if cleaned else [[clean_text(text, report) for text in column] for column in texts]
    records: Sequence[Any] = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    tokens: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    lengths: list[int] = []
    cut = visible = lost = 0
    for start in range(0, len(records), _CHUNK):
        with tokenizer_threads(True):
            encodings = backend.encode_batch(records[start : start + _CHUNK])
        for encoding in encodings:
            tokens.append(np.array(encoding.ids, dtype=np.int32))
            types.append(np.array(encoding.type_ids, dtype=np.uint8))
            lengths.append(len(encoding.ids))
            cut += bool(encoding.overflowing)
        for record, encoding in zip(records[start : start + _CHUNK], encodings, strict=True):
            own = _encoded_texts((record,) if isinstance(record, str) else record, encoding)
            visible += sum(map(visible_characters, own))
            if tokenizer.unk_token_id in encoding.ids:
                for place, token in enumerate(encoding.ids):
                    sequence = encoding.token_to_sequence(place) if token == tokenizer.unk_token_id else None
                    if sequence is not None:
                        lost += visible_characters(own[sequence][slice(*encoding.offsets[place])])
    all_types = np.concatenate(types) if types else np.empty(0, np.uint8)
    return TokenizedTexts(
        np.concatenate(tokens) if tokens else np.empty(0, np.int32),
        np.cumsum(lengths, dtype=np.int64),
        all_types if all_types.any() else None,
        int(tokenizer.pad_token_id),
        cut,
        lost / max(1, visible),
    )


def visible_characters(text: str) -> int:
    """Return the number of characters other than white space."""
    return sum(map(len, text.split()))


def _encoded_texts(texts: Sequence[str], encoding: Any) -> list[str]:
    """Return the texts covered by an encoding, which may have been truncated."""
    if not encoding.overflowing:
        return list(texts)
    ends = [0] * len(texts)
    for place, (_, end) in enumerate(encoding.offsets):
        sequence = encoding.token_to_sequence(place)
        if sequence is not None:
            ends[sequence] = max(ends[sequence], end)
    return [text[:end] for text, end in zip(texts, ends, strict=True)]
