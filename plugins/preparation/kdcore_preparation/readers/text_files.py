"""Plain text files, one document per line or documents separated by blank lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from kdcore import Document, Part
from kdcore_preparation.readers import file_corpus
from kdcore_preparation.readers.character_account import CharacterStage
from kdcore_preparation.readers.cleaning import clean_text, decode_utf8
from kdcore_preparation.readers.file_corpus import WHITE_SPACE, FileCorpus, head_of, parts_of_lines, read_lines
from kdcore_preparation.readers.input_files import open_counted


class TextCorpus(FileCorpus):
    """Read UTF-8 text from plain, gzip, bzip2 or zstd files, whose lines end in newlines or in lone carriage returns.

    Broken bytes become U+FFFD, control characters are removed, and empty documents and binary files in a folder are
    skipped; each is counted. A document of more than 16 MiB is read as several.
    """

    revision = 2

    class Config(FileCorpus.Config):
        """Keys of the corpus: the files and the separation of documents."""

        documents: Literal["lines", "blank_lines"] = Field(
            "lines", description="One document per line, or documents separated by blank lines."
        )

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._decode = self.characters.stage("decode")
        self._clean = self.characters.stage("clean")

    def parts(self) -> Sequence[Part]:
        """List ranges of large plain files; compressed and small files as a whole."""
        return parts_of_lines(self.files())

    def read(self, part: Part) -> Iterator[Document]:
        """Yield documents, each named `FILE:LINE` after its first line.

        In parts that begin in the middle of a file, lines are counted from there: `FILE@START:LINE`.
        """
        path = self.path_of(part)
        with open_counted(path) as (stream, raw_file):
            if self.skips_binary(part, path, head_of(stream)):
                return
            separate = _lines if self.config.documents == "lines" else _blocks
            pieces = separate(stream, path, part, self._decode)
            previous, piece = 0, 1
            for line, raw in pieces:
                piece = piece + 1 if line == previous else 1
                previous = line
                text = clean_text(decode_utf8(raw, self.report, self._decode), self.report, self._clean)
                self.bytes_read = raw_file.tell() - part.start
                if text:
                    yield self.continued(f"{part.name}:{line}", piece, text)
                else:
                    self.report["empty documents skipped"] += 1


def _lines(stream: IO[bytes], path: Path, part: Part, characters: CharacterStage) -> Iterator[tuple[int, bytes]]:
    for line in read_lines(stream, path, part.start, part.end, characters=characters):
        yield line.number, line.raw


def _blocks(stream: IO[bytes], path: Path, part: Part, characters: CharacterStage) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, lines up to a blank line); blocks over the limit are yielded in several pieces.

    A part extends to the first blank line at or after its end; the next part starts after that line.
    """
    block: list[bytes] = []
    size = start = 0
    begun = part.start == 0
    for line in read_lines(stream, path, part.start, None, characters=characters):
        beyond = part.end is not None and line.start >= part.end
        if not line.raw.strip(WHITE_SPACE):
            if begun:
                characters.refuse("blank lines", len(line.raw))
            if block:
                yield start, b"".join(block)
            block, size, begun = [], 0, True
        elif begun:
            if block and size + len(line.raw) > file_corpus.MAX_DOCUMENT_BYTES:
                yield start, b"".join(block)
                block, size = [], 0
            elif not block:
                start = line.number
            block.append(line.raw)
            size += len(line.raw)
        if beyond and not block:
            return
    if block:
        yield start, b"".join(block)
