"""Read the signals of batches from a cache."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from torch import Tensor

from kdcore import Batch, DataError, Problem, sha256_of_file
from kdcore_teacher_cache.cache_manifest import CACHE_AGAIN, CachedRows, CachedSplit, read_cache_manifest
from kdcore_teacher_cache.cache_shards import MappedShard, input_checksums
from kdcore_teacher_cache.signal_columns import RowLevel, SignalColumn, counts_of
from kdcore_teacher_cache.stored_values import StoredArray, arrays_of, as_tensor


class CacheReader:
    """A complete cache, opened for reading. Files are memory-mapped on first use.

    Attributes:
        folder: the folder.
        manifest: the manifest of the cache.
        contents: the content of the cache.

    Raises:
        DataError: the cache is incomplete, was written by a different version, or a file has the wrong size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_cache_manifest(folder)
        self.contents = self.manifest.contents
        self._shards: dict[tuple[CachedSplit, int], MappedShard] = {}
        missing = {name for _, _, name in self.contents.shard_files()} - set(self.manifest.files)
        problems = [Problem("is not listed in the manifest", str(folder / name)) for name in sorted(missing)]
        for name, entry in self.manifest.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry.bytes:
                found = "is missing" if size is None else f"has the wrong size (found {size}, expected {entry.bytes})"
                problems.append(Problem(found, str(path), hint=CACHE_AGAIN))
        if problems:
            raise DataError(problems)

    def verify(self) -> None:
        """Compare the checksum of every file.

        Raises:
            DataError: files differ; all of them are listed.
        """
        problems = [
            Problem("is damaged: its checksum differs", str(self.folder / name), hint=CACHE_AGAIN)
            for name, entry in self.manifest.files.items()
            if sha256_of_file(self.folder / name) != entry.sha256
        ]
        if problems:
            raise DataError(problems)

    def read(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        """Return stored rows of a batch by array, on the CPU, in the order of the batch's sequences; see `decode`.

        Args:
            batch: the teacher's view, with split, samples and epochs; its ids are also compared if they are on the CPU.
            names: columns of the split.

        Raises:
            DataError: the batch does not belong to the data from which the cache was computed, or a file is damaged.
        """
        columns, found = self.columns(batch, names), self._rows_of(batch)
        if not columns or found is None:
            return {}
        split, rows = found
        assert batch.samples is not None
        assert batch.epochs is not None
        if batch.samples.size and int(batch.samples.max()) >= rows.samples:
            what = f"holds no sample {batch.samples.max()} of the split `{split}`, which had {rows.samples}"
            raise DataError(what, where=str(self.folder))
        numbers = (batch.epochs % rows.copies) * rows.shards_per_copy + batch.samples // rows.samples_per_shard
        inside = (batch.samples % rows.samples_per_shard).tolist()
        shards = [self._shard(split, rows, number) for number in numbers.tolist()]
        self._compare(batch, shards, inside, rows)
        return {
            array.key: _gathered(array, column.level, shards, inside)
            for column in columns
            for array in arrays_of(column, self.contents.values)
        }

    def columns(self, batch: Batch, names: Collection[str]) -> list[SignalColumn]:
        """Return the columns with these names in a batch's split, omitting columns that the cache lacks."""
        found, wanted = self._rows_of(batch), set(names)
        return [] if found is None else [column for column in found[1].columns if column.name in wanted]

    def _rows_of(self, batch: Batch) -> tuple[CachedSplit, CachedRows] | None:
        if batch.split is None:
            raise DataError("has no signals for batches without sample numbers", where=str(self.folder))
        return next(((split, rows) for split, rows in self.contents.splits.items() if split == batch.split), None)

    def _shard(self, split: CachedSplit, rows: CachedRows, number: int) -> MappedShard:
        found = self._shards.get((split, number))
        if found is None:
            _, start, stop = rows.shard(number)
            path = self.folder / f"{split}-{number:05d}.arrow"
            found = self._shards[split, number] = MappedShard(path, stop - start, rows.columns, self.contents.values)
        return found

    def _compare(self, batch: Batch, shards: list[MappedShard], inside: list[int], rows: CachedRows) -> None:
        """Reject a batch whose tokens differ from those whose signals are stored."""
        assert batch.samples is not None
        wrong = np.zeros(len(inside), bool)
        if batch.input_ids.device.type == "cpu":
            stored = [shard.checksums[place] for shard, place in zip(shards, inside, strict=True)]
            wrong = np.array(stored, np.uint32) != input_checksums(batch)
        for level in {column.level for column in rows.columns if column.level == "token"}:
            ends = [shard.offsets[level] for shard in shards]
            counts = [int(one[place + 1] - one[place]) for one, place in zip(ends, inside, strict=True)]
            wrong |= np.array(counts) != counts_of(batch, level)
        if wrong.any():
            raise DataError(
                f"the tokens of sample {batch.samples[wrong.argmax()]} of the split `{batch.split}` differ from those "
                "whose signals are stored",
                where=str(self.folder),
                hint=CACHE_AGAIN,
            )


def _gathered(array: StoredArray, level: RowLevel, shards: list[MappedShard], inside: list[int]) -> Tensor:
    """Copy the rows of each sequence once, from the mapped files into a new array."""
    pieces = []
    for shard, place in zip(shards, inside, strict=True):
        start, stop = shard.offsets[level][place : place + 2].tolist()
        pieces.append(shard.values[array.key][start:stop])
    return as_tensor(np.concatenate(pieces))
