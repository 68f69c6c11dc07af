"""End a process that hangs, for example because of a suspended peer, a device or a file system.

If one process of a run hangs, all others hang in their next collective, because no timeout of torch or DeepSpeed covers
every group. Therefore, each process watches itself.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Self

from kdcore.errors import EXIT_MACHINE

logger = logging.getLogger("kdcore")

_START_SECONDS = 30 * 60.0
_LEAST_SECONDS = 10 * 60.0
_TIMES_THE_SLOWEST = 20.0
_SLICE_SECONDS = 1.0
_WRITING_SECONDS = 10.0
_entered: list[Watchdog] = []


class Watchdog:
    """End this process with exit code 1, from another thread, if it makes no progress within the context.

    Before that, the stacks of all threads are written to stderr and to the run's log. The limit is half an hour until
    the first step or validation batch is done. Afterwards, it is the recipe's `training.stall_minutes`; the default is
    20 times the duration of the slowest step, validation batch or checkpoint so far, and at least 10 minutes.

    Time counts only while this process runs: the thread adds up short intervals that it has observed, so the time of a
    suspended process or a sleeping laptop does not count.
    """

    def __init__(
        self, stall_minutes: float | None, log_file: Path, show: Callable[[str], None] = lambda phase: None
    ) -> None:
        """Set up the watchdog; it is active within the context.

        Args:
            stall_minutes: the recipe's `training.stall_minutes`.
            log_file: file to append stacks to; if it does not exist, they are written to stderr only.
            show: function that another thread calls with the current phase about once a second. If it hangs or raises
                an error, process and watchdog continue.
        """
        self._stall_seconds = None if stall_minutes is None else stall_minutes * 60
        self._slice = _SLICE_SECONDS if self._stall_seconds is None else min(_SLICE_SECONDS, self._stall_seconds / 20)
        self._log_file = log_file
        self._show = show
        self._doing = "the start"
        self._ticks = 0
        self._training = False
        self._paced = False
        self._suspended = False
        self._slowest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kdcore-watchdog", daemon=True)
        self._display = threading.Thread(target=self._show_phases, name="kdcore-display", daemon=True)
        self._stderr = -1

    def __enter__(self) -> Self:
        self._stderr = os.dup(2)  # `suppress_output` redirects stderr at times
        self._thread.start()
        self._display.start()
        _entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _entered.remove(self)
        self._over.set()
        self._thread.join()
        self._display.join(_SLICE_SECONDS)  # not longer: printing may hang
        os.close(self._stderr)

    def starting(self, doing: str) -> None:
        """Report the start of `doing`, a phase before the first step that may take a long time."""
        self._doing = doing
        self._ticks += 1

    def tick(self, doing: str) -> None:
        """Report progress: the start of `doing`, such as a step, a validation batch, a checkpoint or an export."""
        self._paced = self._training
        self._training = True
        self._doing = doing
        self._ticks += 1

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the clock within the context: a consumer of the run's events may take as long as it needs."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False
            self._ticks += 1

    def _watch(self) -> None:
        silent, seen, was_training = 0.0, self._ticks, False
        before = time.monotonic()
        while not self._over.wait(self._slice):
            now = time.monotonic()
            slept, before = now - before, now
            if self._suspended:
                continue
            if self._ticks != seen:
                if was_training:
                    self._slowest = max(self._slowest, silent)
                silent, seen, was_training = 0.0, self._ticks, self._training
                continue
            silent += min(slept, 2 * self._slice)
            bound, why = self._bound()
            if silent > bound:
                end_process(self._message(silent, why), self._stderr, self._log_file)

    def _show_phases(self) -> None:
        while not self._over.wait(_SLICE_SECONDS):
            if not self._suspended:
                with suppress(Exception):
                    self._show(self._doing)

    def _bound(self) -> tuple[float, str]:
        """Return the limit in seconds, and its origin."""
        if not self._paced:
            return max(_START_SECONDS, self._stall_seconds or 0.0), "the limit before the first step"
        if self._stall_seconds is not None:
            return self._stall_seconds, "training.stall_minutes"
        adaptive = max(_LEAST_SECONDS, _TIMES_THE_SLOWEST * self._slowest)
        slowest = f"the slowest so far took {duration(self._slowest)}" if self._slowest else "all others were fast"
        return adaptive, f"{slowest}; training.stall_minutes sets the limit"

    def _message(self, silent: float, why: str) -> str:
        rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        where = f"process {rank} of {count}" if count != "1" else "the run"
        return (
            f"{where} made no progress for {duration(silent)} (phase: {self._doing}; {why}). The stacks above show "
            "where it hangs. In a collective: check whether another process was suspended, killed or disconnected; in "
            "file I/O: check the disk; on the device: check its driver. Then run the same command again to resume"
        )


def report_progress(doing: str) -> None:
    """Report progress of a component's long-running work before the first step of a run, such as computing signals.

    Without these reports, a run that takes half an hour to load a model is ended. Outside of runs, this has no effect.

    Args:
        doing: description of the work, shown as the current phase.
    """
    for watchdog in _entered:
        watchdog.starting(doing)


def end_process(message: str, stderr: int, log_file: Path) -> None:
    """Print a message with the stacks of all threads, and end this process with exit code 1 even if printing hangs."""
    text = f"{stacks()}error: {message}\n"
    # Writing may hang, if the disk is the cause.
    writers = [_in_background(lambda: _write(stderr, text)), _in_background(lambda: _append(log_file, text))]
    writers.append(_in_background(_flush))
    deadline = time.monotonic() + _WRITING_SECONDS
    for thread in writers:
        thread.join(max(0.0, deadline - time.monotonic()))
    os._exit(EXIT_MACHINE)


def stacks() -> str:
    """Format the stack of each thread, innermost call last. No source file is read, because the disk may hang."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    parts = []
    for identifier, frame in sys._current_frames().items():
        if identifier != own:
            parts.append(f"thread {names.get(identifier, identifier)}:\n{_calls(frame)}")
    return f"stacks of process {os.environ.get('RANK', '0')} (pid {os.getpid()}):\n" + "".join(parts)


def duration(seconds: float) -> str:
    """Format seconds, such as `1.5 seconds` or `12 minutes`."""
    return f"{seconds:.2g} seconds" if seconds < 99.5 else f"{seconds / 60:,.0f} minutes"


def _calls(frame: FrameType) -> str:
    calls = [
        f'  File "{inner.f_code.co_filename}", line {line}, in {inner.f_code.co_name}\n'
        for inner, line in walk_stack(frame)
    ]
    return "".join(reversed(calls))


def _in_background(what: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode(errors="replace"))


def _append(path: Path, text: str) -> None:
    if path.is_file():
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def _flush() -> None:
    for handler in logger.handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
