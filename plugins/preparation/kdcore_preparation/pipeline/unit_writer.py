"""Write the tokenised documents of a unit to the files of its splits."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdcore import (
    DataError,
    Masks,
    PreparedData,
    PreparedSplit,
    ShardEntry,
    ShardWriter,
    SpecialIds,
    TeacherView,
    TokenizedSequences,
    row_dtype,
)
from kdcore_preparation.pipeline.alignment import AlignedPacker, TeacherTokenizer
from kdcore_preparation.pipeline.data_recipe import DataRecipe
from kdcore_preparation.pipeline.document_batches import DocumentBatch, EncodedDocuments
from kdcore_preparation.pipeline.held_out import points_of
from kdcore_preparation.pipeline.sequence_packing import SPECIAL_TOKENS_A_SEQUENCE, Packer, Rows
from kdcore_preparation.pipeline.units import Unit
from kdcore_preparation.readers.character_account import CharacterStage

HALF_EMPTY = "half_empty"
"""Name of the count of sequences that are less than half full; it is not part of a `kdcore.SplitEntry`."""

_CHARACTERS = ("text_characters", "visible_characters", "unknown_characters")
_SHORT_SEQUENCES_STREAM = 2  # second word of the random key, see kdcore.tasks.masked_lm


class UnitWriter:
    """Pack documents, separately for each split, and write them.

    Args:
        folder: folder of the files, which are named after the split and the unit.
        unit: unit of the documents.
        data: the recipe.
        ids: special tokens.
        vocab_size: upper bound of ids.
        dropped: whether each document is left out; None keeps all documents.
        moved: point of the documents to move to the other split; None moves no documents.
        teacher: the teacher's tokenizer, if it differs from the student's.

    Attributes:
        counts: the counts of each split as in `kdcore.SplitEntry`, and the fields of its `kdcore.Alignment` if the
            teacher has a different tokenizer.
        selection: counts of the characters that were dropped as duplicates and of the characters that were written.
        contents: for each split, `content_keys` of its documents.
        nearest: the point nearest to `held_out` among the documents.
    """

    def __init__(
        self,
        folder: Path,
        unit: Unit,
        data: DataRecipe,
        ids: SpecialIds,
        vocab_size: int,
        *,
        dropped: NDArray[np.bool_] | None = None,
        moved: float | None = None,
        teacher: TeacherTokenizer | None = None,
    ) -> None:
        self.counts: dict[PreparedSplit, Counter[str]] = {split: Counter() for split in PreparedData.SPLITS}
        self.selection = CharacterStage()
        self.contents: dict[PreparedSplit, list[NDArray[np.uint64]]] = {split: [] for split in PreparedData.SPLITS}
        self.nearest: float | None = None
        self._unit = unit
        self._data = data
        self._ids = ids
        self._vocab_size = vocab_size
        self._dropped = dropped
        self._moved = moved
        self._documents = 0
        self._files = ExitStack()
        self._writers = {
            split: ShardWriter(
                folder,
                f"{split}-{unit.number:05d}",
                data.sequence_length,
                row_dtype(vocab_size),
                teacher_dtype=None if teacher is None else row_dtype(teacher.vocab_size),
                corpus=unit.corpus,
            )
            for split in PreparedData.SPLITS
        }
        random = {
            split: np.random.Generator(_short_sequences_key(data.seed, unit.number, number))
            for number, split in enumerate(PreparedData.SPLITS)
        }
        self._packers: dict[PreparedSplit, Packer] = {}
        self._aligned: dict[PreparedSplit, AlignedPacker] = {}
        if teacher is None:
            self._packers = {split: Packer(data.layout, ids, random[split]) for split in PreparedData.SPLITS}
        else:
            self._aligned = {
                split: AlignedPacker(data.layout, ids, random[split], teacher) for split in PreparedData.SPLITS
            }

    def __enter__(self) -> Self:
        for writer in self._writers.values():
            self._files.enter_context(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            for split, packer in self._packers.items():
                self._append(split, packer.finish())
            for split, aligned in self._aligned.items():
                rows, view = aligned.finish()
                self._append(split, rows, teacher=view)
                self.counts[split].update(aligned.counts)
        self._files.__exit__(kind, error, traceback)

    @property
    def shards(self) -> dict[PreparedSplit, list[ShardEntry]]:
        """The finished files."""
        return {split: writer.shards for split, writer in self._writers.items()}

    def totals(self) -> dict[str, int]:
        """Return documents, sequences and tokens so far."""
        return {
            name: sum(counts[name] for counts in self.counts.values()) for name in ("documents", "sequences", "tokens")
        }

    def add(self, batch: DocumentBatch) -> None:
        """Write some documents.

        Raises:
            DataError: sequences that were tokenised elsewhere do not match the recipe.
        """
        if isinstance(batch, TokenizedSequences):
            self._add_sequences(batch)
            return
        first, self._documents = self._documents, self._documents + len(batch)
        kept = np.ones(len(batch), np.bool_) if self._dropped is None else ~self._dropped[first : self._documents]
        repeated = int(batch.characters[~kept, 0].sum())
        if repeated:
            self.selection.drop("duplicates", repeated)
        if kept.any():
            points = np.append(batch.points[kept], [] if self.nearest is None else [self.nearest])
            self.nearest = float(points[np.abs(points - self._data.held_out).argmin()])
        held_out = batch.points < self._data.held_out
        if self._moved is not None:
            held_out ^= batch.points == self._moved
        self._add_documents("train", batch.select(kept & ~held_out))
        self._add_documents("held_out", batch.select(kept & held_out))

    def _add_documents(self, split: PreparedSplit, documents: EncodedDocuments) -> None:
        if not len(documents):
            return
        counts = self.counts[split]
        counts["documents"] += len(documents)
        counts["tokens"] += documents.tokens.size
        counts["unknown_tokens"] += self._unknown(documents.tokens)
        for name, count in zip(_CHARACTERS, documents.characters.sum(axis=0).tolist(), strict=True):
            counts[name] += count
        self.selection.passed += int(documents.characters[:, 0].sum())
        self.contents[split].append(documents.contents)
        if documents.sentence_ends is not None:
            counts["sentences"] += len(documents.sentence_ends)
        if self._aligned:
            rows, view = self._aligned[split].add(documents)
            self._append(split, rows, teacher=view)
            return
        rows = self._packers[split].add(documents.tokens, documents.document_ends, documents.sentence_ends)
        self._append(split, rows)

    def _append(
        self, split: PreparedSplit, rows: Rows, masks: Masks | None = None, teacher: TeacherView | None = None
    ) -> None:
        self.counts[split]["sequences"] += len(rows[0])
        self.counts[split][HALF_EMPTY] += int(np.count_nonzero(rows[1] < self._data.sequence_length / 2))
        self._writers[split].append(*rows, masks, teacher=teacher)

    def _add_sequences(self, batch: TokenizedSequences) -> None:
        if self._aligned:
            raise DataError(
                f"{batch.id}: contains token ids, which cannot be converted to the teacher's tokens",
                key="teacher_tokenizer",
                allowed="corpora of text",
                hint="remove teacher_tokenizer, or read the text itself",
            )
        rows, real = self._checked_rows(batch)
        (point,) = points_of(self._unit.corpus, [batch.id], self._data.seed)
        split = batch.split or ("held_out" if point < self._data.held_out else "train")
        counts = self.counts[split]
        counts["documents"] += len(rows)
        counts["tokens"] += int(batch.lengths.sum()) - SPECIAL_TOKENS_A_SEQUENCE * len(rows)
        counts["unknown_tokens"] += self._unknown(rows[real])
        masks = None
        if batch.masked_positions is not None and batch.masked_inputs is not None:
            masks = Masks(batch.masked_positions, np.where(batch.masked_positions > 0, batch.masked_inputs, 0))
        self._append(split, (rows, batch.lengths.astype(np.int32)), masks)

    def _checked_rows(self, batch: TokenizedSequences) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return padded rows, and a mask of the positions that contain a token."""
        count, width = batch.tokens.shape
        ids, room = self._ids, self._data.sequence_length
        if width > room and batch.lengths.max(initial=0) > room:
            raise DataError(
                f"{batch.id}: sequences have up to {batch.lengths.max()} tokens (expected at most {room})",
                key="sequence_length",
                hint="raise sequence_length",
            )
        rows = np.full((count, room), ids.pad, np.int32)
        real = np.arange(room) < batch.lengths[:, None]
        rows[:, :width] = batch.tokens[:, :room]
        rows[~real] = ids.pad
        ends = rows[np.arange(count), batch.lengths - 1]
        positions, inputs = batch.masked_positions, batch.masked_inputs
        strange = [rows] if inputs is None or positions is None else [rows, inputs[positions > 0]]
        if (batch.lengths < SPECIAL_TOKENS_A_SEQUENCE).any() or (batch.lengths > width).any():
            what = "has sequences of invalid lengths"
        elif any(each.size and (each.min() < 0 or each.max() >= self._vocab_size) for each in strange):
            what = f"has ids outside the tokenizer's vocabulary (expected ids below {self._vocab_size})"
        elif not ((rows[:, 0] == ids.cls).all() and (ends == ids.sep).all()):
            what = f"has sequences that do not start with [CLS] ({ids.cls}) or end with [SEP] ({ids.sep})"
        elif positions is not None and (positions >= batch.lengths[:, None]).any():
            what = "has masked positions after the ends of sequences"
        else:
            return rows, real
        raise DataError(f"{batch.id}: {what}", key="tokenizer", hint="name the tokenizer that created the sequences")

    def _unknown(self, tokens: NDArray[np.int32]) -> int:
        return 0 if self._ids.unk is None else int(np.count_nonzero(tokens == self._ids.unk))


def _short_sequences_key(seed: int, unit: int, split: int) -> np.random.Philox:
    return np.random.Philox(key=[seed, _SHORT_SEQUENCES_STREAM], counter=[0, unit, split, 0])
