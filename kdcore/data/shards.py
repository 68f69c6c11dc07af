"""Prepared data on disk: rows of token ids in Arrow files, read back through memory maps.

    FOLDER/
      manifest.json         what the data is, how many rows each file has, checksums
      tokenizer/            the tokenizer that made it, loadable with AutoTokenizer
      train-00000.arrow ...
      held_out-00000.arrow ...

A row is one sequence, padded to `sequence_length`; its length is stored beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcore.data.files import sha256_of_file
from kdcore.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "held_out")

Split = Literal["train", "held_out"]

BATCH_BYTES = 32 * 2**20
SHARD_BATCHES = 16

_PREPARE_AGAIN = "remove the folder and prepare the data again"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)  # unknown keys are let through: a later minor addition must stay readable


class ShardEntry(_Stored):
    """One file of rows."""

    file: str
    rows: int
    bytes: int
    sha256: str


class SplitEntry(_Stored):
    """One split: its files and what they hold. `tokens` are the text's, [CLS], [SEP] and [PAD] not counted."""

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    shards: list[ShardEntry] = Field(default_factory=list)


class SpecialTokens(_Stored):
    """Ids of special tokens; `all` are every id that never stands for text."""

    pad: int
    cls: int
    sep: int
    mask: int
    unk: int | None
    all: list[int]


class Manifest(_Stored):
    """What a prepared folder holds."""

    format_version: int
    kdcore_version: str
    fingerprint: str
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    tokenizer_fingerprint: str
    vocab_size: int
    special_tokens: SpecialTokens
    sequence_length: int
    dtype: Literal["uint16", "int32"]
    reports: list[dict[str, int]]
    splits: dict[Split, SplitEntry]


def row_dtype(vocab_size: int) -> Literal["uint16", "int32"]:
    """The smaller type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "int32"


class ShardWriter:
    """Writes the rows of one split, a new file each time the last one is large enough."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        sequence_length: int,
        dtype: Literal["uint16", "int32"],
        *,
        batch_rows: int | None = None,
    ) -> None:
        import pyarrow

        self.folder = folder
        self.split = split
        self.sequence_length = sequence_length
        self.shards: list[ShardEntry] = []
        self.rows = 0
        self._dtype = np.dtype(dtype)
        self._batch_rows = batch_rows or max(1, BATCH_BYTES // (sequence_length * self._dtype.itemsize))
        self._tokens = np.empty((self._batch_rows, sequence_length), self._dtype)
        self._lengths = np.empty(self._batch_rows, np.int32)
        self._filled = 0
        values = pyarrow.from_numpy_dtype(self._dtype)
        self._schema = pyarrow.schema(
            [
                pyarrow.field("tokens", pyarrow.list_(pyarrow.field("item", values, nullable=False), sequence_length)),
                pyarrow.field("length", pyarrow.int32()),
            ]
        )
        self._file: Any = None
        self._writer: Any = None
        self._batches = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()

    def append(self, rows: NDArray[np.int32], lengths: NDArray[np.int32]) -> None:
        """Add rows (n, sequence_length) and their lengths (n,)."""
        start = 0
        while start < len(rows):
            take = min(len(rows) - start, self._batch_rows - self._filled)
            self._tokens[self._filled : self._filled + take] = rows[start : start + take]
            self._lengths[self._filled : self._filled + take] = lengths[start : start + take]
            self._filled += take
            start += take
            if self._filled == self._batch_rows:
                self._write_batch()
        self.rows += len(rows)

    def close(self) -> None:
        """Write what is left and finish the last file."""
        if self._filled:
            self._write_batch()
        self._finish_file()

    def _write_batch(self) -> None:
        import pyarrow

        if self._writer is None:
            path = self.folder / f"{self.split}-{len(self.shards):05d}.arrow"
            self._file = path.open("wb")
            self._writer = pyarrow.ipc.new_file(self._file, self._schema)
        count = self._filled
        tokens = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(self._tokens[:count].reshape(-1)), type=self._schema.field("tokens").type
        )
        lengths = pyarrow.array(self._lengths[:count])
        self._writer.write_batch(pyarrow.record_batch([tokens, lengths], schema=self._schema))
        self._filled = 0
        self._batches += 1
        if self._batches == SHARD_BATCHES:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = Path(self._file.name)
        rows = self.rows_in(path)
        self.shards.append(
            ShardEntry(file=path.name, rows=rows, bytes=path.stat().st_size, sha256=sha256_of_file(path))
        )
        self._file = self._writer = None
        self._batches = 0

    @staticmethod
    def rows_in(path: Path) -> int:
        """Rows of a finished file."""
        return sum(len(lengths) for _, lengths in _map_file(path))


