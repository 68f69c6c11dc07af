"""`cache: auto`: signals are computed by the first run that reads them, and read by all runs on the same inputs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kdcore import DataError, RecipeTeacher, SignalRequest, Split, Task, cache_folder, lock_of, locked
from kdcore_teacher_cache.cache_manifest import MANIFEST, hash_of
from kdcore_teacher_cache.cache_reader import CacheReader
from kdcore_teacher_cache.caching import SignalRecorder, cache_signals, in_bytes, in_time
from kdcore_teacher_cache.signal_columns import names_of, request_of

logger = logging.getLogger("kdcore")

_BATCH_SIZE = 32


def automatic_folder(task: Task, files: Mapping[str, str], section: Mapping[str, object]) -> Path:
    """Return the folder for a teacher and a task's inputs, below kdcore's cache: equal inputs have the same one."""
    kept = {key: value for key, value in section.items() if key != "path"}
    identity = {"task": dict(task.batch_identity), "epochs": task.distinct_epochs, "files": dict(files), "model": kept}
    return cache_folder() / "teachers" / hash_of(identity)[:32]


def automatic_readers(folder: Path, task: Task, teacher: RecipeTeacher) -> list[CacheReader]:
    """Open the parts of an automatic cache, after computing the signals that none of them holds.

    One process computes; the others wait for it.

    Args:
        folder: result of `automatic_folder`.
        task: the task.
        teacher: the live teacher and what is read from it.
    """
    with _waiting_lock(folder):
        parts = sorted(path for path in folder.glob("part-*") if (path / MANIFEST).is_file())
        readers = [CacheReader(path) for path in parts]
        missing = {split: _missing(readers, split, request) for split, request in teacher.requests.items()}
        if any(request and task.num_samples(split) for split, request in missing.items()):
            names: dict[str, list[str]] = {split: names_of(request) for split, request in missing.items()}
            part = folder / f"part-{hash_of(names)[:16]}"
            recorder = SignalRecorder(task, replace(teacher, requests=missing), batch_size=_BATCH_SIZE)
            estimate = recorder.estimate
            logger.info(f"computing signals of the teacher into {part}: {in_bytes(estimate.bytes)}")
            logger.info(f"this takes about {in_time(estimate.seconds)}; later runs on the same inputs read them")
            cache_signals(recorder, part, progress=lambda done, total: None)
            readers.append(CacheReader(part))
    return readers


def _missing(readers: list[CacheReader], split: Split, request: SignalRequest) -> SignalRequest:
    stored = {
        column.name
        for reader in readers
        for name, rows in reader.contents.splits.items()
        if name == split
        for column in rows.columns
    }
    return request_of(set(names_of(request)) - stored)


@contextmanager
def _waiting_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of an automatic cache; report that another process is waited for."""
    lock = lock_of(folder)
    try:
        with locked(lock, wait=False):
            pass
    except DataError:
        print(f"waiting for another process that computes signals into {folder}", file=sys.stderr, flush=True)
    with locked(lock):
        yield
