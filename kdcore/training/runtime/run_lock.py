"""Allow one run per folder.

A lock is released when its process exits. A token lets an orphaned process detect that another one has taken over.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Self, TextIO

from kdcore.errors import InfrastructureError, InputError
from kdcore.training.runtime.collectives import broadcast_from_main
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.utils.locks import LocksUnsupportedError, acquire, is_open_at
from kdcore.utils.stored import read_json_object

logger = logging.getLogger("kdcore")

_FILE = ".lock"
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True)
class _Holder:
    """The holder of a lock, as stored in its file.

    Attributes:
        token: unique to this session.
        host: host name.
        pid: process id.
        since: time when the lock was taken.
        job: SLURM job; empty outside of SLURM.
        restarts: number of times that SLURM has requeued the job.
    """

    token: str
    host: str
    pid: int
    since: str
    job: str
    restarts: int

    @classmethod
    def this_process(cls) -> _Holder:
        return cls(
            uuid.uuid4().hex,
            socket.gethostname(),
            os.getpid(),
            datetime.now().astimezone().isoformat(" ", "seconds"),
            os.environ.get("SLURM_JOB_ID", ""),
            int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    def replaces(self, other: _Holder | None) -> bool:
        """Return whether this process takes over from the other one, an earlier run of the same requeued SLURM job."""
        return other is not None and self.job != "" and self.job == other.job and self.restarts > other.restarts


class RunLock:
    """A lock that is held within the context; the operating system releases it when the process ends.

    A requeued SLURM job takes over the folder from its earlier run, which may still be running on an unreachable node.
    The earlier process detects this with `check`, which must be called before each rename in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / _FILE
        self._own = _Holder.this_process()
        self._file: TextIO | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Take the lock; create the folder if necessary.

        Raises:
            InputError: another run holds it, or the folder cannot be written.
            InfrastructureError: the disk fails.
        """
        try:
            missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._made = missing
            self._file = self._take()
        except OSError as error:
            self._remove_if_empty()
            what = f"the run folder cannot be written: {error.strerror}"
            if error.errno in _NOT_WRITABLE:
                raise InputError(
                    what, where=str(self.folder), hint="choose another folder with `run.folder=`"
                ) from error
            raise InfrastructureError(f"{self.folder}: {what}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_if_empty()
        if self._file is not None:
            with suppress(OSError):
                if is_open_at(self._file.fileno(), self._path):
                    self._file.truncate(0)  # this process may continue: its id must not count as a running run
            self._file.close()

    def check(self) -> None:
        """Check that this run still holds the folder.

        Raises:
            InfrastructureError: another process has taken over, or the lock file is missing.
        """
        holder = _read(self._path)
        if holder is None or holder.token != self._own.token:
            by = f" by process {holder.pid} on {holder.host}, since {holder.since}" if holder else ""
            raise InfrastructureError(f"{self.folder}: the run folder was taken over{by}; this process stops writing")

    def _take(self) -> TextIO:
        while True:
            file = self._path.open("a+", encoding="utf-8")
            try:
                held = acquire(file.fileno())
            except LocksUnsupportedError:
                logger.warning(
                    f"{self.folder}: this file system does not support locks; ensure that only one run uses the folder"
                )
                held = True
            except OSError:
                file.close()
                raise
            if not held:
                file.close()
                holder = _read(self._path)
                if not self._own.replaces(holder):
                    raise _refusal(self.folder, holder)
                logger.warning(f"{self.folder}: taken over from an earlier run of this SLURM job")
                return self._replace()
            if is_open_at(file.fileno(), self._path):
                self._write(file)
                return file
            file.close()  # replaced or removed between opening and locking

    def _replace(self) -> TextIO:
        """Replace the lock file of another process with a new, locked one."""
        path = self._path.with_name(f"{_FILE}-{self._own.token}")
        file = path.open("a+", encoding="utf-8")
        acquire(file.fileno())
        self._write(file)
        os.replace(path, self._path)
        return file

    def _write(self, file: TextIO) -> None:
        file.truncate(0)
        file.write(json.dumps(asdict(self._own)) + "\n")
        file.flush()
        os.fsync(file.fileno())

    def _remove_if_empty(self) -> None:
        """Remove created folders in which nothing was written."""
        if not self._made:
            return
        if (
            self._file is not None
            and is_open_at(self._file.fileno(), self._path)
            and list(self.folder.iterdir()) == [self._path]
        ):
            self._path.unlink()
        for path in self._made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def run_lock(folder: Path, processes: DistributedContext) -> Iterator[Callable[[], None]]:
    """Hold a run folder's lock on process 0. Yield the function that it must call before each rename in the folder.

    Raises:
        InputError: on every process, if another run holds it, or the folder cannot be written.
        InfrastructureError: on every process, if the disk fails.
    """
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(lock)

        lock = RunLock(folder)
        broadcast_from_main(processes, take)
        yield lock.check


def refuse_if_held(folder: Path) -> None:
    """Raise an InputError if another run is active in a folder, without locking or creating anything."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context((folder / _FILE).open(encoding="utf-8"))
            held = acquire(file.fileno(), shared=True)
        except OSError:
            return  # no lock file, or no locks on this file system
        if not held:
            raise _refusal(folder, _read(folder / _FILE))


def _read(path: Path) -> _Holder | None:
    try:
        return read_json_object(path, _Holder)
    except InputError:
        return None


def _refusal(folder: Path, holder: _Holder | None) -> InputError:
    who = f"process {holder.pid} on {holder.host}, since {holder.since}" if holder else "another process"
    return InputError(
        f"another run is active in this folder: {who}",
        where=str(folder),
        hint="wait for it or stop it, or start a separate run with `run.id=NEW`",
    )
