"""JSON Lines: one JSON object per line, with the text in one field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from kdcore import Document, Part
from kdcore_preparation.readers.cleaning import decode_utf8
from kdcore_preparation.readers.file_corpus import (
    BadRecords,
    FileCorpus,
    head_of,
    line_in_file,
    parts_of_lines,
    read_lines,
)
from kdcore_preparation.readers.input_files import open_counted
from kdcore_preparation.readers.json_records import json_record, repeated_key

_PAST_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

MAX_RECORD_BYTES = 64 * 2**20
"""Longer lines are not read, because JSON cannot be cut."""

_UNUSABLE = "records that cannot be used"


class JsonLinesCorpus(FileCorpus):
    """Read a text field of JSON objects, one per line, from plain, gzip, bzip2 or zstd files.

    Broken bytes become U+FFFD, and control characters are removed. Objects whose text is empty or null are skipped, as
    are binary files in a folder. All of these are counted. Other lines, such as lines that repeat the key, are left
    out, and an error is raised at the end.
    """

    class Config(FileCorpus.Config):
        """Keys of the corpus: the files and the field of the text."""

        field: str = Field("text", min_length=1, description="Key of the text in each object.")

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._decode = self.characters.stage("decode")
        self._json = self.characters.stage("JSON")
        self.characters.stage("clean")
        self.characters.stage("cut")

    def parts(self) -> Sequence[Part]:
        """List ranges of large plain files; compressed and small files as a whole."""
        return parts_of_lines(self.files())

    def read(self, part: Part) -> Iterator[Document]:
        """Yield documents named `FILE:LINE`; in parts that begin in the middle of a file, `FILE@START:LINE`."""
        path = self.path_of(part)
        bad = BadRecords(
            path,
            allowed=f'one JSON object per line, with its text under "{self.config.field}"',
            hint="set `field` to the key of the text, or repair the file",
        )
        with open_counted(path) as (stream, raw_file):
            if self.skips_binary(part, path, head_of(stream)):
                return
            good = skipped = 0
            for line in read_lines(stream, path, part.start, part.end, MAX_RECORD_BYTES, self._decode):
                text = decode_utf8(line.raw, self.report, self._decode)
                self._json.received += len(text)
                if line.number == skipped:
                    self._json.drop(_UNUSABLE, len(text))
                    continue
                found = self._text(text) if line.complete else ValueError("is longer than 64 MiB")
                self.bytes_read = raw_file.tell() - part.start
                if isinstance(found, str):
                    good += 1
                    self._json.passed += len(found)
                    yield from self.finished(f"{part.name}:{line.number}", found)
                elif found is not None:
                    skipped = line.number
                    self._json.drop(_UNUSABLE, len(text))
                    bad.add(f"line {line_in_file(path, part, line)}", str(found), good=good)
        bad.raise_if_any()

    def _text(self, line: str) -> str | ValueError | None:
        """Return the text of a line, None for a blank line, or a ValueError that describes the problem."""
        if not line or line.isspace():
            self._json.drop("blank lines", len(line))
            return None
        try:
            record = json_record(line.strip(), ())  # repeated keys of texts are found with their length, in one pass
            text = record.get(self.config.field)
            if isinstance(text, str):
                literal = _length_of_literal(line, self.config.field)
            else:
                json_record(line.strip(), [self.config.field])
        except ValueError as error:
            return error
        if self.config.field not in record:
            return ValueError(f'has no field "{self.config.field}", only {", ".join(list(record)[:10]) or "none"}')
        if text is None:
            self._json.drop("records whose text is null", len(line))
            return ""
        if not isinstance(text, str):
            return ValueError(f'has no text under "{self.config.field}" (found {type(text).__name__})')
        self._json.drop("other fields and syntax", len(line) - literal)
        if literal != len(text):
            self._json.rewrite("escapes", literal, len(text))
        return text


def _length_of_literal(line: str, field: str) -> int:
    """Return the number of characters between the quotes of a string in an object.

    Args:
        line: the object, known to be valid JSON with a string under `field`.
        field: the key.

    Raises:
        ValueError: the object has the key more than once; the message is the same as in `json_record`.
    """
    length = -1
    place = line.index("{")
    while line[place] != "}":
        key, place = _DECODER.raw_decode(line, _past_white_space(line, place + 1))
        start = _past_white_space(line, _past_white_space(line, place) + 1)  # past the colon
        _, place = _DECODER.raw_decode(line, start)
        if key == field:
            if length >= 0:
                raise ValueError(repeated_key(key))
            length = place - start - 2
        place = _past_white_space(line, place)
    return length


def _past_white_space(line: str, place: int) -> int:
    found = _PAST_WHITE_SPACE.match(line, place)
    return place if found is None else found.end()
