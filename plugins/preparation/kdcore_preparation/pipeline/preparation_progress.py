"""Progress of a preparation, counted by several processes in shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from ctypes import c_int64
from multiprocessing import get_context
from typing import Any, NamedTuple


class PreparationProgress(NamedTuple):
    """Progress of a preparation; `bytes` of the `total_bytes` in the raw text files have been read."""

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    bytes: int = 0
    total_bytes: int = 0


ReportProgress = Callable[[PreparationProgress], None]
_COUNTED = len(PreparationProgress._fields) - 1


class Counters:
    """Counts of each process, plus the work done before the processes began."""

    def __init__(self, processes: int, before: PreparationProgress) -> None:
        self._before = before
        self._counts: Any = get_context("fork").RawArray(c_int64, _COUNTED * processes)

    def begin(self, worker: int) -> UnitCounter:
        """Return a counter for the next unit of a process."""
        return UnitCounter(self._counts, worker * _COUNTED)

    def total(self) -> PreparationProgress:
        """Sum what all processes have done."""
        values = list(self._counts)
        done = PreparationProgress(*(sum(values[field::_COUNTED]) + self._before[field] for field in range(_COUNTED)))
        return done._replace(total_bytes=self._before.total_bytes)


class UnitCounter:
    """Count the work of a process on one unit."""

    def __init__(self, counts: Any, place: int) -> None:
        self._counts = counts
        self._place = place
        self._before = list(counts[place : place + _COUNTED])

    def at(self, *, documents: int = 0, sequences: int = 0, tokens: int = 0, bytes_done: int = 0) -> None:
        """Set the progress within the unit."""
        for field, value in enumerate((documents, sequences, tokens, bytes_done)):
            self._counts[self._place + field] = self._before[field] + value


class Speed:
    """Measure the speed of a preparation from its first progress report."""

    def __init__(self) -> None:
        self._start: tuple[float, PreparationProgress] | None = None

    def describe(self, progress: PreparationProgress) -> str:
        """Format one line: documents, percentage, MB/s of raw text, and estimated time left."""
        now = time.monotonic()
        if self._start is None:
            self._start = (now, progress)
        seconds, before = now - self._start[0], self._start[1]
        done = progress.bytes - before.bytes
        parts = [f"{progress.documents:,} documents, {progress.sequences:,} sequences"]
        if progress.total_bytes:
            parts.append(f"{progress.bytes / progress.total_bytes:.0%} of {progress.total_bytes / 1e6:,.0f} MB")
        if done > 0 and seconds > 0:
            left = (progress.total_bytes - progress.bytes) * seconds / done
            parts.append(f"{done / seconds / 1e6:.1f} MB/s, {left / 60:,.0f} minutes left")
        return ", ".join(parts)
