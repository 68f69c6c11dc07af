"""The corpus reader `veteran`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from kdcore import Corpus, CorpusConfig, DataError, Document, PathString, input_files, open_input


class VeteranCorpus(Corpus):
    """Reads JSON lines: one object a line, its text under one key. Files may be compressed with gzip or bzip2."""

    class Config(CorpusConfig):
        """Keys of its entry in `corpora`."""

        path: PathString = Field(description="A file, a folder of files, or a glob.")
        field: str = Field("text", description="The key of each object that holds the text.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def files(self) -> Mapping[str, Path]:
        """Files by their names below `path`."""
        return input_files(self.config.path)

    def documents(self) -> Iterator[Document]:
        """One document an object, named `FILE:LINE`."""
        for name, path in self.files().items():
            with open_input(path) as stream:
                for number, line in enumerate(stream, start=1):
                    if not line.strip():
                        continue
                    text = self._text(line, f"{path}:{number}").replace("\0", "").strip()
                    if text:
                        yield Document(f"{name}:{number}", text)
                    else:
                        self.report["empty documents skipped"] += 1

    def _text(self, line: bytes, where: str) -> str:
        try:
            text = json.loads(line)[self.config.field]
        except (ValueError, KeyError, TypeError) as error:
            hint = f"each line has to be a JSON object with the key `{self.config.field}`"
            raise DataError("the line has no text", where=where, hint=hint) from error
        if not isinstance(text, str):
            raise DataError(f"`{self.config.field}` is no text but {type(text).__name__}", where=where)
        return text
