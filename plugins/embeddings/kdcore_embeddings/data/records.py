"""Read columns of records from text, csv, tsv, JSON Lines and Parquet files, and from the library `datasets`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdcore_preparation import (
    RECORD_FORMATS,
    DatasetSource,
    RecordTable,
    decoded_lines,
    file_format,
    load_source,
    open_input,
    read_records,
    require_columns,
    table_files,
)

from kdcore import DataError

_TEXT = (".txt", ".text", ".cor")
FORMATS = (*_TEXT, *RECORD_FORMATS)


def read_files(path: str, columns: Sequence[str], report: Counter[str]) -> Iterator[RecordTable]:
    """Read columns of a file, of all files in a folder, or of all files that match a glob.

    Each line of a text file is a text. For text files, `columns` contains one name, under which texts are returned.

    Args:
        path: the files.
        columns: columns that must exist.
        report: counts of repaired or left-out content.

    Raises:
        DataError: a file is missing, damaged or of an unknown format, or a column is missing.
    """
    files = table_files(path)
    report.update(files.left_out)
    for file in files.values():
        if file_format(file) in _TEXT:
            yield _read_lines(file, columns, report)
        else:
            yield read_records(file, columns, report, other_formats=_TEXT)


def read_dataset(source: DatasetSource, split: str, columns: Sequence[str], key: str) -> RecordTable:
    """Read columns of a split of a dataset.

    Raises:
        DataError: the library, the dataset, the split or a column is missing.
    """
    loaded = load_source(source, key=key)
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    if split not in loaded:
        raise DataError(f"the dataset has no split `{split}`", where=source.where, key=key, allowed=list(loaded))
    found, where = loaded[split], f"{source.where}, {split}"
    require_columns(where, found.column_names, columns)
    return RecordTable(where, "row", range(len(found)), {column: list(found[column]) for column in columns})


def _read_lines(path: Path, columns: Sequence[str], report: Counter[str]) -> RecordTable:
    if len(columns) > 1:
        raise DataError(
            f"a text file has one text on each line (found {', '.join(columns)} as columns under `task.data`)",
            where=str(path),
            hint="use csv, tsv, jsonl or parquet for texts that belong together",
        )
    with open_input(path) as stream:
        values = [line.rstrip("\r\n") for line in decoded_lines(stream, report, str(path))]
    return RecordTable(str(path), "line", range(1, len(values) + 1), {columns[0]: values})
