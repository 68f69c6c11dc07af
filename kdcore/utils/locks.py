"""Lock files: one writer at a time, released when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcore.errors import DataError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock_of(folder: Path) -> Path:
    """Return the lock file beside a folder that is held while the folder is written."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True, taken: str = "") -> Iterator[int]:
    """Hold a lock file; an exclusive lock removes the file at the end. Has no effect on a file system without locks.

    Args:
        path: the lock file.
        shared: allow other holders that also ask for a shared lock.
        wait: wait until the lock is free instead of raising an error.
        taken: text of that error.

    Yields:
        The descriptor of the open file. Forked processes hold the lock as well until they close it.

    Raises:
        DataError: another process holds the lock.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, how)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    hint = "wait until it is done, or choose another folder"
                    raise DataError(taken, where=str(path.parent), hint=hint) from error
                if error.errno not in _NO_LOCKS:
                    raise
            else:
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


def is_open_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one at `path`, not one that has been replaced or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
