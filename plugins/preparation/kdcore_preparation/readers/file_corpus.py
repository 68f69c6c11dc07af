"""Common code for readers of files: parts of large files, lines of bounded length, bad records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import Field

from kdcore import PART_BYTES, Corpus, CorpusConfig, DataError, Document, Part, PathString, TokenizedSequences
from kdcore_preparation.readers.character_account import CharacterAccount, CharacterStage
from kdcore_preparation.readers.cleaning import clean_text, cut_text
from kdcore_preparation.readers.file_listing import InputFiles
from kdcore_preparation.readers.input_files import UTF16_MARKS, input_files, is_plain, refuse_utf16
from kdcore_preparation.readers.input_streams import universal_lines

MAX_DOCUMENT_BYTES = 16 * 2**20
"""A longer document is read as several, cut at white space, so that memory stays bounded."""

WHITE_SPACE = b" \t\n\r\v\f"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTROL = bytes({*range(32), 127} - set(b"\b\t\n\v\f\r\x1b"))
_HEAD = 4096
_MOST_BAD_AT_FIRST = 100


class PartedCorpus(Corpus):
    """Base class for readers that read their parts in order and count their characters."""

    characters: CharacterAccount

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.characters = CharacterAccount()

    def documents(self) -> Iterator[Document | TokenizedSequences]:
        """Yield the documents of all parts."""
        for part in self.parts():
            yield from self.read(part)

    def finished(self, name: str, text: str) -> Iterator[Document]:
        """Clean a text and yield its documents: none if it is empty, several if it is very long.

        Changes are counted in the report, and characters at the stages `clean` and `cut`.
        """
        text = clean_text(text, self.report, self.characters.stage("clean"))
        if not text:
            self.report["empty documents skipped"] += 1
        stage = self.characters.stage("cut")
        pieces = []
        for piece in cut_text(text, MAX_DOCUMENT_BYTES):
            stripped = piece.strip()
            stage.received += len(piece)
            stage.passed += len(stripped)
            if len(stripped) != len(piece):
                stage.drop("white space at cuts", len(piece) - len(stripped))
            if stripped:
                pieces.append(stripped)
        for number, piece in enumerate(pieces, start=1):
            yield self.continued(name, number, piece)

    def continued(self, name: str, number: int, text: str) -> Document:
        """Return piece `number` of a document that may have been cut."""
        if number == 1:
            return Document(name, text)
        self.report["documents continued as another one, being very long"] += 1
        return Document(f"{name}#{number}", text)


class FileCorpus(PartedCorpus):
    """Base class for readers of files that contain documents."""

    class Config(CorpusConfig):
        """Keys of the corpus."""

        path: PathString = Field(description="A file, a folder of files, or a glob.")

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._paths: Mapping[str, Path] = {}

    def files(self) -> Mapping[str, Path]:
        """List files by their names below `path`."""
        return input_files(self.config.path)

    def path_of(self, part: Part) -> Path:
        """Return the file of a part; for the first part, also count the entries that are not input files.

        Files are listed only once, because a folder may contain many files, each of which is a part.
        """
        if part.file not in self._paths:
            self._paths = self.files()
        if part.start == 0 and part.file == next(iter(self._paths)) and isinstance(self._paths, InputFiles):
            self.report.update(self._paths.left_out)
        return self._paths[part.file]

    def parts(self) -> Sequence[Part]:
        """Return one part for each file."""
        return [Part(name, path.stat().st_size, name) for name, path in self.files().items()]

    def skips_binary(self, part: Part, path: Path, head: bytes) -> bool:
        """Return whether to skip a file because it is binary, and count each skipped file once.

        Raises:
            DataError: the file was named explicitly, not found in a folder.
        """
        if not looks_binary(head):
            return False
        if Path(self.config.path).is_file():
            raise DataError(
                "is binary data, not text",
                where=str(path),
                allowed="text, also compressed with gzip, bzip2 or zstd",
                hint="list the files that contain text, for example with a glob such as texts/*.txt",
            )
        if part.start == 0:
            self.report["binary files skipped"] += 1
        return True


def parts_of_lines(files: Mapping[str, Path]) -> list[Part]:
    """List parts of files that can be read from any line: ranges of large plain files, and whole compressed files."""
    parts: list[Part] = []
    for name, path in files.items():
        size = path.stat().st_size
        if size > PART_BYTES and is_plain(path):
            parts += ranges(name, size, PART_BYTES)
        else:
            parts.append(Part(name, size, name))
    return parts


def ranges(name: str, size: int, step: int) -> Iterator[Part]:
    """Divide a file into parts of `step` bytes."""
    for start in range(0, size, step):
        end = start + step
        yield Part(
            f"{name}@{start}" if start else name, min(end, size) - start, name, start, end if end < size else None
        )


class Line(NamedTuple):
    """A line of a file, or a piece of one.

    Attributes:
        number: number of the line, counted from 1 at the start of the part.
        start: position of the line's start in the (unpacked) file.
        raw: bytes of the line or piece.
        complete: whether the line ends with these bytes.
    """

    number: int
    start: int
    raw: bytes
    complete: bool


def read_lines(
    stream: IO[bytes],
    path: Path,
    start: int,
    end: int | None,
    limit: int | None = None,
    characters: CharacterStage | None = None,
) -> Iterator[Line]:
    """Yield the lines that start between `start` and `end`; a line over `limit` bytes is yielded in several pieces.

    Lines end in newlines or, as on old Macintoshes, in lone carriage returns; see `universal_lines`. A byte order mark
    at the start of the file is left out and counted in `characters`.

    Raises:
        DataError: the file is UTF-16.
    """
    limit = MAX_DOCUMENT_BYTES if limit is None else limit
    stream = universal_lines(stream)
    position = _first_line(stream, start, end)
    at_first = position == 0
    number, line_start, carried, within = 1, position, b"", False
    while (within or end is None or position < end) and (read := stream.readline(asked := limit - len(carried))):
        position += len(read)
        complete = read.endswith(b"\n") or len(read) < asked
        line = carried + (_without_byte_order_mark(read, path, characters) if at_first else read)
        at_first = False
        if complete:
            yield Line(number, line_start, line, True)
            number, line_start, carried = number + 1, position, b""
        else:
            cut = _cut(line)
            yield Line(number, line_start, line[:cut], False)
            carried = line[cut:]
        within = not complete
    if carried:
        yield Line(number, line_start, carried, True)


def line_in_file(path: Path, part: Part, line: Line) -> int:
    """Return the number of a part's line, counted from the start of the file."""
    if part.start == 0:
        return line.number
    before = 0
    left = line.start
    with path.open("rb") as file:
        lines = universal_lines(file)
        while left and (read := lines.read(min(left, 2**20))):
            before += read.count(b"\n")
            left -= len(read)
    return before + 1


