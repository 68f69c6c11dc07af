"""A folder tree of text files, each of which is a book."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pydantic import Field, field_validator

from kdcore import DataError, Document, Part
from kdcore_preparation.readers import file_corpus
from kdcore_preparation.readers.cleaning import clean_text
from kdcore_preparation.readers.file_corpus import FileCorpus
from kdcore_preparation.readers.input_files import open_counted
from kdcore_preparation.readers.input_streams import read_some

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, because this mark starts with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
READ_AS = "books read as "
"""Prefix of the report entries that count books by encoding."""

_SAMPLE_BYTES = 64 * 1024
_CHUNKS = 10  # number of pieces into which the detector divides a sample
_LATIN = (
    *(f"iso8859_{part}" for part in (1, 2, 3, 4, 9, 10, 13, 14, 15, 16)),
    *(f"cp125{page}" for page in (0, 2, 4, 7, 8)),
)
_COMMON = "cp1252"  # preferred among encodings that fit equally well
_LEAST_COHERENCE = 0.1
_CHAOS = 0.02  # smaller differences in the detector's measure of disorder are ignored
# 7-bit encodings that switch between character sets by escape sequences.
_SWITCHED = (
    (re.compile(rb"\x1b\$\)C"), ("iso2022_kr",)),
    (
        re.compile(rb"\x1b(?:\$(?:[@AB]|\([@-DO-Q])|\(I)"),
        ("iso2022_jp", "iso2022_jp_2", "iso2022_jp_ext", "iso2022_jp_2004", "iso2022_jp_3"),
    ),
    (re.compile(rb"~\{(?:[!-w][!-~])+~\}"), ("hz",)),
)
_DESIGNATION = re.compile(rb"\x1b\$[()*+]?[@-Z]")
_ENCODING_HINT = "set `encoding`, or convert the file to UTF-8, e.g. with iconv"


class BooksCorpus(FileCorpus):
    """Read each text file below a folder as one document, in any encoding; files may be compressed.

    A byte order mark or the escape sequences of ISO 2022 determine the encoding. Text that is UTF-8 except for a few
    broken bytes is read as UTF-8. Any other encoding is detected. The number of books per encoding is reported, along
    with other encodings that match equally well. Broken bytes become U+FFFD, control characters are removed, and empty
    and binary files are skipped; each is counted. A book of more than 16 MiB is read as several documents. If a file is
    damaged, the text before the damage is read as a book.
    """

    revision = 2

    class Config(FileCorpus.Config):
        """Keys of the corpus."""

        encoding: str | None = Field(
            None, description="Python name of the encoding of all files; by default, each file's encoding is detected."
        )

        @field_validator("encoding")
        @classmethod
        def _known(cls, value: str | None) -> str | None:
            if value is not None:
                try:
                    codecs.lookup(value)
                except LookupError as error:
                    raise ValueError(
                        f"unknown encoding `{value}` (expected Python's name of an encoding, such as utf-8 or cp1252)"
                    ) from error
            return value

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._decode = self.characters.stage("decode")
        self._clean = self.characters.stage("clean")

    def read(self, part: Part) -> Iterator[Document]:
        """Yield the book of a file, named after the file."""
        path = self.path_of(part)
        with open_counted(path) as (stream, raw_file):
            source = _Source(stream)
            raw = source.read()
            encoding = self.config.encoding or _marked(raw) or _wide(raw) or _switched(raw, path)
            if encoding is None and self.skips_binary(part, path, raw[:4096]):
                return
            encoding, others = (encoding, "") if encoding else _detected(raw, path)
            self.report[f"{READ_AS}{codecs.lookup(encoding).name}{others}"] += 1
            any_text = False
            for number, piece in enumerate(self._pieces(raw, source, encoding), start=1):
                text = clean_text(piece, self.report, self._clean)
                self.bytes_read = raw_file.tell()
                if text:
                    any_text = True
                    yield self.continued(part.name, number, text)
            if not any_text:
                self.report["empty documents skipped"] += 1
            source.raise_damage()

    def _pieces(self, raw: bytes, source: _Source, encoding: str) -> Iterator[str]:
        """Yield the text of a file, cut at white space if it is too long for one document."""
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        stage = self._decode
        name = codecs.lookup(encoding).name
        if any(raw.startswith(mark) for mark, taking in _MARKS.items() if taking == name):
            stage.refuse("byte order mark", 1)
        carried = ""
        while raw:
            following = source.read()
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
    """Detect UTF-16 without a byte order mark: every other byte is 0 in Latin scripts."""
    head = raw[:_SAMPLE_BYTES]
    low, high = head[0::2].count(0), head[1::2].count(0)
    if high > len(head) // 4 and low < high // 8:
        return "utf-16-le"
    return "utf-16-be" if low > len(head) // 4 and high < low // 8 else None


def _switched(raw: bytes, path: Path) -> str | None:
    """Detect ISO-2022-JP, ISO-2022-KR and HZ, which use only ASCII bytes.

    Raises:
        DataError: the escape sequences belong to a different encoding.
    """
    if not raw.isascii():
        return None
    for sequence, encodings in _SWITCHED:
        if sequence.search(raw):
            found = next((encoding for encoding in encodings if _decodes(raw, encoding)), None)
            if found is not None:
                return found
    if _DESIGNATION.search(raw):
        raise DataError(
            "has escape sequences of ISO 2022, but the encoding could not be detected",
            where=str(path),
            hint=_ENCODING_HINT,
        )
    return None


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(raw)  # may end within a character
    except UnicodeError:
        return False
    return True


def _detected(raw: bytes, path: Path) -> tuple[str, str]:
    """Detect an encoding from the letters of the decoded text.

    Returns:
        The encoding, and a phrase that lists other encodings that match equally well.
    """
    text = codecs.getincrementaldecoder("utf-8")(errors="replace").decode(raw)  # may end within a character
    broken = text.count("\ufffd")
    # Text in other encodings contains hardly any valid multi-byte UTF-8.
    if not broken or broken * 10 < len(raw) - len(text):
        return "utf-8", ""
    from charset_normalizer import from_bytes

    foreign = b"\n".join(line for line in raw.split(b"\n") if not line.isascii())[:_SAMPLE_BYTES]
    matches = from_bytes(foreign, steps=_CHUNKS, chunk_size=_SAMPLE_BYTES // _CHUNKS)
    best = matches.best()
    if best is None:
        raise DataError("the encoding could not be detected", where=str(path), hint=_ENCODING_HINT)
    equal = [match for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence)]
    best = next((match for match in equal if match.encoding == _COMMON), best)
    close = [match for match in matches if match.chaos <= best.chaos + _CHAOS]
    others = {str(match): match.encoding for match in reversed(close)}
    if best.encoding in _LATIN:
        letters = _letters(str(best))
        for encoding in _LATIN:
            if _decodes(foreign, encoding) and _letters(same := foreign.decode(encoding)) >= letters:
                others.setdefault(same, encoding)
    others.pop(str(best), None)
    if others:
        return best.encoding, f", perhaps {', '.join(sorted(others.values()))}"
    return best.encoding, ", unsure" if best.coherence < _LEAST_COHERENCE else ""


def _letters(text: str) -> float:
    """Return the fraction of letters among the characters that are not ASCII."""
    foreign = [character for character in text if character > "\x7f"]
    return sum(map(str.isalpha, foreign)) / max(1, len(foreign))


class _Source:
    """Read a file in document-sized pieces, up to the first damage; `raise_damage` raises the error for it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._damage: Exception | None = None

    def read(self) -> bytes:
        """Read the next piece; empty at the end or at damage."""
        if self._damage is not None:
            return b""
        content, self._damage = read_some(self._stream, file_corpus.MAX_DOCUMENT_BYTES)
        return content

    def raise_damage(self) -> None:
        """Raise the error caused by the damage, if any.

        Raises:
            EOFError, OSError, zlib.error: the file is damaged.
        """
        if self._damage is not None:
            raise self._damage
