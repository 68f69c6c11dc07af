"""Parquet files with a column of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from kdcore import PART_BYTES, DataError, Document, Part, first_line
from kdcore_preparation.readers.file_corpus import FileCorpus
from kdcore_preparation.readers.file_listing import InputFiles
from kdcore_preparation.readers.input_files import table_files

_BATCH_ROWS = 256


class ParquetCorpus(FileCorpus):
    """Read a column of texts from Parquet files, row by row.

    Control characters are removed, and rows whose text is empty or null are skipped; each is counted. A text of more
    than 16 million characters is read as several documents.
    """

    class Config(FileCorpus.Config):
        """Keys of the corpus: the files and the column of the text."""

        column: str = Field("text", min_length=1, description="Name of the column of texts.")

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.characters.stage("clean")
        self.characters.stage("cut")

    def files(self) -> InputFiles:
        """List the files by name, without the auxiliary files that Spark writes next to them."""
        return table_files(self.config.path)

    def parts(self) -> Sequence[Part]:
        """List the row groups of the files, with small ones joined."""
        parts: list[Part] = []
        for name, path in self.files().items():
            try:
                with _opened(path) as file:
                    parts += _parts(name, file.metadata)
            except DataError:
                parts.append(Part(name, path.stat().st_size, name))  # the error is raised when it is read
        return parts

    def read(self, part: Part) -> Iterator[Document]:
        """Yield documents named `FILE:ROW`."""
        import pyarrow

        path = self.path_of(part)
        with _opened(path) as file:
            self._check_column(file.schema_arrow, path)
            groups = range(part.start, file.num_row_groups if part.end is None else part.end)
            row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
            whole = sum(file.metadata.row_group(group).num_rows for group in groups)
            first = row
            try:
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[self.config.column]):
                    for text in batch.column(0).to_pylist():
                        yield from self.finished(f"{part.file}:{row}", text or "")
                        row += 1
                    self.bytes_read = part.bytes * (row - first) // whole
            except (pyarrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise _damaged(path, error, f" after row {row}") from error

    def _check_column(self, schema: Any, path: Path) -> None:
        from pyarrow import types

        if self.config.column not in schema.names:
            raise DataError(
                f"has no column `{self.config.column}`",
                where=str(path),
                allowed=schema.names,
                hint="set `column` to the one that contains the text",
            )
        kind = schema.field(self.config.column).type
        inner = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)):
            raise DataError(
                f"the column `{self.config.column}` holds {kind}, not text",
                where=str(path),
                allowed=[field.name for field in schema if types.is_string(field.type)] or "a column of strings",
            )


def _opened(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
        raise _damaged(path, error, "") from error


def _parts(name: str, metadata: Any) -> Iterator[Part]:
    start = size = 0
    for group in range(metadata.num_row_groups):
        content = metadata.row_group(group)
        size += sum(content.column(column).total_compressed_size for column in range(content.num_columns))
        last = group + 1 == metadata.num_row_groups
        if size >= PART_BYTES or last:
            label = f"{name}@{start}" if start else name
            yield Part(label, size, name, start, None if last else group + 1)
            start, size = group + 1, 0


def _damaged(path: Path, error: Exception, where: str) -> DataError:
    return DataError(
        f"is damaged or not a Parquet file{where} ({first_line(error)})",
        where=str(path),
        hint="download the file again and compare its size and checksum with those of its source",
    )
