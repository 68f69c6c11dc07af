"""Write rows of token ids to Arrow files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdcore.data.manifest import RowType, ShardEntry
from kdcore.data.shards import Ids, Masks, TeacherView
from kdcore.utils.atomic import atomic_write
from kdcore.utils.hashing import sha256_of_file

BATCH_BYTES = 32 * 2**20
SHARD_BATCHES = 16


class ShardWriter:
    """Write rows, starting a new file when the current one is large enough. Files are written atomically.

    Args:
        folder: folder to write the files to.
        name: name of the first file, without its suffix; the names of later files are numbered.
        sequence_length: number of columns in a row.
        dtype: type of ids.
        teacher_dtype: type of the teacher's ids, if the rows also contain the teacher's tokens.
        corpus: number of the corpus that the rows belong to.
        batch_rows: number of rows written at a time.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        sequence_length: int,
        dtype: RowType,
        *,
        teacher_dtype: RowType | None = None,
        corpus: int = 0,
        batch_rows: int | None = None,
    ) -> None:
        self.shards: list[ShardEntry] = []
        self._folder = folder
        self._name = name
        self._sequence_length = sequence_length
        self._corpus = corpus
        self._dtype = np.dtype(dtype)
        self._batch_rows = batch_rows or max(1, BATCH_BYTES // (sequence_length * self._dtype.itemsize))
        self._tokens = np.empty((self._batch_rows, sequence_length), self._dtype)
        self._lengths = np.empty(self._batch_rows, np.int32)
        self._masks: list[Masks] = []
        self._teacher_dtype = None if teacher_dtype is None else np.dtype(teacher_dtype)
        self._teacher: list[TeacherView] = []
        self._predictions = 0
        self._filled = self._rows = self._batches = 0
        self._file = ExitStack()
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.__exit__(kind, error, traceback)

    def append(
        self, rows: Ids, lengths: Ids, masks: Masks | None = None, *, teacher: TeacherView | None = None
    ) -> None:
        """Add rows (n, sequence_length) and their lengths (n,); `teacher` is required if `teacher_dtype` was set."""
        predictions = 0 if masks is None else masks.positions.shape[1]
        if predictions != self._predictions:
            self.close()
            self._predictions = predictions
        start = 0
        while start < len(rows):
            take = min(len(rows) - start, self._batch_rows - self._filled)
            here = slice(start, start + take)
            self._tokens[self._filled : self._filled + take] = rows[here]
            self._lengths[self._filled : self._filled + take] = lengths[here]
            if masks is not None:
                self._masks.append(Masks(masks.positions[here], masks.inputs[here]))
            if teacher is not None:
                self._teacher.append(TeacherView(*(part[here] for part in teacher)))
            self._filled += take
            start += take
            if self._filled == self._batch_rows:
                self._write_batch()

    def close(self) -> None:
        """Write the remaining rows and finish the last file."""
        if self._filled:
            self._write_batch()
        self._finish_file()

    def _write_batch(self) -> None:
        import pyarrow

        columns = {"tokens": self._list_array(self._tokens[: self._filled])}
        columns["length"] = pyarrow.array(self._lengths[: self._filled])
        if self._predictions:
            positions, inputs = (np.concatenate(parts) for parts in zip(*self._masks, strict=True))
            columns["masked_positions"] = self._list_array(positions.astype(np.uint16))
            columns["masked_inputs"] = self._list_array(inputs.astype(self._dtype))
        if self._teacher_dtype is not None:
            tokens, lengths, units, own_units = (np.concatenate(parts) for parts in zip(*self._teacher, strict=True))
            columns["teacher_tokens"] = self._list_array(tokens.astype(self._teacher_dtype))
            columns["teacher_length"] = pyarrow.array(lengths.astype(np.int32))
            columns["teacher_units"] = self._list_array(units.astype(np.uint16))
            columns["units"] = self._list_array(own_units.astype(np.uint16))
        batch = pyarrow.RecordBatch.from_pydict(columns)
        if self._writer is None:
            number = len(self.shards)
            path = self._folder / (f"{self._name}-{number}.arrow" if number else f"{self._name}.arrow")
            self._path = path
            self._writer = pyarrow.ipc.new_file(self._file.enter_context(atomic_write(path)), batch.schema)
        self._writer.write_batch(batch)
        self._rows += self._filled
        self._batches += 1
        self._filled = 0
        self._masks, self._teacher = [], []
        if self._batches == SHARD_BATCHES:
            self._finish_file()

    @staticmethod
    def _list_array(values: NDArray[Any]) -> Any:
        import pyarrow

        item = pyarrow.field("item", pyarrow.from_numpy_dtype(values.dtype), nullable=False)
        kind = pyarrow.list_(item, values.shape[1])
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), type=kind)

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        self.shards.append(
            ShardEntry(
                file=self._path.name,
                rows=self._rows,
                bytes=self._path.stat().st_size,
                sha256=sha256_of_file(self._path),
                corpus=self._corpus,
                predictions=self._predictions,
            )
        )
        self._writer = None
        self._batches = self._rows = 0
