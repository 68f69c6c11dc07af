"""Batches of tokenised documents, in memory and in the files of an unfinished preparation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdcore import TokenizedSequences

_SEQUENCE_ARRAYS = ("tokens", "lengths", "masked_positions", "masked_inputs")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDocuments:
    """A batch of concatenated documents, none of them empty.

    Attributes:
        tokens: (tokens,) ids without special tokens.
        document_ends: (documents,) end of each document in `tokens`.
        sentence_ends: ascending ends of sentences, including the ends of documents; None if sentences are not detected.
        points: (documents,) numbers in [0, 1); documents with a number below `held_out` are held out.
        keys: (documents,) 64-bit hash of each text; empty if duplicates are kept.
        contents: (documents,) 64-bit hash of each text's content, see `content_keys`.
        characters: (documents, 3) counts of each text: all characters, characters other than white space, and
            characters inside [UNK].
        text: code points of the documents' text. `text`, `text_spans` and `offsets` are None if the teacher has the
            same tokenizer.
        text_spans: (documents, 2) start and end of each document in `text`.
        offsets: (tokens, 2) start and end of each token in `text`.
    """

    tokens: NDArray[np.int32]
    document_ends: NDArray[np.int64]
    sentence_ends: NDArray[np.int64] | None
    points: NDArray[np.float64]
    keys: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    characters: NDArray[np.int64]
    text: NDArray[np.uint32] | None = None
    text_spans: NDArray[np.int64] | None = None
    offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.document_ends)

    def select(self, chosen: NDArray[np.bool_]) -> EncodedDocuments:
        """Select documents; `chosen` is (documents,)."""
        if chosen.all():
            return self
        lengths = np.diff(self.document_ends, prepend=0)
        ends = np.cumsum(np.where(chosen, lengths, 0))
        sentence_ends = None
        if self.sentence_ends is not None:
            document = np.searchsorted(self.document_ends, self.sentence_ends)
            kept = chosen[document]
            sentence_ends = self.sentence_ends[kept] - (self.document_ends - ends)[document[kept]]
        chosen_tokens = np.repeat(chosen, lengths)
        return EncodedDocuments(
            self.tokens[chosen_tokens],
            ends[chosen],
            sentence_ends,
            self.points[chosen],
            self.keys[chosen] if self.keys.size else self.keys,
            self.contents[chosen],
            self.characters[chosen],
            self.text,
            None if self.text_spans is None else self.text_spans[chosen],
            None if self.offsets is None else self.offsets[chosen_tokens],
        )


DocumentBatch = EncodedDocuments | TokenizedSequences


def write_batch(file: IO[bytes], batch: DocumentBatch, dtype: str) -> None:
    """Append a batch to a file; `dtype` is wide enough for every id."""
    if isinstance(batch, EncodedDocuments):
        names: tuple[str, ...] = EncodedDocuments.__slots__
        about: dict[str, Any] = {}
    else:
        names, about = _SEQUENCE_ARRAYS, {"id": batch.id, "split": batch.split}
    arrays = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
    np.save(file, np.array(json.dumps({"about": about, "arrays": list(arrays)})))
    for name, array in arrays.items():
        np.save(file, array.astype(dtype) if name == "tokens" else array)


def read_batches(path: Path) -> Iterator[DocumentBatch]:
    """Read the batches that were appended to a file, in order."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            head = json.loads(str(np.load(file)))
            arrays = {name: np.load(file) for name in head["arrays"]}
            arrays["tokens"] = arrays["tokens"].astype(np.int32)
            if head["about"]:
                yield TokenizedSequences(**head["about"], **arrays)
            else:
                yield EncodedDocuments(**{"sentence_ends": None, **arrays})
