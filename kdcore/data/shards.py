"""Prepared data on disk: rows of token ids in Arrow files, read back through memory maps.

    FOLDER/
      manifest.json         description of the data, numbers of rows, checksums
      tokenizer/            the student's tokenizer, loadable with AutoTokenizer
      teacher_tokenizer/    the teacher's tokenizer, if it differs
      train-00000.arrow ...
      held_out-00000.arrow ...

A row is one sequence, padded to `sequence_length`; its length is stored with it. Masks drawn by another program are
stored as well. If the teacher has a different tokenizer, each row also contains the teacher's tokens of the same text,
and a unit number for every token of both models.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcore.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    PREPARE_AGAIN,
    Manifest,
    PreparedSplit,
    ShardEntry,
    SplitEntry,
    TeacherRows,
    read_manifest,
)
from kdcore.data.mapped_rows import MappedRows
from kdcore.errors import DataError, Problem, first_line
from kdcore.utils.hashing import sha256_of_file

TOKENIZER_FOLDER = "tokenizer"
TEACHER_TOKENIZER_FOLDER = "teacher_tokenizer"
NO_UNIT = 2**16 - 1
"""Stored in place of a unit's number for padding, and for tokens whose text the other model's tokens do not cover."""

SPLITS: tuple[PreparedSplit, ...] = ("train", "held_out")

Ids = NDArray[np.int32]


class Masks(NamedTuple):
    """Masks that are stored with rows.

    Attributes:
        positions: (rows, predictions) positions to be predicted; 0 is padding.
        inputs: (rows, predictions) the input ids at these positions.
    """

    positions: Ids
    inputs: Ids


class TeacherView(NamedTuple):
    """The teacher's tokens of some rows, and the units that align them with the student's.

    Units are numbered from 0 in each row; both models have the same units.

    Attributes:
        tokens: (rows, teacher's sequence_length) ids.
        lengths: (rows,) number of tokens, including special tokens.
        units: (rows, teacher's sequence_length) unit of each of the teacher's tokens, or `NO_UNIT`.
        student_units: (rows, sequence_length) unit of each of the student's tokens, or `NO_UNIT`.
    """

    tokens: NDArray[Any]
    lengths: NDArray[Any]
    units: NDArray[Any]
    student_units: NDArray[Any]


_TEACHER_COLUMNS = ("teacher_tokens", "teacher_length", "teacher_units", "units")
"""Columns of a file, in the order of `TeacherView`."""


class _MappedBatch(NamedTuple):
    """Views of one record batch of a mapped file."""

    tokens: NDArray[Any]
    lengths: NDArray[np.int32]
    positions: NDArray[np.uint16] | None
    inputs: NDArray[Any] | None
    teacher: tuple[NDArray[Any], ...] = ()


class Sequences:
    """One split's sequences, for random access.

    Attributes:
        name: name of the split.
        sequence_length: number of columns in a row.
        pad_id: id used for padding.
        lengths: (sequences,) int32, special tokens included.
        has_masks: whether every sequence has masks that were drawn by another program.
        teacher_lengths: (sequences,) int32, number of teacher tokens in each sequence; None if both models have the
            same tokens.
        vocab_size: upper bound (exclusive) of all ids.
        dtype: type of the stored ids; None if there are no rows.

    Raises:
        DataError: a file is damaged; the message names it. Ids are compared with `vocab_size` whenever rows are read.
    """

    def __init__(
        self,
        folder: Path,
        name: PreparedSplit,
        entry: SplitEntry,
        sequence_length: int,
        pad_id: int,
        vocab_size: int = 2**31,
        *,
        teacher: TeacherRows | None = None,
    ) -> None:
        self._folder = folder
        self.vocab_size = vocab_size
        self.name = name
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self._batches: list[_MappedBatch] = []
        self._files = [folder / shard.file for shard in entry.shards]
        self._first_rows = np.cumsum([0, *(shard.rows for shard in entry.shards)])
        for shard in entry.shards:
            batches = _checked_batches(folder, shard, sequence_length, teacher)
            if self._batches and batches and batches[0].tokens.dtype != self._batches[0].tokens.dtype:
                raise _damaged(folder / shard.file, f"contains ids of another type ({batches[0].tokens.dtype})")
            self._batches += batches
        self.lengths = _joined([batch.lengths for batch in self._batches])
        self._teacher = teacher
        self.teacher_lengths: NDArray[np.int32] | None = None
        if teacher is not None:
            self.teacher_lengths = _joined([batch.teacher[1] for batch in self._batches])
            self._teacher_rows = [
                MappedRows([batch.teacher[column] for batch in self._batches]) for column in (0, 2, 3)
            ]
        self.has_masks = bool(entry.shards) and all(shard.predictions for shard in entry.shards)
        self._predictions = max((shard.predictions for shard in entry.shards), default=0)
        self._starts = np.cumsum([0, *(len(batch.lengths) for batch in self._batches)])
        self.dtype = self._batches[0].tokens.dtype.name if self._batches else None
        self._rows = MappedRows([batch.tokens for batch in self._batches])

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        # A data loader's worker maps the files itself instead of receiving them through a pipe.
        return _open_split, (self._folder, self.name)

    def rows(self, indices: NDArray[np.integer[Any]]) -> tuple[Ids, Ids]:
        """Return sequences by their numbers, in the given order.

        Args:
            indices: (n,) numbers from 0 to len - 1.

        Returns:
            Token ids (n, sequence_length), padded with `pad_id`, and lengths (n,); the caller may modify both.

        Raises:
            IndexError: a number is out of range.
            DataError: an id is not in the vocabulary; the message names its file.
        """
        numbers = self._numbers(indices)
        if not numbers.size:
            return np.empty((0, self.sequence_length), np.int32), self.lengths[numbers]
        rows = self._rows.take(numbers)
        self._check_ids(rows, numbers)
        return rows.astype(np.int32, copy=False), self.lengths[numbers]

    def teacher_view(self, indices: NDArray[np.integer[Any]]) -> TeacherView:
        """Return the teacher's tokens of one or more sequences, and the units of both models.

        Raises:
            IndexError: a number is out of range.
            DataError: an id or a unit is out of range; the message names its file.
        """
        assert self._teacher is not None, "the data holds the tokens of one tokenizer only"
        assert self.teacher_lengths is not None
        numbers = self._numbers(indices)
        tokens, units, student_units = (rows.take(numbers) for rows in self._teacher_rows)
        self._check_ids(tokens, numbers, self._teacher.vocab_size)
        last, student_last = (np.where(side == NO_UNIT, 0, side).max(axis=1) for side in (units, student_units))
        if (last != student_last).any():
            row, file = self._place(int(numbers[(last != student_last).argmax()]))
            raise _damaged(file, f"row {row} has other units for the teacher than for the student")
        return TeacherView(tokens.astype(np.int32, copy=False), self.teacher_lengths[numbers], units, student_units)

    def masks(self, indices: NDArray[np.integer[Any]]) -> Masks:
        """Return the masks that are stored with these sequences, padded with zeros.

        Raises:
            IndexError: a number is out of range.
            DataError: a position or an id is out of range; the message names its file.
        """
        numbers = self._numbers(indices)
        masks = Masks(*(np.zeros((len(numbers), self._predictions), np.int32) for _ in Masks._fields))
        holders = np.searchsorted(self._starts, numbers, side="right") - 1
        for holder in np.unique(holders):
            batch = self._batches[holder]
            if batch.positions is not None and batch.inputs is not None:
                here = holders == holder
                inside = numbers[here] - self._starts[holder]
                width = batch.positions.shape[1]
                masks.positions[here, :width] = batch.positions[inside]
                masks.inputs[here, :width] = batch.inputs[inside]
        self._check_ids(masks.inputs, numbers)
        outside = np.flatnonzero((masks.positions >= self.lengths[numbers][:, None]).any(axis=1))
        if outside.size:
            row, file = self._place(int(numbers[outside[0]]))
            raise _damaged(file, f"row {row} has a mask outside of its sequence")
        return masks

    def verify(self) -> None:
        """Compare every stored id with the vocabulary.

        Raises:
            DataError: an id is out of range; the message names its file.
        """
        for batch, start in zip(self._batches, self._starts, strict=False):
            numbers = np.arange(start, start + len(batch.lengths))
            self._check_ids(batch.tokens, numbers)
            if batch.positions is not None:
                self.masks(numbers)
            if batch.teacher and len(numbers):
                self.teacher_view(numbers)

    def _check_ids(self, rows: NDArray[Any], numbers: NDArray[np.int64], vocab_size: int | None = None) -> None:
        """Raise an error for ids (n, width) outside the vocabulary, before a device uses them as indices."""
        size = vocab_size or self.vocab_size
        unsigned = rows.view(np.dtype(f"u{rows.dtype.itemsize}"))  # a negative id is a very large one
        if not rows.size or int(unsigned.max()) < size:
            return
        index = int((unsigned >= size).any(axis=1).argmax())
        row, file = self._place(int(numbers[index]))
        found = rows[index][unsigned[index] >= size][0]
        raise _damaged(file, f"row {row} contains an id outside of the vocabulary (found {found} of {size})")

    def _place(self, number: int) -> tuple[int, Path]:
        """Return a sequence's row in its file, and the file."""
        holder = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        return number - int(self._first_rows[holder]), self._files[holder]

    def _numbers(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = np.ascontiguousarray(indices, dtype=np.int64)
        # As an unsigned integer, a negative number is very large.
        if numbers.size and int(numbers.view(np.uint64).max()) >= len(self.lengths):
            raise IndexError(f"the split {self.name} has {len(self)} sequences")
        return numbers


class PreparedData:
    """A folder of prepared data, opened for reading.

    Attributes:
        folder: path of the folder.
        manifest: its manifest.
        SPLITS: names of its splits.
        MANIFEST: name of the manifest's file, which is written last.
        TOKENIZER: name of the folder with the tokenizer.
        TEACHER_TOKENIZER: name of the folder with the teacher's tokenizer, if it differs from the student's.
        teacher: description of the teacher's tokens; None if both models have the same tokens.
        FORMAT_VERSION: version of the folder's layout that this kdcore writes.
    """

    SPLITS: ClassVar[tuple[PreparedSplit, ...]] = SPLITS
    MANIFEST: ClassVar[str] = MANIFEST
    TOKENIZER: ClassVar[str] = TOKENIZER_FOLDER
    TEACHER_TOKENIZER: ClassVar[str] = TEACHER_TOKENIZER_FOLDER
    FORMAT_VERSION: ClassVar[int] = FORMAT_VERSION

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
        self.teacher = manifest.teacher
        self.teacher_tokenizer_folder = folder / TEACHER_TOKENIZER_FOLDER

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open a folder. Tokenizers and sizes are compared with the manifest; only `verify` checks shard contents.

        Raises:
            DataError: the folder is missing or incomplete, or was written by an unsupported version of kdcore.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name, entry in manifest.splits.items():
            for shard in entry.shards:
                _check_size(folder / shard.file, shard)
            rows = sum(shard.rows for shard in entry.shards)
            if rows != entry.sequences:
                what = f"the files of {name} have the wrong number of rows (found {rows}, expected {entry.sequences})"
                raise DataError(what, where=str(folder / MANIFEST), key=f"splits.{name}", hint=PREPARE_AGAIN)
        for tokenizer, whose in _tokenizers(manifest):
            if not (folder / tokenizer / "tokenizer.json").is_file():
                raise DataError(f"the {whose}tokenizer's files are missing", where=str(folder), hint=PREPARE_AGAIN)
        stored = manifest.tokenizer_files
        found = tokenizer_files(folder) if stored else {}
        for file in sorted({*stored, *found}):
            if stored.get(file) != found.get(file):
                what = "is missing" if file not in found else "is damaged: its checksum differs"
                raise _damaged(folder / file, what if file in stored else "does not belong to the prepared data")
        return cls(folder, manifest)

    def split(self, name: PreparedSplit) -> Sequences:
        """Open the sequences of `train` or `held_out`; `held_out` is empty if the recipe holds out no data.

        Raises:
            DataError: the split does not exist, or its files are damaged.
        """
        if name not in self.manifest.splits:
            raise DataError(f"has no split `{name}`", where=str(self.folder), allowed=SPLITS)
        entry, manifest = self.manifest.splits[name], self.manifest
        sequences = Sequences(
            self.folder, name, entry, self.sequence_length, self.pad_id, self.vocab_size, teacher=self.teacher
        )
        if sequences.dtype not in (None, manifest.dtype):
            what = f"differs from the rows of {name} (found {manifest.dtype}, expected {sequences.dtype})"
            raise DataError(what, where=str(self.folder / MANIFEST), key="dtype", hint=PREPARE_AGAIN)
        return sequences

    def verify(self) -> None:
        """Compare all files with their checksums, and the manifest with the tokenizer and the rows.

        Raises:
            DataError: a file is damaged; the message names all damaged files.
        """
        problems: list[Problem] = []
        for name, entry in self.manifest.splits.items():
            before = len(problems)
            for shard in entry.shards:
                path = self.folder / shard.file
                try:
                    _check_size(path, shard)
                except DataError as error:
                    problems += error.problems
                else:
                    if sha256_of_file(path) != shard.sha256:
                        problems.append(Problem("is damaged: its checksum differs", str(path), hint=PREPARE_AGAIN))
            if len(problems) == before:
                try:
                    self.split(name).verify()
                except DataError as error:
                    problems += error.problems
        problems += self.tokenizer_problems()
        if problems:
            raise DataError(problems)

    def tokenizer_problems(self) -> list[Problem]:
        """Compare the manifest with the tokenizers: fingerprint, special ids and size of the vocabulary."""
        from kdcore.data.tokenizers import load_tokenizer, special_ids, tokenizer_fingerprint, vocabulary_size

        problems = []
        for name, whose in _tokenizers(self.manifest):
            described, key = (self.teacher, "teacher.") if self.teacher and whose else (self.manifest, "")
            try:
                tokenizer = load_tokenizer(str(self.folder / name))
                if tokenizer_fingerprint(tokenizer) != described.tokenizer_fingerprint:
                    what = f"is not the {whose}tokenizer of the data (its fingerprint differs)"
                    problems.append(Problem(what, str(self.folder / name), hint=PREPARE_AGAIN))
                    continue
                known = asdict(special_ids(tokenizer))
            except DataError as error:
                problems += error.problems
                continue
            stated = described.special_tokens.model_dump()
            expected = {
                f"{key}vocab_size": (described.vocab_size, vocabulary_size(tokenizer)),
                **{f"{key}special_tokens.{role}": (stated[role], known[role]) for role in stated},
            }
            problems += [
                Problem(
                    f"differs from the tokenizer (found {found}, expected {value})", str(self.folder / MANIFEST), at
                )
                for at, (found, value) in expected.items()
                if found != (list(value) if isinstance(value, tuple) else value)
            ]
        return problems


def _tokenizers(manifest: Manifest) -> list[tuple[str, str]]:
    """List the folders of the data's tokenizers, each with its owner for messages."""
    own = (TOKENIZER_FOLDER, "")
    return [own] if manifest.teacher is None else [own, (TEACHER_TOKENIZER_FOLDER, "teacher's ")]


def _joined(lengths: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    joined = np.concatenate(lengths) if lengths else np.empty(0, np.int32)
    joined.flags.writeable = False
    return joined


def tokenizer_files(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of each tokenizer file in a prepared folder, by its path in the folder."""
    paths = [path for name in (TOKENIZER_FOLDER, TEACHER_TOKENIZER_FOLDER) for path in (folder / name).glob("*")]
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in sorted(paths) if path.is_file()}


def _open_split(folder: Path, name: PreparedSplit) -> Sequences:
    return PreparedData.open(folder).split(name)


def _check_size(path: Path, shard: ShardEntry) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise DataError("is missing", where=str(path), hint=PREPARE_AGAIN)
    if size != shard.bytes:
        raise DataError(
            f"has the wrong size (found {size} bytes, expected {shard.bytes})", where=str(path), hint=PREPARE_AGAIN
        )


def _checked_batches(
    folder: Path, shard: ShardEntry, sequence_length: int, teacher: TeacherRows | None
) -> list[_MappedBatch]:
    path = folder / shard.file
    _check_size(path, shard)
    try:
        batches = _map_file(path, with_teacher=teacher is not None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, MemoryError) as error:
        raise _damaged(path, f"cannot be read ({first_line(error)})") from error
    rows = sum(len(batch.lengths) for batch in batches)
    if rows != shard.rows:
        raise _damaged(path, f"has {rows} rows (expected {shard.rows})")
    for batch in batches:
        kinds = batch.tokens.dtype.name, batch.lengths.dtype.name
        if kinds not in (("uint16", "int32"), ("int32", "int32")) or batch.tokens.dtype != batches[0].tokens.dtype:
            raise _damaged(path, f"contains ids or lengths of another type ({', '.join(kinds)})")
        if batch.tokens.shape[1] != sequence_length:
            raise _damaged(path, f"has rows of {batch.tokens.shape[1]} tokens (expected {sequence_length})")
        if len(batch.lengths) and not 0 < batch.lengths.min() <= batch.lengths.max() <= sequence_length:
            low, high = batch.lengths.min(), batch.lengths.max()
            raise _damaged(path, f"has sequences of {low} to {high} tokens (expected 1 to {sequence_length})")
        if (0 if batch.positions is None else batch.positions.shape[1]) != shard.predictions:
            raise _damaged(path, f"does not contain {shard.predictions} masked positions for each row")
        if teacher is not None:
            _check_teacher_columns(path, batch, sequence_length, teacher.sequence_length)
    return batches


def _check_teacher_columns(path: Path, batch: _MappedBatch, sequence_length: int, width: int) -> None:
    tokens, lengths, units, student_units = batch.teacher
    found = [tokens.dtype.name in ("uint16", "int32") and tokens.shape[1] == width, lengths.dtype == np.int32]
    found += [
        side.dtype == np.uint16 and side.shape[1] == columns
        for side, columns in ((units, width), (student_units, sequence_length))
    ]
    if not all(found) or (len(lengths) and not 0 < lengths.min() <= lengths.max() <= width):
        raise _damaged(path, f"does not contain the teacher's tokens and units as rows of {width} tokens")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(what, where=str(path), hint=PREPARE_AGAIN)


def _map_file(path: Path, *, with_teacher: bool) -> list[_MappedBatch]:
    import pyarrow

    reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path), "r"))
    batches = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate()
        columns = dict(zip(reader.schema.names, batch.columns, strict=True))
        positions, inputs = (
            _values(columns[name]) if name in columns else None for name in ("masked_positions", "masked_inputs")
        )
        lengths = columns["length"].to_numpy(zero_copy_only=True)
        teacher = tuple(_values(columns[name]) for name in _TEACHER_COLUMNS) if with_teacher else ()
        batches.append(_MappedBatch(_values(columns["tokens"]), lengths, positions, inputs, teacher))
    return batches


def _values(column: Any) -> NDArray[Any]:
    """View a column of the mapped file: fixed-size lists as (rows, width), numbers as (rows,)."""
    if not hasattr(column, "flatten"):
        numbers: NDArray[Any] = column.to_numpy(zero_copy_only=True)
        return numbers
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
    return values
