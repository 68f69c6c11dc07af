"""Operators that torch compiles on first use, and the lock that a killed compilation leaves behind.

torch guards the folder of an operator with a plain file named `lock`: whoever finds it waits, without a word, until it
is gone. A process that is killed while it compiles never removes it, so that every later start waits for good.

kdcore finds that out and says so, but removes nothing: the folder belongs to torch and is shared with other programs,
and a compilation inside a container that shares it cannot be seen from here.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcore.errors import MachineError
from kdcore.training.watchdog import duration

_POLL_SECONDS = 0.5
_QUIET_SECONDS = 10.0
_QUIET_SECONDS_UNSEEN = 600.0
_LOCAL_FILE_SYSTEMS = {"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
_WAITS_IN = os.path.join("torch", "utils", "file_baton.py")


def extensions_folder() -> Path:
    """Where torch keeps the operators that it has compiled."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


@contextmanager
def no_endless_wait() -> Iterator[None]:
    """While entered, this thread does not wait for a lock that nobody will ever take away.

    Raises:
        MachineError: names the lock and what to do.
    """
    waiting = threading.get_ident()
    over = threading.Event()
    message: list[str] = []

    class StaleLockError(MachineError):
        """Raised from outside into the thread that waits, which can be told the type only."""

        def __init__(self) -> None:
            super().__init__(message[0])

    def watch() -> None:
        watched: _Lock | None = None
        while not over.wait(_POLL_SECONDS):
            path = _awaited_lock(waiting)
            watched = None if path is None else watched if watched and watched.path == path else _Lock(path)
            if watched is not None and watched.is_stale():
                message.append(watched.message())
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(waiting), ctypes.py_object(StaleLockError))
                return

    watcher = threading.Thread(target=watch, name="kdcore-stale-locks", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Lock:
    """A lock that is waited for, and since when nothing has happened around it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._patience = _QUIET_SECONDS if _shows_its_holder(path) else _QUIET_SECONDS_UNSEEN
        self._seen = self._state()
        self._since = time.monotonic()

    def is_stale(self) -> bool:
        """Whether no process of this machine holds it, and nothing has changed beside it for a while."""
        state = self._state()
        if state != self._seen or _is_held(self.path):
            self._seen, self._since = state, time.monotonic()
        return bool(state) and time.monotonic() - self._since > self._patience

    def message(self) -> str:
        """What is wrong and what to do."""
        return (
            f"{self.path} was left behind by a process that was killed while it compiled: nobody holds it, and nothing "
            f"has changed beside it for {duration(self._patience)}. Remove it, then start again: rm '{self.path}'"
        )

    def _state(self) -> list[tuple[str, int, int]]:
        """Name, size and time of all files beside the lock; empty once the lock is gone."""
        try:
            entries = [(entry.name, entry.stat()) for entry in os.scandir(self.path.parent)]
        except OSError:
            return []
        state = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in entries)
        return state if any(name == self.path.name for name, _, _ in state) else []


def _awaited_lock(thread: int) -> Path | None:
    """The lock that torch waits for in this thread; None if it does something else."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "wait" and frame.f_code.co_filename.endswith(_WAITS_IN):
            return Path(frame.f_locals["self"].lock_file_path)
        frame = frame.f_back
    return None


def _is_held(path: Path) -> bool:
    """Whether a process of this machine has the file open, as torch does while it compiles."""
    try:
        wanted = path.stat()
    except OSError:
        return False
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            for descriptor in os.scandir(descriptors):
                found = descriptor.stat()
                if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
                    return True
        except OSError:  # it has ended, or is another user's
            continue
    return False


def _shows_its_holder(path: Path) -> bool:
    """Whether a process that holds the lock can be seen from here: it is on this machine, and is our user's."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
        is_ours = os.geteuid() in (0, path.stat().st_uid)
    except OSError:
        return False
    holding = [(len(where), kind) for _, where, kind, *_ in mounts if path.resolve().is_relative_to(where)]
    return is_ours and bool(holding) and max(holding)[1] in _LOCAL_FILE_SYSTEMS
