"""Write files and folders that are either complete or absent, even after a crash.

Content is written under a staging name `.staging-NAME` in the same folder, flushed to disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

STAGING = ".staging-"
REPLACED = ".replaced-"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the `with` block ends; after an error `path` is unchanged.

    Several processes may write the same path; the last rename wins. The content is on disk before the rename. Call
    `sync_folder` if the rename itself must survive a power failure.

    Raises:
        OSError: the file cannot be written.
    """
    staging = path.with_name(f"{STAGING}{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with names_path(path), staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def names_path(path: Path) -> Iterator[None]:
    """Add the path to errors that do not contain it, such as those from writing to an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def staging_folder(folder: Path) -> Path:
    """Return the path at which `atomic_directory` writes a folder."""
    return folder.with_name(STAGING + folder.name)


@contextmanager
def atomic_directory(
    folder: Path, *, replace: bool = False, finished: str | None = None, check: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Create an empty staging folder that is committed as `folder` when the `with` block ends, and removed on error.

    Only one process at a time may write a folder. Content that a killed process has left under the staging name is
    removed.

    Args:
        folder: the final path; its parents are created.
        replace: see `commit_directory`.
        finished: see `commit_directory`.
        check: see `commit_directory`.

    Yields:
        The staging folder.

    Raises:
        OSError: the folder cannot be written, or its path is already taken.
        Exception: raised by `check`.
    """
    staging = staging_folder(folder)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        commit_directory(staging, folder, replace=replace, finished=finished, check=check)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def commit_directory(
    staging: Path,
    folder: Path,
    *,
    replace: bool = False,
    finished: str | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Flush a folder to disk and rename it to its final path.

    Args:
        staging: the complete folder, in the same parent folder.
        folder: the final path.
        replace: replace an existing folder. A process killed between the two renames leaves the old folder under the
            name `.replaced-NAME`; see `restore_replaced`.
        finished: a file that marks a complete folder. If another process has committed a folder with this file first,
            which can happen on a file system without locks, that process's folder is kept and no error is raised.
        check: called immediately before the first rename; raises if this process may no longer commit.

    Raises:
        OSError: the folder cannot be flushed or renamed.
        Exception: raised by `check`.
    """
    for path in staging.rglob("*"):
        sync_folder(path) if path.is_dir() else _sync(path)
    sync_folder(staging)
    if check is not None:
        check()
    replaced = folder.with_name(REPLACED + folder.name)
    moved = replace and folder.exists()
    if moved:
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(folder, replaced)
    try:
        os.replace(staging, folder)
    except OSError as error:
        if moved:
            os.replace(replaced, folder)
        raced = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
        if not raced or finished is None or not (folder / finished).is_file():
            raise
    sync_folder(folder.parent)
    if replace:
        shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(parent: Path) -> None:
    """Clean up a folder after a killed process: restore replaced folders and remove staged content.

    Call it only while no other process writes to the folder.
    """
    for replaced in parent.glob(f"{REPLACED}*"):
        folder = parent / replaced.name.removeprefix(REPLACED)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(replaced, folder)
    for staging in parent.glob(f"{STAGING}*"):
        shutil.rmtree(staging, ignore_errors=True) if staging.is_dir() else staging.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk.

    Raises:
        OSError: the folder cannot be flushed.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems support fsync for files only
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
