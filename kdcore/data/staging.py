"""A folder that appears whole or not at all, also when several processes make it at once."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcore.errors import DataError


@contextmanager
def staged_folder(folder: Path, *, finished: str) -> Iterator[Path | None]:
    """Give a new folder to write to, which becomes `folder` when the `with` block ends without an error.

    Only one process at a time gets one; others wait, and find the folder finished. A process that is killed leaves a
    hidden staging folder beside `folder`, which the next one removes.

    Args:
        folder: where the finished folder shall be.
        finished: a file in it that shows that it is there already.

    Yields:
        The folder to write to, or None when `folder` is finished already.

    Raises:
        DataError: `folder` holds something else.
    """
    folder = Path(os.path.abspath(folder))
    if (folder / finished).is_file():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.with_name(f".{folder.name}.lock")) as alone:
        if (folder / finished).is_file():
            yield None
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(
                "is in the way: it is no folder of prepared data, and not empty",
                where=str(folder),
                hint="choose another folder",
            )
        prefix = f".{folder.name}.staging-"
        if alone:
            for stale in folder.parent.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
        staging = folder.with_name(prefix + secrets.token_hex(4))
        staging.mkdir()
        try:
            yield staging
            _sync_tree(staging)
            _move(staging, folder, finished)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock file. Yields False where the file system has no locks: then only the final move is decided."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                yield False
                return
            if not _same_file(descriptor, path):
                continue  # its holder removed it while this process was waiting
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _move(staging: Path, folder: Path, finished: str) -> None:
    try:
        staging.rename(folder)
    except OSError as error:
        # Without locks another process may have been faster; its folder holds the same.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (folder / finished).is_file():
            raise
    _sync(folder.parent)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
