"""Find, open (compressed or not) and hash input files."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from kdcore import DataError, atomic_write, sha256_of_file

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
"""First bytes of a bzip2 stream; the second form is that of an empty one."""

_FOREIGN_COMPRESSION = {b"PK\x03\x04": "zip", b"\xfd7zXZ\x00": "xz", b"7z\xbc\xaf\x27\x1c": "7z"}

Compression = Literal["gzip", "bzip2", "zstd"]


def input_files(path: str) -> dict[str, Path]:
    """Find the files of `path`: one file, all files below a folder, or those that match a glob.

    Hidden files are left out of folders, and a glob's matches are files only.

    Returns:
        The files in the order of their names. A name is relative to the folder (or to the part of the glob before its
        first wildcard), so it does not depend on where the data is stored.

    Raises:
        DataError: the path does not exist or contains no files.
    """
    place = Path(path)
    if place.is_file():
        return {place.name: place}
    if place.is_dir():
        root = place
        found = [file for file in place.rglob("*") if not _hidden(file.relative_to(place))]
    elif glob.has_magic(path):
        root = _fixed_part(place)
        found = [Path(match) for match in glob.iglob(path, recursive=True)]
    else:
        raise DataError("no such file or folder", where=path)
    files = {file.relative_to(root).as_posix(): file for file in found if file.is_file()}
    if not files:
        what = "the folder contains no files" if place.is_dir() else "no file matches the pattern"
        raise DataError(what, where=path, hint="name a text file, a folder of text files or a glob such as texts/*.txt")
    return dict(sorted(files.items()))


def compression(path: Path) -> Compression | None:
    """Detect the compression of a file by its content; None for a plain file.

    Raises:
        DataError: it cannot be read, or its compression is not supported.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(10)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    for magic, kind in _FOREIGN_COMPRESSION.items():
        if head.startswith(magic):
            raise DataError(
                f"is compressed with {kind}, which is not supported",
                where=str(path),
                allowed="plain text, gzip, bzip2, zstd",
                hint="unpack the file first",
            )
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD):
        return "zstd"
    return "bzip2" if BZIP2.match(head) else None


def is_plain(path: Path) -> bool:
    """Return whether a file can be read and is not compressed at all."""
    try:
        return compression(path) is None
    except DataError:
        return False


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain, gzip, bzip2 (multistream too) or zstd file for reading bytes; the type is detected by content.

    Raises:
        DataError: also for reads inside the `with` block: the compressed data is damaged or ends too early.
    """
    with open_counted(path) as (stream, _):
        yield stream


@contextmanager
def open_counted(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file as `open_input` does.

    Yields:
        The unpacked bytes (seekable for a plain file), and the raw file, whose `tell` is the number of bytes read.
    """
    kind = compression(path)
    with path.open("rb") as raw:
        opened: Any = raw
        if kind == "gzip":
            opened = gzip.GzipFile(fileobj=raw)
        elif kind == "bzip2":
            opened = bz2.BZ2File(raw)
        elif kind == "zstd":
            import pyarrow

            opened = io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))
        try:
            yield opened, raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, error) from error
        except OSError as error:
            # bz2 and zstd report damaged data as an OSError without an errno; one with an errno comes from the disk.
            if error.errno is not None:
                raise
            raise damaged(path, error) from error


class FileHashes:
    """SHA-256 of files, cached in a folder by path, size and modification time.

    Hashing a dump of 20 GB takes a minute, which a restarted training must not repeat.
    """

    def __init__(self, folder: Path | None) -> None:
        self._store = folder / "file-hashes.json" if folder else None
        self._known: dict[str, Any] = {}
        self._changed = False
        if self._store and self._store.is_file():
            try:
                known = json.loads(self._store.read_text())
            except (OSError, ValueError):
                known = None  # a damaged cache is rewritten
            self._known = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        """Return the hash of a file's content.

        Raises:
            DataError: the file does not exist or cannot be read.
        """
        key = str(path.resolve())
        try:
            status = path.stat()
            known = self._known.get(key)
            if isinstance(known, list) and known[:2] == [status.st_size, status.st_mtime_ns] and len(known) == 3:
                return str(known[2])
            digest = sha256_of_file(path)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
        self._known[key] = [status.st_size, status.st_mtime_ns, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write the cache; the last concurrent writer wins, which costs at most another hashing."""
        if self._store is None or not self._changed:
            return
        with suppress(OSError):  # a shared cache may be read-only
            self._store.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._store) as file:
                file.write(json.dumps(self._known).encode())


def damaged(path: Path, error: Exception | str) -> DataError:
    """Return the error for compressed data that cannot be unpacked to its end."""
    return DataError(
        f"the compressed file is damaged or ends too early ({error})",
        where=str(path),
        hint="download the file again and compare its size and checksum with those of its source",
    )


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _fixed_part(pattern: Path) -> Path:
    fixed = Path(pattern.parts[0])
    for part in pattern.parts[1:]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed
