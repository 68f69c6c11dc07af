"""Unpack bzip2 and zstd files of any number of streams, without mistaking damage for their end."""

from __future__ import annotations

import bz2
import io
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 2**17


class Bzip2Streams(io.RawIOBase):
    """Unpack all bzip2 streams of a file.

    `bz2.BZ2File` ends silently where a later stream is damaged at its start, and ignores data after the last stream.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._unpacker = bz2.BZ2Decompressor()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer; 0 is the end of the last stream.

        Raises:
            EOFError: a stream ends too early.
            OSError: data is damaged, or something else follows a stream.
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

    pyarrow raises an error for the whole request that reaches damage, so that request is repeated byte by byte.
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
        """Fill a buffer; 0 is the end of the last frame.

        Raises:
            OSError: data is damaged or ends too early, or something else follows a frame.
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
        """Return what can be unpacked of the request that failed."""
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
