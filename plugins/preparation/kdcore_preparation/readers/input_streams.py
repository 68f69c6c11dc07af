"""Open input files as streams: multi-stream compressed files, and lines that end in carriage returns."""

from __future__ import annotations

import bz2
import io
import re
import zlib
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

UNPACKING_ERRORS = (EOFError, OSError, zlib.error)
"""Exceptions that compressed streams raise for damaged data, and for disk errors (with an errno)."""

_CHUNK = 2**17
_FIRST_BYTES = 2**20
_LONE_RETURN = re.compile(rb"\r(?!\n)")


class Bzip2Streams(io.RawIOBase):
    """Unpack all bzip2 streams of a file.

    `bz2.BZ2File` ends silently if a later stream is damaged at its start, and it ignores data after the last stream.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._unpacker = bz2.BZ2Decompressor()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer and return the number of bytes; 0 at the end of the last stream.

        Raises:
            EOFError: a stream ends too early.
            OSError: data is damaged, or other data follows a stream.
        """
        view = memoryview(buffer)
        while True:
            packed = b""
            if self._unpacker.eof:
                packed = self._unpacker.unused_data or self._packed.read(_CHUNK)
                if not packed:
                    return 0
                self._unpacker = bz2.BZ2Decompressor()
            elif self._unpacker.needs_input:
                packed = self._packed.read(_CHUNK)
                if not packed:
                    raise EOFError("a bzip2 stream ends before its end-of-stream marker")
            content = self._unpacker.decompress(packed, len(view))
            if content:
                view[: len(content)] = content
                return len(content)


class ZstdFrames(io.RawIOBase):
    """Unpack all zstd frames of a file; skippable frames are skipped.

    In pyarrow, a read request that reaches damaged data fails as a whole, so it is repeated byte by byte.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._streams: list[Any] = []  # a stream that is collected closes the file
        self._stream = self._opened()
        self._position = 0
        self._error: OSError | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer and return the number of bytes; 0 at the end of the last frame.

        Raises:
            OSError: data is damaged or ends too early, or other data follows a frame.
        """
        view = memoryview(buffer)
        if self._error is not None:
            raise self._error
        try:
            content = self._stream.read(len(view))
        except OSError as error:
            if error.errno is not None:
                raise
            self._error = error
            content = self._before_damage(len(view))
            if not content:
                raise
        self._position += len(content)
        view[: len(content)] = content
        return len(content)

    def _opened(self) -> Any:
        import pyarrow

        self._packed.seek(0)
        self._streams.append(pyarrow.CompressedInputStream(pyarrow.PythonFile(self._packed, mode="r"), "zstd"))
        return self._streams[-1]

    def _before_damage(self, limit: int) -> bytes:
        """Return the bytes of the failed request that can be unpacked."""
        stream = self._opened()
        left = self._position
        while left:
            left -= len(stream.read(min(left, _CHUNK)))
        found = bytearray()
        try:
            while len(found) < limit and (one := stream.read(1)):
                found += one
        except OSError:
            pass
        return bytes(found)


def universal_lines(stream: IO[bytes]) -> IO[bytes]:
    """Return a stream whose lines end in newlines, even if the lines of the file end in lone carriage returns.

    Carriage returns are line ends if the first megabyte contains more of them than newlines. Each is replaced by one
    newline, so that positions stay valid. Carriage returns before a newline are not counted and are kept. In other
    files, carriage returns are part of the line.

    Args:
        stream: a plain file at any position, or a compressed one at its start.
    """
    if isinstance(stream, io.BufferedReader) and stream.seekable():
        position = stream.tell()
        stream.seek(0)
        returns = _ends_in_returns(read_some(stream, _FIRST_BYTES)[0])
        stream.seek(position)
        return io.BufferedReader(_LineStream(stream, b"", None, returns=True)) if returns else stream
    first, error = read_some(stream, _FIRST_BYTES)
    return io.BufferedReader(_LineStream(stream, first, error, returns=_ends_in_returns(first)), _CHUNK)


def _ends_in_returns(first: bytes) -> bool:
    return b"\r" in first and len(_LONE_RETURN.findall(first)) > first.count(b"\n")


def read_some(stream: Any, size: int) -> tuple[bytes, Exception | None]:
    """Read up to `size` bytes.

    Returns:
        The bytes before the end or the damage, and the error caused by the damage, if any.
    """
    found = bytearray()
    try:
        while len(found) < size and (piece := stream.read1(min(_CHUNK, size - len(found)))):
            found += piece
    except UNPACKING_ERRORS as error:
        return bytes(found), error
    return bytes(found), None


class _LineStream(io.RawIOBase):
    """The remaining bytes of a partly read stream, with carriage returns converted to newlines if they end lines."""

    def __init__(self, stream: Any, first: bytes, error: Exception | None, *, returns: bool) -> None:
        self._stream = stream
        self._first = first
        self._error = error
        self._returns = returns

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the underlying stream is seekable."""
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another position of a plain file."""
        return int(self._stream.seek(offset, whence))

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer and return the number of bytes; 0 at the end.

        Raises:
            EOFError, OSError, zlib.error: as for the underlying stream.
        """
        view = memoryview(buffer)
        if self._first:
            content, self._first = self._first[: len(view)], self._first[len(view) :]
        elif self._error is not None:
            raise self._error
        else:
            content = self._stream.read1(len(view))
        if self._returns:
            before_newline = content.endswith(b"\r") and self._next() == b"\n"
            content = _LONE_RETURN.sub(b"\n", content)
            if before_newline:
                content = content[:-1] + b"\r"
        view[: len(content)] = content
        return len(content)

    def _next(self) -> bytes:
        if self._first or self._error is not None:
            return self._first[:1]
        try:
            return bytes(self._stream.peek(1)[:1])
        except UNPACKING_ERRORS:
            return b""  # the next read raises the error
