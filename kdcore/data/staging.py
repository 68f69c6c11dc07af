"""Atomic folders, whose writing resumes after an interruption, and locks.

While FOLDER is written, it is `.FOLDER.preparing` beside it, and the holder of `.FOLDER.lock` may write there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdcore.errors import DataError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def staging_of(folder: Path) -> Path:
    """Return the staging folder of a folder that is being written."""
    return folder.with_name(f".{folder.name}.preparing")


def lock_of(folder: Path) -> Path:
    """Return the lock file of a folder that is being written."""
    return folder.with_name(f".{folder.name}.lock")


def refuse_other_content(folder: Path, finished: str) -> None:
    """Raise a DataError if a folder is not empty and lacks the file that marks a finished folder."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / finished).is_file())):
        raise DataError(
            "is not empty and not a folder of prepared data",
            where=str(folder),
            hint="choose another folder",
        )


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True, taken: str = "") -> Iterator[int]:
    """Hold a lock file, which its last holder removes. Without effect on file systems that have no locks.

    Args:
        path: the lock file.
        shared: take a shared lock.
        wait: wait until it is free; otherwise raise an error if it is not.
        taken: message of that error.

    Yields:
        The open file's descriptor. It holds the lock in forked processes too, until they close it.

    Raises:
        DataError: another process holds it.
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
                if not _same_file(descriptor, path):
                    continue  # its holder removed it while this process was waiting
            try:
                yield descriptor
            finally:
                if not shared:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


@contextmanager
def staged_folder(folder: Path, *, finished: str) -> Iterator[Path | None]:
    """Yield a new folder to write to, which becomes `folder` when the `with` block ends without an error.

    Only one process at a time gets one; others wait, and then find the folder finished. The next process removes what
    a killed one has left.

    Args:
        folder: the finished folder.
        finished: a file in it that marks it as finished.

    Yields:
        The folder to write to, or None when `folder` is finished already.

    Raises:
        DataError: `folder` holds something else.
    """
    folder = Path(os.path.abspath(folder))
    with locked(lock_of(folder)):
        if (folder / finished).is_file():
            yield None
            return
        refuse_other_content(folder, finished)
        staging = staging_of(folder)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            publish(staging, folder, finished)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that replaces `path` atomically, synced to disk, if the `with` block ends without an error."""
    staging = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def publish(staging: Path, folder: Path, finished: str) -> None:
    """Rename a finished folder atomically, after syncing it to disk."""
    for path in (*staging.rglob("*"), staging):
        _sync(path)
    try:
        staging.rename(folder)
    except OSError as error:
        # Without locks another process may have been faster; its folder has the same content.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not (folder / finished).is_file():
            raise
    _sync(folder.parent)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
