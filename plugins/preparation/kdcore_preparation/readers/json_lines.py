"""JSON Lines: one JSON object per line, with the text in one field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

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

MAX_RECORD_BYTES = 64 * 2**20
"""A longer line is not read: JSON cannot be cut."""


class JsonLinesCorpus(FileCorpus):
    """Read a text field of JSON objects, one per line, from plain, gzip, bzip2 or zstd files.

    Broken bytes become U+FFFD, control characters are removed, objects whose text is empty or null and binary files in
    a folder are skipped; each is counted. Other lines are left out and raise an error at the end.
    """

    class Config(FileCorpus.Config):
        """Keys of the corpus: the files and the field of the text."""

        field: str = Field("text", min_length=1, description="Key of the text in each object.")

    config: Config

    def parts(self) -> Sequence[Part]:
        """List ranges of large plain files; compressed and small files as a whole."""
        return parts_of_lines(self.files())

    def read(self, part: Part) -> Iterator[Document]:
        """Yield documents named `FILE:LINE`; in parts that begin in the middle of a file `FILE@START:LINE`."""
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
            for line in read_lines(stream, path, part.start, part.end, MAX_RECORD_BYTES):
                if line.number == skipped:
                    continue
                found = self._text(line.raw) if line.complete else ValueError("is longer than 64 MiB")
                self.bytes_read = raw_file.tell() - part.start
                if isinstance(found, str):
                    good += 1
                    yield from self.finished(f"{part.name}:{line.number}", found)
                elif found is not None:
                    skipped = line.number
                    bad.add(f"line {line_in_file(path, part, line)}", str(found), good=good)
        bad.raise_if_any()

    def _text(self, raw: bytes) -> str | ValueError | None:
        """Return the text of a line; None for a blank line; else a description of what is wrong."""
        line = decode_utf8(raw, self.report).strip()
        if not line:
            return None
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            return ValueError(f"is not JSON: {error}")
        if not isinstance(record, dict):
            return ValueError(f"is not a JSON object (found {type(record).__name__})")
        if self.config.field not in record:
            return ValueError(
                f'has no field "{self.config.field}", only {", ".join(list(record)[:10]) or "none at all"}'
            )
        text = record[self.config.field]
        if text is None:
            return ""
        if not isinstance(text, str):
            return ValueError(f'has no text under "{self.config.field}" (found {type(text).__name__})')
        return text
