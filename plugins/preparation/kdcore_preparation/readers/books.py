"""A folder tree of text files, each of which is a book."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pydantic import Field, field_validator

from kdcore import DataError, Document, Part
from kdcore_preparation.readers import file_corpus
from kdcore_preparation.readers.cleaning import clean_text
from kdcore_preparation.readers.file_corpus import FileCorpus
from kdcore_preparation.readers.input_files import open_counted

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAMPLE_BYTES = 64 * 1024
_CHUNKS = 10  # number of pieces into which the detector divides a sample
_ENCODING_HINT = "set `encoding`, or convert the file to UTF-8, e.g. with iconv"


class BooksCorpus(FileCorpus):
    """Read each text file below a folder as one document, whatever its encoding; files may be compressed.

    A byte order mark decides the encoding; text that is UTF-8 except for a few broken bytes is read as UTF-8; any
    other encoding is detected. The number of books per encoding is reported. Broken bytes become U+FFFD, control
    characters are removed, empty and binary files are skipped; each is counted. A book of more than 16 MiB is read
    as several documents.
    """

    class Config(FileCorpus.Config):
        """Keys of the corpus."""

        encoding: str | None = Field(
            None, description="Encoding of all files, by its name in Python; by default detected for each file."
        )

        @field_validator("encoding")
        @classmethod
        def _known(cls, value: str | None) -> str | None:
            if value is not None:
                try:
                    codecs.lookup(value)
                except LookupError as error:
                    raise ValueError(
                        f"unknown encoding `{value}` (expected a name in Python, such as utf-8 or cp1252)"
                    ) from error
            return value

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._decode = self.characters.stage("decode")
        self._clean = self.characters.stage("clean")

    def read(self, part: Part) -> Iterator[Document]:
        """Yield a book, named after its file."""
        path = self.path_of(part)
        with open_counted(path) as (stream, raw_file):
            raw = stream.read(file_corpus.MAX_DOCUMENT_BYTES)
            encoding = self.config.encoding or _marked(raw)
            if encoding is None and self.skips_binary(part, path, b"" if _wide(raw) else raw[:4096]):
                return
            encoding = encoding or _detected(raw, path)
            self.report[f"books read as {codecs.lookup(encoding).name}"] += 1
            any_text = False
            for number, piece in enumerate(self._pieces(raw, stream, encoding), start=1):
                text = clean_text(piece, self.report, self._clean)
                self.bytes_read = raw_file.tell()
                if text:
                    any_text = True
                    yield self.continued(part.name, number, text)
            if not any_text:
                self.report["empty documents skipped"] += 1

    def _pieces(self, raw: bytes, stream: IO[bytes], encoding: str) -> Iterator[str]:
        """Yield the text of a file, cut at white space where it exceeds one document."""
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        stage = self._decode
        name = codecs.lookup(encoding).name
        if any(raw.startswith(mark) for mark, taking in _MARKS.items() if taking == name):
            stage.refuse("byte order mark", 1)
        carried = ""
        while raw:
            following = stream.read(file_corpus.MAX_DOCUMENT_BYTES)
            decoded = decoder.decode(raw, final=not following)
            if "\ufffd" in decoded:
                broken = decoded.count("\ufffd")
                self.report["characters that were broken or unknown replaced"] += broken
                stage.rewrite("broken or unknown characters", broken, broken)
            text = carried + decoded
            cut = max(text.rfind(" "), text.rfind("\n")) if following else -1
            cut = cut if cut > 0 else len(text)
            piece = text[:cut]
            stage.received += len(piece)
            stage.passed += len(piece)
            yield piece
            carried = text[cut:]
            raw = following


def _marked(raw: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS.items() if raw.startswith(mark)), None)


def _wide(raw: bytes) -> str | None:
    """Detect UTF-16 without a byte order mark: in Latin scripts every other byte is 0."""
    head = raw[:_SAMPLE_BYTES]
    low, high = head[0::2].count(0), head[1::2].count(0)
    if high > len(head) // 4 and low < high // 8:
        return "utf-16-le"
    return "utf-16-be" if low > len(head) // 4 and high < low // 8 else None


def _detected(raw: bytes, path: Path) -> str:
    if wide := _wide(raw):
        return wide
    text = codecs.getincrementaldecoder("utf-8")(errors="replace").decode(raw)  # may end within a character
    broken = text.count("\ufffd")
    # Text in other encodings contains hardly any valid multi-byte UTF-8.
    if not broken or broken * 10 < len(raw) - len(text):
        return "utf-8"
    from charset_normalizer import from_bytes

    foreign = b"\n".join(line for line in raw.split(b"\n") if not line.isascii())
    match = from_bytes(foreign[:_SAMPLE_BYTES], steps=_CHUNKS, chunk_size=_SAMPLE_BYTES // _CHUNKS).best()
    if match is None:
        raise DataError("the encoding could not be detected", where=str(path), hint=_ENCODING_HINT)
    return match.encoding
