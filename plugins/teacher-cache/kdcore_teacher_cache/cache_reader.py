"""Read the signals of batches from a cache."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdcore import Batch, DataError, Problem, sha256_of_file
from kdcore_teacher_cache.cache_manifest import CACHE_AGAIN, CachedRows, CachedSplit, read_cache_manifest
from kdcore_teacher_cache.cache_shards import MappedShard, input_checksums
from kdcore_teacher_cache.signal_columns import SignalColumn, counts_of
from kdcore_teacher_cache.stored_values import NUMPY_TYPES, decode


class CacheReader:
    """A complete cache, opened for reading. Files are mapped when the first of their rows is read.

    Attributes:
        folder: the folder.
        manifest: its manifest.
        contents: what it holds.

    Raises:
        DataError: it is incomplete, was written by another version, or a file has the wrong size.
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
            DataError: files differ; names each.
        """
        problems = [
            Problem("is damaged: its checksum differs", str(self.folder / name), hint=CACHE_AGAIN)
            for name, entry in self.manifest.files.items()
            if sha256_of_file(self.folder / name) != entry.sha256
        ]
        if problems:
            raise DataError(problems)

    def read(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        """Return rows of a batch by column name: (rows, *shape) on the CPU, in the order of the batch's sequences.

        Args:
            batch: the teacher's view, with split, samples and epochs; in host memory, its ids are compared, too.
            names: columns of the split.

        Raises:
            DataError: the batch is not one of the data that the cache was computed from, or a file is damaged.
        """
        split, rows = self._split_of(batch)
        assert batch.samples is not None
        assert batch.epochs is not None
        if batch.samples.size and int(batch.samples.max()) >= rows.samples:
            what = f"holds no sample {batch.samples.max()} of the split `{split}`, which had {rows.samples}"
            raise DataError(what, where=str(self.folder))
        numbers = (batch.epochs % rows.copies) * rows.shards_per_copy + batch.samples // rows.samples_per_shard
        inside = (batch.samples % rows.samples_per_shard).tolist()
        shards = [self._shard(split, rows, number) for number in numbers.tolist()]
        self._compare(batch, shards, inside, rows)
        columns = {column.name: column for column in rows.columns}
        return {name: self._column(columns[name], shards, inside) for name in names}

    def _split_of(self, batch: Batch) -> tuple[CachedSplit, CachedRows]:
        for split, rows in self.contents.splits.items():
            if split == batch.split:
                return split, rows
        found = "batches without sample numbers" if batch.split is None else f"the split `{batch.split}`"
        raise DataError(f"holds no signals of {found}", where=str(self.folder), allowed=list(self.contents.splits))

    def _shard(self, split: CachedSplit, rows: CachedRows, number: int) -> MappedShard:
        found = self._shards.get((split, number))
        if found is None:
            _, start, stop = rows.shard(number)
            path = self.folder / f"{split}-{number:05d}.arrow"
            found = self._shards[split, number] = MappedShard(path, stop - start, rows.columns, self.contents.values)
        return found

    def _compare(self, batch: Batch, shards: list[MappedShard], inside: list[int], rows: CachedRows) -> None:
        """Refuse a batch with other tokens than those whose signals are stored."""
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
                f"sample {batch.samples[wrong.argmax()]} of the split `{batch.split}` has other tokens than those "
                "whose signals are stored",
                where=str(self.folder),
                hint=CACHE_AGAIN,
            )

    def _column(self, column: SignalColumn, shards: list[MappedShard], inside: list[int]) -> Tensor:
        """Copy the rows of each sequence once, from the mapped files into a new array."""
        name, kind = column.name, self.contents.values
        pieces: list[tuple[MappedShard, slice]] = []
        for shard, place in zip(shards, inside, strict=True):
            start, stop = shard.offsets[column.level][place : place + 2].tolist()
            pieces.append((shard, slice(start, stop)))
        total = sum(piece.stop - piece.start for _, piece in pieces)
        dtype: Any = np.float32 if kind == "int8" else NUMPY_TYPES[kind]
        result = np.empty((total, *column.shape), dtype)
        filled = 0
        for shard, piece in pieces:
            target = result[filled : filled + piece.stop - piece.start]
            if kind == "int8":
                np.multiply(shard.values[name][piece], shard.scales[name][piece], out=target)
            else:
                target[:] = shard.values[name][piece]
            filled += len(target)
        return decode(result, kind)
