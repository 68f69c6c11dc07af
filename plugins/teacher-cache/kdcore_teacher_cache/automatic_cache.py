"""`cache: auto`: the first run computes the signals that it reads; later runs with the same inputs reuse them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from kdcore import (
    DataError,
    RecipeTeacher,
    SignalRequest,
    Split,
    Task,
    cache_folder,
    lock_of,
    locked,
    report_progress,
)
from kdcore_teacher_cache.cache_manifest import MANIFEST, hash_of, teacher_section
from kdcore_teacher_cache.cache_reader import CacheReader
from kdcore_teacher_cache.caching import SignalRecorder, cache_signals, discard_other, in_bytes, in_time
from kdcore_teacher_cache.signal_columns import names_of, request_of

logger = logging.getLogger("kdcore")

_BATCH_SIZE = 32
_POLL_SECONDS = 0.2


def automatic_folder(task: Task, teacher: RecipeTeacher) -> Path:
    """Return the folder in kdcore's cache for a teacher and a task's inputs; equal inputs have the same folder.

    Signals are computed in fp32. On a GPU, matrix products may be rounded further (`training.tf32`), so their precision
    is part of the identity.
    """
    identity = {
        "task": dict(task.batch_identity),
        "epochs": task.distinct_epochs,
        "files": teacher.model.file_hashes(),
        "model": teacher_section(teacher.name, teacher.model),
        "products": torch.get_float32_matmul_precision(),
    }
    return cache_folder() / "teachers" / hash_of(identity)[:32]


def automatic_readers(folder: Path, task: Task, teacher: RecipeTeacher) -> list[CacheReader]:
    """Open the parts of an automatic cache, after computing the signals that are missing from all parts.

    One process computes the signals while the others wait.

    Args:
        folder: result of `automatic_folder`.
        task: the task.
        teacher: the live teacher and the signals that are read from it.
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
            logger.info(f"computing signals of the teacher in {part}: {in_bytes(estimate.bytes)}")
            logger.info(f"this takes about {in_time(estimate.seconds)}; later runs with the same inputs reuse them")
            discard_other(recorder, part)
            cache_signals(recorder, part, progress=_log)
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
    """Hold the lock of an automatic cache, and report if this process has to wait for another one."""
    lock, doing = lock_of(folder), f"waiting for another process that computes signals into {folder}"
    with ExitStack() as stack:
        for attempt in count():
            try:
                stack.enter_context(locked(lock, wait=False))
                break
            except DataError:
                if not attempt:
                    print(doing, file=sys.stderr, flush=True)
                report_progress(doing)
                time.sleep(_POLL_SECONDS)
        yield


def _log(done: int, total: int) -> None:
    """Log the progress at every tenth of the files."""
    if done and done * 10 // total > (done - 1) * 10 // total:
        logger.info(f"{done:,} of {total:,} files of signals are computed")
