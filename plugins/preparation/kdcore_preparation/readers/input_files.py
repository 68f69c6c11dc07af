"""Find, open (compressed or not) and hash input files."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from kdcore import DataError, atomic_write, sha256_of_file
from kdcore_preparation.readers.cleaning import decode_utf8
from kdcore_preparation.readers.file_listing import InputFiles, find_files
from kdcore_preparation.readers.input_streams import UNPACKING_ERRORS, Bzip2Streams, ZstdFrames, universal_lines

_GZIP = b"\x1f\x8b"
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or a skippable frame
BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
"""First bytes of a bzip2 stream; the second alternative matches an empty stream."""

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks of UTF-16; UTF-32 begins with the first, too."""

_FOREIGN_COMPRESSION = {b"PK\x03\x04": "zip", b"\xfd7zXZ\x00": "xz", b"7z\xbc\xaf\x27\x1c": "7z"}

COMPRESSED_ENDINGS = (".gz", ".bz2", ".zst")
"""Endings of the names of files that `open_input` decompresses."""

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HEAD = 256

Compression = Literal["gzip", "bzip2", "zstd"]


def input_files(path: str) -> InputFiles:
    """Find the files of `path`: one file, all files below a folder, or the files that match a glob.

    Hidden files in folders are left out, and a glob matches only files. Links are followed, except links to a folder
    that contains them or has already been read. Entries that cannot be read are left out and counted.

    Returns:
        The files in the order of their names. A name is relative to the folder (or to the part of the glob before its
        first wildcard), so it does not depend on where the data is stored.

    Raises:
        DataError: the path does not exist, cannot be read or contains no files.
    """
    return find_files(path)


def table_files(path: str) -> InputFiles:
    """Find files like `input_files`, but without the auxiliary files that Spark and Hadoop write next to their data.

    These are files and folders whose names begin with an underscore (`_SUCCESS`, `_metadata`) and checksums (`.crc`). A
    single file named by `path` is always included.
    """
    found = input_files(path)
    if Path(path).is_file():
        return found
    beside = [name for name in found if _beside_data(name)]
    files = InputFiles({name: file for name, file in found.items() if name not in beside}, found.left_out)
    if beside:
        files.left_out[f"files that are not data left out (the first: {beside[0]})"] += len(beside)
    if not files:
        raise DataError(
            "contains only files such as _SUCCESS and checksums", where=path, hint="name files with records"
        )
    return files


def compression(path: Path) -> Compression | None:
    """Detect the compression of a file by its content; None for a plain file.

    Raises:
        DataError: it cannot be read, or its compression is not supported.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(_HEAD)
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
    if _ZSTD.match(head):
        return "zstd"
    if BZIP2.match(head):
        return "bzip2"
    if path.suffix.lower() in COMPRESSED_ENDINGS and _CONTROL.search(head):
        raise damaged(path, f"it does not begin as a {path.suffix} file")
    return None


def is_plain(path: Path) -> bool:
    """Return whether a file can be read and is not compressed."""
    try:
        return compression(path) is None
    except DataError:
        return False


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain, gzip, bzip2 or zstd file for reading bytes; the type is detected by content.

    All streams, members and frames of a compressed file are read. Zero bytes may follow the last member of a gzip file.

    Raises:
        DataError: the compressed data is damaged, ends too early or is followed by other data; also raised by reads
            inside the `with` block.
    """
    with open_counted(path) as (stream, _):
        yield stream


@contextmanager
def open_counted(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file like `open_input`, and also yield the raw file.

    Yields:
        The unpacked bytes (seekable for a plain file), and the raw file, whose `tell` returns the number of bytes read.
    """
    kind = compression(path)
    with path.open("rb") as raw:
        opened: Any = raw
        if kind == "gzip":
            opened = gzip.GzipFile(fileobj=raw)
        elif kind == "bzip2":
            opened = io.BufferedReader(Bzip2Streams(raw))
        elif kind == "zstd":
            opened = io.BufferedReader(ZstdFrames(raw))
        try:
            yield opened, raw
        except UNPACKING_ERRORS as error:
            # Damaged data is an OSError without an errno; one with an errno comes from the disk.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise damaged(path, error) from error


class FileHashes:
    """SHA-256 of files, cached in a folder by path, size and modification time.

    Hashing a dump of 20 GB takes a minute; thanks to the cache, this is not repeated when training is restarted.
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
        """Write the cache; the last concurrent writer wins, so at worst some files are hashed again."""
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


def refuse_utf16(head: bytes, where: str) -> None:
    """Reject UTF-16 text, which begins with a byte order mark or has a zero in every other byte.

    Raises:
        DataError: the text is UTF-16.
    """
    zeros = [not byte for byte in head[:8]]
    if head.startswith(UTF16_MARKS) or (len(zeros) == 8 and zeros in ([False, True] * 4, [True, False] * 4)):
        raise DataError(
            "is UTF-16 text, which is not supported (expected UTF-8)",
            where=where,
            hint="convert it to UTF-8, e.g. with iconv -f UTF-16 -t UTF-8",
        )


def decoded_lines(stream: IO[bytes], report: Counter[str], where: str) -> Iterator[str]:
    """Decode the lines of a byte stream; lines end in newlines or carriage returns, see `universal_lines`.

    Invalid UTF-8 becomes U+FFFD, counted in `report`. A byte order mark at the start is left out.

    Raises:
        DataError: the file is UTF-16.
    """
    for number, raw in enumerate(universal_lines(stream)):
        if number == 0:
            refuse_utf16(raw, where)
        line = decode_utf8(raw, report)
        yield line.removeprefix("\ufeff") if number == 0 else line


def file_format(path: Path) -> str:
    """Return the suffix for the format of a file, without a compression suffix."""
    name = path.name.lower()
    for ending in COMPRESSED_ENDINGS:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _beside_data(name: str) -> bool:
    """Return whether Spark, Hadoop and Arrow ignore files of this name; `_key=value` is a folder of data."""
    parts = name.split("/")
    return name.endswith(".crc") or any(part.startswith("_") and "=" not in part for part in parts)
