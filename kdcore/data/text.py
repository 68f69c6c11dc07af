"""Plain text files, one document a line or documents separated by blank lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from kdcore.data.base import Corpus, Document
from kdcore.data.files import input_files, open_input
from kdcore.errors import DataError
from kdcore.recipe.schema import ComponentConfig, PathString

MAX_DOCUMENT_BYTES = 16 * 2**20
"""A longer document is read as several, cut at white space, so that memory stays bounded."""

_WHITE_SPACE = b" \t\n\r\v\f"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextCorpus(Corpus):
    """Reads UTF-8 text out of plain, gzip or bzip2 files.

    Broken bytes become U+FFFD, NUL characters are removed, empty documents are skipped; each is counted.
    """

    class Config(ComponentConfig):
        """Where the text is and how documents are told apart."""

        path: PathString = Field(description="A file (also .gz, .bz2), a folder of text files, or a glob.")
        documents: Literal["lines", "blank_lines"] = Field(
            "lines", description="One document a line, or documents separated by blank lines."
        )

    config: Config

    def files(self) -> Mapping[str, Path]:
        """Files by their names below `path`."""
        return input_files(self.config.path)

    def documents(self) -> Iterator[Document]:
        """Yield documents named `FILE:LINE` after the line that they start at."""
        for name, path in self.files().items():
            with open_input(path) as stream:
                pieces = _lines(stream, path) if self.config.documents == "lines" else _blocks(stream, path)
                previous = 0
                part = 1
                for line, raw in pieces:
                    part = part + 1 if line == previous else 1
                    previous = line
                    if part > 1:
                        self.report["documents continued as another one, being very long"] += 1
                    text = self._decode(raw)
                    if text:
                        yield Document(f"{name}:{line}" if part == 1 else f"{name}:{line}#{part}", text)
                    else:
                        self.report["empty documents skipped"] += 1

    def _decode(self, raw: bytes) -> str:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("utf-8", errors="replace")
            self.report["broken UTF-8 replaced"] += text.count("\ufffd") - raw.count("\ufffd".encode())
        nul_characters = text.count("\0")
        if nul_characters:
            self.report["NUL characters removed"] += nul_characters
            text = text.replace("\0", "")
        return text.replace("\r\n", "\n").strip()


def _lines(stream: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line); a line over the limit comes in several pieces with the same number."""
    number = 1
    carried = b""
    first = True
    while read := stream.readline(asked := MAX_DOCUMENT_BYTES - len(carried)):
        complete = read.endswith(b"\n") or len(read) < asked
        line = carried + (_without_byte_order_mark(read, path) if first else read)
        first = False
        if complete:
            yield number, line
            carried = b""
            number += 1
        else:
            end = _cut(line)
            yield number, line[:end]
            carried = line[end:]
    if carried:
        yield number, carried


def _blocks(stream: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, lines up to a blank one); blocks over the limit come in several pieces."""
    block: list[bytes] = []
    size = start = 0
    for number, line in _lines(stream, path):
        if not line.strip(_WHITE_SPACE):
            if block:
                yield start, b"".join(block)
            block, size = [], 0
            continue
        if block and size + len(line) > MAX_DOCUMENT_BYTES:
            yield start, b"".join(block)
            block, size = [], 0
        elif not block:
            start = number
        block.append(line)
        size += len(line)
    if block:
        yield start, b"".join(block)


def _cut(line: bytes) -> int:
    """Where to cut a line that is too long: after its last white space, else between two UTF-8 characters."""
    at = max(line.rfind(bytes([character])) for character in _WHITE_SPACE)
    if at > 0:
        return at + 1
    end = len(line) - 1
    while end > len(line) - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _without_byte_order_mark(line: bytes, path: Path) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            "is UTF-16 text, which is not read", where=str(path), hint="convert it to UTF-8, e.g. with iconv"
        )
    return line.removeprefix(_BYTE_ORDER_MARK)
