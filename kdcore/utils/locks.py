"""Lock files. The operating system releases the locks when the process ends, however it ends.

Exclusive locks use the library filelock on an open file. Its class `FileLock` is not used: it unlocks the file for
forked processes as well, does not remove the file, and hides the open file, whose identity shows whether another
process has replaced the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdcore.errors import DataError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class LocksUnsupportedError(OSError):
    """The file system has no locks."""


def lock_of(folder: Path) -> Path:
    """Return the lock file next to a folder, which is locked while the folder is written."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True, taken: str = "") -> Iterator[int]:
    """Hold the lock on a file within the context.

    With an exclusive lock, the file is removed at the end. On a file system without locks, the context has no effect.

    Args:
        path: the lock file.
        shared: allow other holders of shared locks.
        wait: wait until the lock is free instead of raising an error.
        taken: error message if the lock is taken.

    Yields:
        The descriptor of the open file. Forked processes hold the lock as well until they close it.

    Raises:
        DataError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(LocksUnsupportedError):
                if not acquire(descriptor, shared=shared, wait=wait):
                    hint = "wait until it is done, or choose another folder"
                    raise DataError(taken, where=str(path.parent), hint=hint)
                if not is_open_at(descriptor, path):
                    continue  # its holder removed it while this process was waiting
            try:
                yield descriptor
            finally:
                if not shared:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def acquire(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until all copies of its descriptor are closed.

    Args:
        descriptor: the open file; for an exclusive lock on NFS it must be writable.
        shared: allow other holders of shared locks.
        wait: wait until the lock is free.

    Returns:
        Whether the lock is held; False if it is taken and `wait` is not set.

    Raises:
        LocksUnsupportedError: the file system has no locks.
        OSError: the file cannot be locked.
    """
    try:
        if not shared:
            from filelock import lock_descriptor  # importing it takes longer than importing this package

            return lock_descriptor(descriptor, blocking=wait)
        # filelock has no shared lock of this kind: its read-write locks use SQLite or marker files.
        fcntl.flock(descriptor, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in _UNSUPPORTED:
            raise LocksUnsupportedError(error.errno, error.strerror) from error
        raise
    return True


def is_open_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one at `path`, not one that has been replaced or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
