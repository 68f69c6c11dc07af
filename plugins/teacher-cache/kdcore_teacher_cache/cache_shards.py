"""Files of rows: one Arrow record batch with a row per sequence, in which each signal is a list of rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcore import Batch, DataError, atomic_write, first_line
from kdcore_teacher_cache.cache_manifest import CACHE_AGAIN
from kdcore_teacher_cache.signal_columns import RowLevel, SignalColumn, StoredType
from kdcore_teacher_cache.stored_values import arrays_of

CHECKSUM = "input_crc32"


class LevelledRows(NamedTuple):
    """Stored rows (rows, width) of a column, and the unit of a row."""

    level: RowLevel
    rows: NDArray[Any]


def input_checksums(batch: Batch) -> NDArray[np.uint32]:
    """Return the CRC-32 of each sequence's ids as the model receives them, masks included: (B,)."""
    ids = batch.input_ids.cpu().numpy().astype(np.int32)
    lengths = batch.lengths.tolist()
    return np.array([zlib.crc32(row[:length]) for row, length in zip(ids, lengths, strict=True)], np.uint32)


def write_shard(
    path: Path,
    counts: Mapping[RowLevel, NDArray[np.int64]],
    columns: Mapping[str, LevelledRows],
    checksums: Mapping[str, NDArray[Any]],
) -> None:
    """Write one file atomically.

    Args:
        path: the file.
        counts: number of rows of each sequence (B,), by level.
        columns: stored rows by array key.
        checksums: additional values of each sequence (B,), by name.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow

    arrays = {name: pyarrow.array(values) for name, values in checksums.items()}
    arrays |= {f"{level}s": pyarrow.array(numbers.astype(np.int32)) for level, numbers in counts.items()}
    offsets = {level: np.concatenate([[0], np.cumsum(numbers)]) for level, numbers in counts.items()}
    for name, (level, values) in columns.items():
        item = pyarrow.field("item", pyarrow.from_numpy_dtype(values.dtype), nullable=False)
        kind = pyarrow.list_(item, values.shape[1])
        rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), type=kind)
        arrays[name] = pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets[level]), rows)
    batch = pyarrow.RecordBatch.from_pydict(arrays)
    with atomic_write(path) as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


class MappedShard:
    """Views of one memory-mapped file.

    Attributes:
        offsets: start of each sequence's rows, followed by the total number of rows, by level.
        checksums: CRC-32 of each sequence's ids.
        values: stored rows (rows, *shape) by array key.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, path: Path, samples: int, columns: Sequence[SignalColumn], kind: StoredType) -> None:
        import pyarrow

        self.offsets: dict[RowLevel, NDArray[np.int64]] = {}
        self.values: dict[str, NDArray[Any]] = {}
        try:
            reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path), "r"))
            batch = reader.get_batch(0)
            batch.validate()
            if batch.num_rows != samples:
                raise ValueError(f"found {batch.num_rows} sequences, expected {samples}")
            found = dict(zip(reader.schema.names, batch.columns, strict=True))
            self.checksums: NDArray[np.uint32] = found[CHECKSUM].to_numpy()
            for column in columns:
                for array in arrays_of(column, kind):
                    rows = found[array.key]
                    values = rows.values.flatten().to_numpy(zero_copy_only=True)
                    if values.dtype != array.dtype:
                        raise ValueError(f"found values of type {values.dtype}, expected {array.dtype}")
                    self.offsets[column.level] = rows.offsets.to_numpy()
                    self.values[array.key] = values.reshape(-1, *array.shape)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
            raise DataError(f"is damaged ({first_line(error)})", where=str(path), hint=CACHE_AGAIN) from error
