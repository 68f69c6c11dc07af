"""Recognise Git-LFS pointers, which are small text files in place of large files that were not downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdcore.errors import DataError

_START = b"version https://git-lfs.github.com/spec/"
_MOST_BYTES = 1024


def refuse_pointers(folder: Path, patterns: Iterable[str]) -> None:
    """Reject a folder in which a file that matches one of the patterns is a pointer.

    Raises:
        DataError: a file is a pointer; the message names the first one.
    """
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)) if folder.is_dir() else ():
            if path.is_file() and path.stat().st_size < _MOST_BYTES and path.read_bytes().startswith(_START):
                raise DataError(
                    f"{path.name} is a Git-LFS pointer, not the file itself",
                    where=str(folder),
                    hint="run `git lfs pull` in the repository, or download the file",
                )
