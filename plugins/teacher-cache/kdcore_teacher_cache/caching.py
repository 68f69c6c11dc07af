"""Run a teacher once over the data of a recipe, and store the signals that its losses read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from kdcore import (
    Batch,
    DataError,
    Encoder,
    InfrastructureError,
    InputError,
    Model,
    Problem,
    RecipeError,
    RecipeTeacher,
    Signals,
    Task,
    atomic_directory,
    locked,
    own_device,
    plugin_faults,
    read_json_object,
    report_progress,
    sha256_of_file,
    write_json,
)
from kdcore_teacher_cache.cache_manifest import (
    CACHE_AGAIN,
    CONTENTS,
    DESCRIPTION,
    MANIFEST,
    CacheContents,
    CachedModel,
    CachedRows,
    CachedSplit,
    StoredFile,
    differences,
    read_cache_manifest,
    teacher_section,
    write_cache_manifest,
)
from kdcore_teacher_cache.cache_shards import CHECKSUM, LevelledRows, input_checksums, write_shard
from kdcore_teacher_cache.factored_weights import FACTORED, write_factored_weights
from kdcore_teacher_cache.signal_columns import (
    AttentionEntry,
    PredictionForm,
    RowLevel,
    SignalColumn,
    StoredType,
    attention_of,
    counts_of,
    level_of,
    names_of,
    require_finite,
    rows_of,
)
from kdcore_teacher_cache.stored_predictions import SampleNumbers, calibration_error
from kdcore_teacher_cache.stored_values import arrays_of, as_tensor, decode, encode

SHARD_BYTES = 2**28
SHARD_SAMPLES = 4096
"""Maximum number of sequences in a file, so that an interruption loses little computation."""

_CALIBRATED = 1024
_SPLITS: tuple[CachedSplit, ...] = ("train", "held_out")
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class CacheEstimate:
    """Predicted size and time of a cache.

    Attributes:
        bytes: total size of the files.
        seconds: time for one process on this device.
        rows: text lines that describe each split.
    """

    bytes: int
    seconds: float
    rows: list[str]


class SignalRecorder:
    """A live teacher of a recipe, and the task whose samples it reads.

    Attributes:
        contents: content of the cache for the recipe's signals.
        estimate: predicted size and time.
    """

    def __init__(
        self,
        task: Task,
        teacher: RecipeTeacher,
        *,
        batch_size: int,
        precision: str = "fp32",
        values: StoredType = "fp32",
        form: PredictionForm = "full",
        kept: int = 0,
    ) -> None:
        """Load the teacher, and run it on a few samples.

        Args:
            task: the recipe's task.
            teacher: the teacher.
            batch_size: batch size of the teacher.
            precision: precision of the computation, unless the teacher's section sets one.
            values: how values are stored.
            form: how predictions over the vocabulary are stored.
            kept: number of tokens stored for each prediction, unless all are stored.

        Raises:
            InputError: the task draws new inputs in every epoch, or a signal cannot be stored.
        """
        self._task = task
        self._key = teacher.key
        asked = {split: teacher.requests[split] for split in _SPLITS if task.num_samples(split)}
        self._requests = {split: request for split, request in asked.items() if request}
        copies = task.distinct_epochs
        if copies is None:
            raise RecipeError(
                "the samples differ in every epoch, so stored signals would never be read again",
                key="task",
                hint="for masked_lm set `task.masking.duplicates: K`, the number of masks per sequence; it pays off if "
                "epochs x runs exceed K. Other tasks must set `distinct_epochs`; corpus weights must be integers",
            )
        self._batch_size = batch_size
        self.model: Model = teacher.model.described
        self._device = own_device()
        with TemporaryDirectory() as folder:
            self.model.save_description(Path(folder))  # refused before anything is computed
        encoder = self.model.load_teacher(teacher.requests["train"] | teacher.requests["held_out"])
        self._encoder: Encoder = encoder.eval().requires_grad_(False).to(self._device)
        if not encoder.keeps_precision:
            encoder.to(_PRECISIONS[precision])
        self._values: StoredType = values
        self._form: PredictionForm = form
        self._kept = kept
        self.contents = self._describe(teacher.name, copies)

    def _describe(self, model: str, copies: int) -> CacheContents:
        splits: dict[CachedSplit, CachedRows] = {}
        attention: dict[str, AttentionEntry] = {}
        lines, seconds, size = [], 0.0, 0
        for split in self._requests:
            samples = self._task.num_samples(split)
            own = copies if split == "train" else 1  # validation reads the first epoch
            batch, signals, duration = self._timed(split, samples)
            names = names_of(self._requests[split])
            attention |= attention_of(signals, names)
            columns = [self._column(one, rows_of(signals, one).shape[1:], split) for one in names]
            counts = {level: float(counts_of(batch, level).mean()) for level in ("token", "masked", "sequence")}
            each = sum(counts[column.level] * self._row_bytes(column) for column in columns)
            fitting = min(SHARD_BYTES / max(each, 1), SHARD_SAMPLES)
            batches = max(1, int(fitting / self._batch_size))
            splits[split] = CachedRows(
                samples=samples, copies=own, samples_per_shard=batches * self._batch_size, columns=columns
            )
            total = samples * own
            seconds += duration * total / batch.num_sequences
            size += int(each * total)
            lines.append(
                f"{split}: {samples:,} samples x {own} {'copy' if own == 1 else 'copies'}, about "
                f"{counts['token'] * total:,.0f} tokens, {in_bytes(each * total)}: {', '.join(names)}"
            )
        parameter = next(iter(self._encoder.parameters()), torch.empty(0))
        self.estimate = CacheEstimate(size, seconds, lines)
        return CacheContents(
            teacher=CachedModel(
                section=teacher_section(model, self.model),
                files=self.model.file_hashes(),
                precision=str(parameter.dtype).removeprefix("torch."),
                tf32=torch.get_float32_matmul_precision() != "highest",
            ),
            task=dict(self._task.batch_identity),
            values=self._values,
            batch_size=self._batch_size,
            splits=splits,
            attention=attention,
        )

    def _column(self, name: str, shape: Sequence[int], split: CachedSplit) -> SignalColumn:
        column = SignalColumn(name=name, level=level_of(name, self.model.info), shape=tuple(shape))
        # Held-out predictions are stored in full, so that their losses equal those of the live teacher.
        if self._form == "full" or split == "held_out" or not name.startswith("logits."):
            return column
        if not 0 < self._kept < shape[0]:
            what = f"must be at least 1 and less than the size of the vocabulary, {shape[0]} (found {self._kept})"
            raise InputError(what, where="--kept")
        return column.model_copy(update={"form": self._form, "kept": self._kept})

    def _row_bytes(self, column: SignalColumn) -> int:
        return sum(array.row_bytes for array in arrays_of(column, self._values))

    def calibration_errors(self, kept: int) -> dict[PredictionForm, float]:
        """Return the calibration error of `top_k` and `random_sampling` on a few samples; empty without predictions.

        Args:
            kept: number of tokens stored for each prediction.
        """
        split = next(iter(self._requests))
        names = [name for name in names_of(self._requests[split]) if name.startswith("logits.")]
        if not names:
            return {}
        samples = np.arange(min(self._batch_size, self._task.num_samples(split)), dtype=np.int64)
        _, signals = self._run(split, samples, 0)
        logits = rows_of(signals, names[0])[:_CALIBRATED]
        found: dict[PredictionForm, float] = {}
        forms: tuple[PredictionForm, ...] = ("top_k", "random_sampling")
        for form in forms if 0 < kept < logits.shape[1] else ():
            column = SignalColumn(name=names[0], level="token", shape=(logits.shape[1],), form=form, kept=kept)
            stored = encode(column, logits, self._values, np.random.default_rng(0).random((len(logits), kept)))
            arrays = {key: as_tensor(array) for key, array in stored.items()}
            found[form] = calibration_error(logits.cpu(), decode(column, arrays, self._values))
        return found

    def _timed(self, split: CachedSplit, samples: int) -> tuple[Batch, Signals, float]:
        """Run the teacher on evenly spread samples; the second pass is timed."""
        size = min(self._batch_size, samples)
        numbers = np.unique(np.linspace(0, samples - 1, size).astype(np.int64))
        self._run(split, numbers, 0)
        started = time.monotonic()
        batch, signals = self._run(split, numbers, 0)
        if self._device.type != "cpu":
            torch.cuda.synchronize()
        return batch, signals, time.monotonic() - started

    @torch.no_grad()
    def _run(self, split: CachedSplit, samples: np.ndarray, epoch: int) -> tuple[Batch, Signals]:
        with plugin_faults(self._task, "task"):
            batch = self._task.draw(split, samples, np.full_like(samples, epoch)).teacher_view
        with plugin_faults(self._encoder, self._key):
            return batch, self._encoder(batch.to(self._device), self._requests[split])

    def write(self, folder: Path, split: CachedSplit, number: int, name: str) -> None:
        """Compute and write one file of rows.

        Raises:
            InputError: a signal is not finite, or cannot be stored.
            OSError: the file cannot be written.
        """
        rows = self.contents.splits[split]
        copy, start, stop = rows.shard(number)
        counts: dict[RowLevel, list[np.ndarray]] = {}
        parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        checksums: list[np.ndarray] = []
        for first in range(start, stop, self._batch_size):
            report_progress(f"computing signals of the teacher ({name})")
            samples = np.arange(first, min(stop, first + self._batch_size), dtype=np.int64)
            batch, signals = self._run(split, samples, copy)
            checksums.append(input_checksums(batch))
            for level in sorted({column.level for column in rows.columns}):  # the order of columns in the file
                counts.setdefault(level, []).append(counts_of(batch, level))
            numbers = SampleNumbers(_SPLITS.index(split), copy, samples)
            for column in rows.columns:
                values, own = rows_of(signals, column.name), counts[column.level][-1]
                require_finite(values, column.name, own, samples, split)
                random = numbers.draw(own, column.kept) if column.form == "random_sampling" else None
                for array, stored in encode(column, values, self._values, random).items():
                    parts.setdefault(array, []).append(stored)
        levels = {array.key: one.level for one in rows.columns for array in arrays_of(one, self._values)}
        write_shard(
            folder / name,
            {level: np.concatenate(one) for level, one in counts.items()},
            {key: LevelledRows(levels[key], np.concatenate(one)) for key, one in parts.items()},
            {CHECKSUM: np.concatenate(checksums)},
        )

    def write_factored(self, folder: Path) -> None:
        """Write the weights of factored predictions, if any are requested."""
        for split, request in self._requests.items():
            for positions in request.factored_positions:
                _, signals = self._run(split, np.zeros(1, np.int64), 0)
                write_factored_weights(folder, signals.factored(positions))
                return


def cache_signals(
    recorder: SignalRecorder, folder: Path, *, task: tuple[int, int] = (1, 1), progress: Callable[[int, int], None]
) -> bool:
    """Write the missing files of a cache, and the manifest once no file is missing.

    Args:
        recorder: the teacher and its data.
        folder: folder of the cache; may contain a part of it.
        task: (I, N), to write every N-th file, beginning with the I-th.
        progress: called with the number of finished files and the number of all files of this task.

    Returns:
        Whether the cache is complete.

    Raises:
        DataError: the folder contains a different cache, or another process is running this task.
        InfrastructureError: the disk cannot hold the cache.
    """
    contents = recorder.contents
    check_folder(folder)
    if (folder / MANIFEST).is_file():
        _refuse_other(read_cache_manifest(folder).contents, contents, folder)
        _remove_leftovers(folder)
        return True
    _check_space(recorder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".contents.lock"):
        if (folder / MANIFEST).is_file():  # completed by another process in the meantime
            _refuse_other(read_cache_manifest(folder).contents, contents, folder)
            return True
        if not (folder / CONTENTS).is_file():
            write_json(folder / CONTENTS, contents.model_dump(mode="json"))
        _refuse_other(read_json_object(folder / CONTENTS, CacheContents, hint=CACHE_AGAIN), contents, folder)
    files = contents.shard_files()
    own = files[task[0] - 1 :: task[1]]
    place = f"{task[0]}-of-{task[1]}"
    with locked(folder / f".task-{place}.lock", wait=False, taken="another process writes this cache"):
        for done, (split, number, name) in enumerate(own):
            progress(done, len(own))
            with locked(folder / f".{name}.lock"):  # tasks with another N write the same files
                # The manifest is written before entries are removed.
                if not _entry(folder, name).is_file() and not (folder / MANIFEST).is_file():
                    recorder.write(folder, split, number, name)
                    _describe_file(folder, name)
        progress(len(own), len(own))
    with locked(folder / ".contents.lock"):
        if (folder / MANIFEST).is_file():
            return True
        if all(_entry(folder, name).is_file() for _, _, name in files):
            _finish(recorder, folder)
            return True
    return False


def check_folder(folder: Path) -> None:
    """Reject a folder that cannot be used for a cache; called before the teacher computes anything.

    Raises:
        DataError: the path is a file or below a file, or the folder contains other files.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise DataError("is a file, not a folder", where=str(existing), hint="choose another folder")
    if any((folder / name).is_file() for name in (MANIFEST, CONTENTS)):
        return
    if any(not path.name.startswith(".") for path in folder.glob("*")):
        raise DataError("is not empty and contains no cache", where=str(folder), hint="choose another folder")