class Sequences:
    """One split's sequences, for random access.

    Attributes:
        name: name of the split.
        sequence_length: columns of a row.
        pad_id: what rows are filled with behind their end.
        lengths: (sequences,) int32, special tokens included.
    """

    def __init__(self, folder: Path, name: Split, entry: SplitEntry, sequence_length: int, pad_id: int) -> None:
        self._folder = folder
        self.name = name
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self._tokens: list[NDArray[Any]] = []
        lengths: list[NDArray[np.int32]] = []
        for shard in entry.shards:
            path = folder / shard.file
            _check_size(path, shard)
            try:
                batches = _map_file(path)
            except (OSError, ValueError) as error:
                raise DataError(f"cannot be read ({error})", where=str(path), hint=_PREPARE_AGAIN) from error
            if sum(len(batch) for _, batch in batches) != shard.rows:
                raise DataError("has other rows than the manifest says", where=str(path), hint=_PREPARE_AGAIN)
            self._tokens.extend(tokens for tokens, _ in batches)
            lengths.extend(batch for _, batch in batches)
        self.lengths: NDArray[np.int32] = np.concatenate(lengths) if lengths else np.empty(0, np.int32)
        self.lengths.flags.writeable = False
        self._starts = np.cumsum([0, *(len(batch) for batch in self._tokens)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        # A data loader's worker maps the files itself instead of getting them through a pipe.
        return _open_split, (self._folder, self.name)

    def rows(self, indices: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Sequences by their numbers, in the order asked for.

        Args:
            indices: (n,) numbers from 0 to len - 1.

        Returns:
            Token ids (n, sequence_length), padded with `pad_id`, and lengths (n,); both are the caller's to change.

        Raises:
            IndexError: a number is out of range.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"the split {self.name} has {len(self)} sequences")
        rows = np.empty((len(indices), self.sequence_length), np.int32)
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        bounds = np.searchsorted(ordered, self._starts)
        for batch in np.flatnonzero(np.diff(bounds)):
            here = slice(bounds[batch], bounds[batch + 1])
            rows[order[here]] = self._tokens[batch][ordered[here] - self._starts[batch]]
        return rows, self.lengths[indices]


class PreparedData:
    """A folder of prepared data, opened for reading.

    Attributes:
        folder: where it is.
        manifest: what it says about itself.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.sequence_length = manifest.sequence_length
        self.vocab_size = manifest.vocab_size
        self.pad_id = manifest.special_tokens.pad
        self.cls_id = manifest.special_tokens.cls
        self.sep_id = manifest.special_tokens.sep
        self.mask_id = manifest.special_tokens.mask
        self.unk_id = manifest.special_tokens.unk
        self.special_ids = tuple(manifest.special_tokens.all)
        self.fingerprint = manifest.fingerprint
        self.tokenizer_fingerprint = manifest.tokenizer_fingerprint
        self.tokenizer_folder = folder / TOKENIZER_FOLDER

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open a folder. Sizes are checked against the manifest, contents only by `verify`.

        Raises:
            DataError: there is none, it is incomplete, or a newer kdcore wrote it.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for entry in manifest.splits.values():
            for shard in entry.shards:
                _check_size(folder / shard.file, shard)
        if not (folder / TOKENIZER_FOLDER / "tokenizer.json").is_file():
            raise DataError("the tokenizer's files are missing", where=str(folder), hint=_PREPARE_AGAIN)
        return cls(folder, manifest)

    def split(self, name: Split) -> Sequences:
        """The sequences of `train` or `held_out`; held_out is empty when the recipe held out nothing.

        Raises:
            DataError: there is no such split, or its files are damaged.
        """
        if name not in self.manifest.splits:
            raise DataError(f"has no split `{name}`", where=str(self.folder), allowed=SPLITS)
        return Sequences(self.folder, name, self.manifest.splits[name], self.sequence_length, self.pad_id)

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            DataError: a file is not what was written.
        """
        from kdcore.data.tokenizers import load_tokenizer, tokenizer_fingerprint

        for entry in self.manifest.splits.values():
            for shard in entry.shards:
                path = self.folder / shard.file
                _check_size(path, shard)
                if sha256_of_file(path) != shard.sha256:
                    raise DataError("is damaged: its checksum differs", where=str(path), hint=_PREPARE_AGAIN)
        if tokenizer_fingerprint(load_tokenizer(str(self.tokenizer_folder))) != self.tokenizer_fingerprint:
            raise DataError(
                "is another tokenizer than the data's", where=str(self.tokenizer_folder), hint=_PREPARE_AGAIN
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; the last file of a folder in the making."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _open_split(folder: Path, name: Split) -> Sequences:
    return PreparedData.open(folder).split(name)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise DataError("there is no such folder", where=str(folder), hint="kdcore prepare makes one") from error
        raise DataError(
            f"is no folder of prepared data: it has no {MANIFEST}", where=str(folder), hint="kdcore prepare makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), hint=_PREPARE_AGAIN) from error
    version = content.get("format_version") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DataError(
            f"was written by a newer kdcore ({content.get('kdcore_version')}): format version {version}",
            where=str(folder),
            allowed=f"format version {FORMAT_VERSION}",
            hint="upgrade kdcore, or prepare the data again with this one",
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"is damaged: {first['msg']}", where=str(path), key=key, hint=_PREPARE_AGAIN) from error


def _check_size(path: Path, shard: ShardEntry) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise DataError("is missing", where=str(path), hint=_PREPARE_AGAIN)
    if size != shard.bytes:
        raise DataError(f"has {size} bytes instead of {shard.bytes}", where=str(path), hint=_PREPARE_AGAIN)


def _map_file(path: Path) -> list[tuple[NDArray[Any], NDArray[np.int32]]]:
    """Token ids (rows, sequence_length) and lengths (rows,) of each record batch, as views of the mapped file."""
    import pyarrow

    reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path), "r"))
    batches = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        tokens = batch.column(0)
        values = tokens.flatten().to_numpy(zero_copy_only=True)
        batches.append((values.reshape(len(tokens), -1), batch.column(1).to_numpy(zero_copy_only=True)))
    return batches
