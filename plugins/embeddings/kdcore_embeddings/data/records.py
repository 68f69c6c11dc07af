"""Read columns of records from text, csv, tsv, JSON Lines and Parquet files, and from the library `datasets`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore_preparation import (
    COMPRESSED_ENDINGS,
    DatasetSource,
    MergedRows,
    TableRow,
    check_header,
    decoded_lines,
    file_format,
    json_record,
    load_source,
    open_input,
    quoted_records,
    split_records,
    table_files,
)

from kdcore import DataError, first_line

_TEXT = (".txt", ".text", ".cor")
FORMATS = (*_TEXT, ".csv", ".tsv", ".jsonl", ".json", ".parquet")
_SHOWN = 3


@dataclass(frozen=True)
class TextRecords:
    """Columns of records.

    Attributes:
        where: file or dataset.
        unit: `line` or `row`, used in messages.
        numbers: line or row number of each record.
        columns: the values of each column that was read.
    """

    where: str
    unit: str
    numbers: Sequence[int]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.numbers)


class RecordMistakes:
    """Collect mistakes in records and report them in one error.

    Args:
        where: file or dataset.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0
        self._first: list[str] = []

    def add(self, what: str) -> None:
        """Add a mistake."""
        self._count += 1
        if len(self._first) < _SHOWN:
            self._first.append(what)

    def raise_if_any(self, hint: str) -> None:
        """Report all mistakes, if there are any.

        Raises:
            DataError: a mistake was added.
        """
        if self._count:
            more = f", and {self._count - len(self._first)} more" if self._count > len(self._first) else ""
            what = f"{self._count} records cannot be used: {'; '.join(self._first)}{more}"
            raise DataError(what, where=self._where, hint=hint)


def read_files(path: str, columns: Sequence[str], report: Counter[str]) -> Iterator[TextRecords]:
    """Read columns of a file, of all files in a folder, or of all files that match a glob.

    Each line of a text file is a text. For text files, `columns` must contain a single name, which becomes the name of
    the column of texts.

    Args:
        path: the files.
        columns: columns that must exist.
        report: receives the counts of repaired and skipped content.

    Raises:
        DataError: a file is missing, damaged or of an unknown format, or a column is missing.
    """
    files = table_files(path)
    report.update(files.left_out)
    for file in files.values():
        yield _read_file(file, columns, report)


def read_dataset(source: DatasetSource, split: str, columns: Sequence[str], key: str) -> TextRecords:
    """Read columns of a split of a dataset.

    Raises:
        DataError: the library, the dataset, the split or a column is missing.
    """
    loaded = load_source(source, key=key)
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    if split not in loaded:
        raise DataError(f"the dataset has no split `{split}`", where=source.where, key=key, allowed=list(loaded))
    found = loaded[split]
    _require(f"{source.where}, {split}", found.column_names, columns)
    values = {column: list(found[column]) for column in columns}
    return TextRecords(f"{source.where}, {split}", "row", range(len(found)), values)


def _read_file(path: Path, columns: Sequence[str], report: Counter[str]) -> TextRecords:
    ending = file_format(path)
    if ending not in FORMATS:
        raise DataError(
            "the file name does not end with a known format",
            where=str(path),
            allowed=f"names that end with {', '.join(FORMATS)}, compressed or not ({', '.join(COMPRESSED_ENDINGS)})",
        )
    if ending == ".parquet":
        return _read_parquet(path, columns)
    with open_input(path) as stream:
        lines = decoded_lines(stream, report, str(path))
        if ending in _TEXT:
            return _read_lines(path, lines, columns)
        if ending in (".csv", ".tsv"):
            return _read_table(path, lines, "," if ending == ".csv" else "\t", columns, report)
        return _read_json_lines(path, lines, columns)


def _read_lines(path: Path, lines: Iterator[str], columns: Sequence[str]) -> TextRecords:
    if len(columns) > 1:
        raise DataError(
            f"a text file has one text per line and no columns (found columns {', '.join(columns)} in `task.data`)",
            where=str(path),
            hint="use csv, tsv, jsonl or parquet for groups of texts and for translations",
        )
    values = [line.rstrip("\r\n") for line in lines]
    return TextRecords(str(path), "line", range(1, len(values) + 1), {columns[0]: values})


def _read_table(
    path: Path, lines: Iterator[str], delimiter: str, columns: Sequence[str], report: Counter[str]
) -> TextRecords:
    """Read separated values: csv with double quotes, tsv without quotes."""
    where = str(path)
    records = quoted_records(lines, delimiter, where) if delimiter == "," else split_records(lines, delimiter)
    first = next(records, TableRow(1, []))
    header = [name.strip() for name in first.values]
    check_header(first._replace(values=header), columns, delimiter, where)
    _require(where, header, columns)
    places = [header.index(column) for column in columns]
    merged_rows = MergedRows(where, len(header), None, delimiter, ())
    mistakes, numbers = RecordMistakes(where), list[int]()
    found: dict[str, list[Any]] = {column: [] for column in columns}
    for record in records:
        if len(record.values) != len(header):
            mistakes.add(f"line {record.line} has {len(record.values)} fields, the header {len(header)}")
            continue
        merged_rows.add(record)
        numbers.append(record.line)
        for column, place in zip(columns, places, strict=True):
            found[column].append(record.values[place])
    merged_rows.refuse(report)
    mistakes.raise_if_any("quote fields with separators or line breaks, or convert the file to jsonl")
    return TextRecords(where, "line", numbers, found)


def _read_json_lines(path: Path, lines: Iterator[str], columns: Sequence[str]) -> TextRecords:
    mistakes, numbers = RecordMistakes(str(path)), list[int]()
    found: dict[str, list[Any]] = {column: [] for column in columns}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json_record(line, columns)
        except ValueError as error:
            mistakes.add(f"line {number} {error}")
            continue
        if not numbers:
            _require(str(path), list(record), columns)
        missing = [column for column in columns if column not in record]
        if missing:
            mistakes.add(f"line {number} has no key `{missing[0]}`")
            continue
        numbers.append(number)
        for column in columns:
            found[column].append(record[column])
    mistakes.raise_if_any("each line has to be a JSON object with the same keys, each of them once")
    return TextRecords(str(path), "line", numbers, found)


def _read_parquet(path: Path, columns: Sequence[str]) -> TextRecords:
    import pyarrow
    from pyarrow import parquet

    try:
        _require(str(path), parquet.read_schema(path).names, columns)
        content = parquet.read_table(path, columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"is damaged or not a Parquet file ({first_line(error)})", where=str(path)) from error
    values = {column: content.column(column).to_pylist() for column in columns}
    return TextRecords(str(path), "row", range(content.num_rows), values)


def _require(where: str, present: list[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in present:
            raise DataError(
                f"has no column `{column}`",
                where=where,
                allowed=list(present) or "none: the file has no columns",
                hint="name existing columns under `task.data`",
            )
        if present.count(column) > 1:
            raise DataError(
                f"has {present.count(column)} columns `{column}`", where=where, hint="give each column its own name"
            )