def discard_other(recorder: SignalRecorder, folder: Path) -> None:
    """Remove an incomplete cache that cannot be continued; the caller holds a lock on the folder."""
    if not (folder / CONTENTS).is_file() or (folder / MANIFEST).is_file():
        return
    try:
        found = read_json_object(folder / CONTENTS, CacheContents, hint=CACHE_AGAIN)
    except DataError:
        found = None
    if found != recorder.contents:
        shutil.rmtree(folder)


def _finish(recorder: SignalRecorder, folder: Path) -> None:
    """Write description and manifest."""
    with atomic_directory(folder / DESCRIPTION, replace=True) as staging:
        recorder.model.save_description(staging)
    recorder.write_factored(folder)
    files = {}
    for _, _, name in recorder.contents.shard_files():
        files[name] = read_json_object(_entry(folder, name), StoredFile, hint=CACHE_AGAIN)
    for path in sorted([*(folder / DESCRIPTION).rglob("*"), *(folder / name for name in FACTORED)]):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = _described(path)
    write_cache_manifest(folder, recorder.contents, files, recorder.model.source)
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove files that only an incomplete cache needs, and leftovers of killed processes."""
    leftovers = [path for pattern in ("*.entry", ".staging-*", ".*.lock") for path in folder.glob(pattern)]
    for path in [*leftovers, folder / CONTENTS]:
        path.unlink(missing_ok=True)


def _entry(folder: Path, name: str) -> Path:
    """Return the file with size and hash of a finished file of rows."""
    return folder / f"{name}.entry"


def _described(path: Path) -> StoredFile:
    return StoredFile(bytes=path.stat().st_size, sha256=sha256_of_file(path))


def _describe_file(folder: Path, name: str) -> None:
    write_json(_entry(folder, name), _described(folder / name).model_dump())


def _refuse_other(found: CacheContents, expected: CacheContents, folder: Path) -> None:
    problems = differences(found, expected, folder)
    if problems:
        hint = "choose another folder, or remove this one"
        raise DataError([Problem("contains the cache of another recipe", str(folder), hint=hint), *problems])


def _check_space(recorder: SignalRecorder, folder: Path) -> None:
    """Refuse to start if the missing files do not fit on the disk."""
    present = sum(path.stat().st_size for path in folder.glob("*.arrow")) if folder.is_dir() else 0
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    needed = recorder.estimate.bytes - present
    if needed > free:
        raise InfrastructureError(
            f"{folder}: the disk cannot hold the cache (found {in_bytes(free)} free, needed {in_bytes(needed)}). "
            "Hint: store --values bf16 or int8, or request fewer blocks"
        )


def in_bytes(size: float) -> str:
    """Format a size with a decimal unit: `1.5 TB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def in_time(seconds: float) -> str:
    """Format a duration: `3.5 h`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