class BadRecords:
    """Collect the unusable records of a part; the other records are read, and an error is raised at the end.

    Args:
        path: the file.
        allowed: description of valid records, for the error.
        hint: hint of the error.
    """

    def __init__(self, path: Path, allowed: str, hint: str) -> None:
        self._path = path
        self._allowed = allowed
        self._hint = hint
        self._first = ""
        self._count = 0

    def add(self, place: str, what: str, *, good: int) -> None:
        """Note a bad record.

        Args:
            place: line or row.
            what: description of the problem.
            good: number of good records so far; if the first hundred are all bad, reading stops.
        """
        self._first = self._first or f"{place} {what}"
        self._count += 1
        if not good and self._count >= _MOST_BAD_AT_FIRST:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raise an error if bad records were noted.

        Raises:
            DataError: a record was bad.
        """
        if self._count:
            more = f", and {self._count - 1:,} more like it" if self._count > 1 else ""
            raise DataError(self._first + more, where=str(self._path), allowed=self._allowed, hint=self._hint)


def looks_binary(head: bytes) -> bool:
    """Return whether a file is binary because it contains many control characters.

    About 10% of the bytes of compressed or executable data are control characters. Small compressed files are
    recognised by their first two bytes.
    """
    if head.startswith(UTF16_MARKS):
        return False  # readers of UTF-8 report UTF-16 themselves
    controls = len(head) - len(head.translate(None, _CONTROL))
    return controls > max(16, len(head) // 33) or head.startswith((b"%PDF-", b"\x1f\x8b"))


def head_of(stream: IO[bytes]) -> bytes:
    """Peek at the first bytes of an opened file."""
    peek: bytes = stream.peek(_HEAD)  # type: ignore[attr-defined]
    return peek[:_HEAD]


def _first_line(stream: IO[bytes], start: int, end: int | None) -> int:
    """Seek to the first line that starts at `start` or later, but before `end`, where another part begins."""
    if not start:
        return 0
    position = start - 1
    stream.seek(position)
    while read := stream.readline(2**20):
        position += len(read)
        if read.endswith(b"\n") or (end is not None and position >= end):
            break
    return position


def _cut(line: bytes) -> int:
    """Find where to cut an overlong line: after its last white space, or else between two UTF-8 characters."""
    at = max(line.rfind(bytes([character])) for character in WHITE_SPACE)
    if at > 0:
        return at + 1
    end = len(line) - 1
    while end > len(line) - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _without_byte_order_mark(line: bytes, path: Path, characters: CharacterStage | None) -> bytes:
    refuse_utf16(line, str(path))
    if not line.startswith(_BYTE_ORDER_MARK):
        return line
    if characters is not None:
        characters.refuse("byte order mark", 1)
    return line.removeprefix(_BYTE_ORDER_MARK)
