"""Columns of files of records: csv, tsv, JSON Lines and Parquet, plain or compressed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcore import DataError, first_line
from kdcore_preparation.readers.input_files import COMPRESSED_ENDINGS, decoded_lines, file_format, open_input
from kdcore_preparation.readers.json_records import json_record
from kdcore_preparation.readers.separated_values import (
    QUOTES_HINT,
    MergedRows,
    TableRow,
    check_header,
    quoted_records,
    split_records,
)

RECORD_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 5
_QUOTED = "put values with commas, quotes or line breaks in them into double quotes, or convert the file to jsonl"
_UNQUOTED = "values with separators or line breaks in them need csv with quotes, or jsonl"


@dataclass(frozen=True)
class RecordTable:
    """Some columns of a file or dataset.

    Attributes:
        where: the file or dataset, for messages.
        unit: unit of `numbers`: `line` or `row`.
        numbers: position of each record, counted from 1 for lines and from 0 for rows.
        columns: values by column name, one per record.
    """

    where: str
    unit: str
    numbers: Sequence[int]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, record: int) -> str:
        """Return the position of a record in words, such as "line 3"."""
        return f"{self.unit} {self.numbers[record]}"


@dataclass
class RecordMistakes:
    """Count the unusable records of one file and keep the first ones for the message."""

    where: str
    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, place: str, what: str) -> None:
        """Count a record; `what` completes a sentence that starts with `place`."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(f"{place} {what}")

    def raise_if_any(self, *, key: str | None = None, allowed: Sequence[str] | None = None, hint: str) -> None:
        """Report all counted records in one error.

        Raises:
            DataError: a record was counted.
        """
        if self.count:
            more = f", and {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
            what = f"{self.count} records cannot be used: {'; '.join(self.shown)}{more}"
            raise DataError(what, where=self.where, key=key, allowed=allowed, hint=hint)


def read_records(
    path: Path,
    needed: Sequence[str],
    report: Counter[str],
    *,
    label: str | None = None,
    labels: Collection[str] | None = (),
    quoted: bool = True,
    quotes_hint: str = QUOTES_HINT,
    other_formats: Sequence[str] = (),
) -> RecordTable:
    """Read columns of a file in the format given by its suffix.

    Tab-separated values are never quoted; comma-separated values may be quoted and may then span several lines. Rows
    merged by a stray quote are rejected. Invalid UTF-8 and halves of surrogate pairs become U+FFFD. These repairs are
    counted in `report`, as are records that span several lines.

    Args:
        path: the file.
        needed: columns that must exist.
        report: counts of repairs and possible mistakes.
        label: a column of labels, which is read if it exists and helps to detect merged rows.
        labels: known values of the label; None if labels are numbers.
        quoted: whether quotes in csv files enclose values; False if they are text.
        quotes_hint: how to repair a stray quote.
        other_formats: suffixes of files that the caller reads itself, for the message.

    Raises:
        DataError: the format is unknown, a column is missing or occurs twice, or records are malformed.
    """
    ending = file_format(path)
    if ending not in RECORD_FORMATS:
        endings = ", ".join(dict.fromkeys([*other_formats, *RECORD_FORMATS]))
        raise DataError(
            "the file name does not end with a known format",
            where=str(path),
            allowed=f"names that end with {endings}, compressed or not ({', '.join(COMPRESSED_ENDINGS)})",
        )
    where, names = str(path), list(dict.fromkeys([*needed, *([] if label is None else [label])]))
    if ending == ".parquet":
        return _read_parquet(where, needed, names)
    with open_input(path) as stream:
        lines = decoded_lines(stream, report, where)
        if ending in (".csv", ".tsv"):
            delimiter, quoted = ("," if ending == ".csv" else "\t"), quoted and ending == ".csv"
            rows = quoted_records(lines, delimiter, where, quotes_hint) if quoted else split_records(lines, delimiter)
            first = next(rows, TableRow(1, []))
            header = [name.strip() for name in first.values]
            check_header(first._replace(values=header), needed, delimiter, where, quotes_hint)
            place = header.index(label) if label in header else None
            merged_rows = MergedRows(where, len(header), place, delimiter, labels, quotes_hint)
            mistakes = RecordMistakes(where)
            table = _read_rows(rows, header, needed, names, merged_rows, mistakes)
            merged_rows.refuse(report)
            mistakes.raise_if_any(allowed=f"{len(header)} fields in every row", hint=_QUOTED if quoted else _UNQUOTED)
        else:
            table = _read_json_lines(where, lines, needed, names)
    for column, values in table.columns.items():
        table.columns[column] = [_without_surrogates(value, report) for value in values]
    return table


def require_columns(where: str, present: Sequence[str], needed: Sequence[str]) -> None:
    """Require that a file contains each of these columns exactly once.

    Raises:
        DataError: a column is missing (the message lists the existing columns), or it occurs several times.
    """
    for column in needed:
        if column not in present:
            raise DataError(
                f"has no column `{column}`",
                where=where,
                allowed=list(present) or "none: the file has no columns",
                hint="name existing columns under `task.data`",
            )
        if (count := present.count(column)) > 1:
            raise DataError(f"has {count} columns `{column}`", where=where, hint="give each column its own name")


def _read_rows(
    rows: Iterator[TableRow],
    header: list[str],
    needed: Sequence[str],
    names: Sequence[str],
    merged_rows: MergedRows,
    mistakes: RecordMistakes,
) -> RecordTable:
    """Read separated values below their header."""
    require_columns(mistakes.where, header, needed)
    columns: dict[str, list[Any]] = {name: [] for name in names if name in header}
    places = [header.index(name) for name in columns]
    numbers = []
    for row in rows:
        if len(row.values) != len(header):
            mistakes.add(f"line {row.line}", f"has {len(row.values)} fields, the header {len(header)}")
            continue
        merged_rows.add(row)
        numbers.append(row.line)
        for values, place in zip(columns.values(), places, strict=True):
            values.append(row.values[place])
    return RecordTable(mistakes.where, "line", numbers, columns)


def _read_json_lines(where: str, lines: Iterator[str], needed: Sequence[str], names: Sequence[str]) -> RecordTable:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    numbers: list[int] = []
    mistakes = RecordMistakes(where)
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            record = json_record(line, names)
        except ValueError as error:
            mistakes.add(f"line {number}", str(error))
            continue
        if not numbers and not mistakes.count:
            require_columns(where, list(record), needed)
        missing = [name for name in needed if name not in record]
        if missing:
            mistakes.add(f"line {number}", f"has no key `{missing[0]}`")
            continue
        numbers.append(number)
        for name, values in columns.items():
            values.append(record.get(name))
    mistakes.raise_if_any(hint="each line has to be a JSON object with the same keys, each of them once")
    present = [name for name, values in columns.items() if name in needed or any(one is not None for one in values)]
    return RecordTable(where, "line", numbers, {name: columns[name] for name in present})


def _read_parquet(where: str, needed: Sequence[str], names: Sequence[str]) -> RecordTable:
    import pyarrow
    from pyarrow import parquet

    try:
        present = parquet.read_schema(where).names
        used = [name for name in names if name in present]
        require_columns(where, present, [*needed, *used])
        content = parquet.read_table(where, columns=used)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"is damaged or not a Parquet file ({first_line(error)})", where=where) from error
    columns = {name: content.column(name).to_pylist() for name in used}
    return RecordTable(where, "row", range(content.num_rows), columns)


def _without_surrogates(value: Any, report: Counter[str]) -> Any:
    """Replace lone surrogates, also inside lists; JSON may contain them, but tokenizers reject them."""
    if isinstance(value, list):
        return [_without_surrogates(one, report) for one in value]
    if not isinstance(value, str) or not _SURROGATE.search(value):
        return value
    value, count = _SURROGATE.subn("\ufffd", value)
    report["halves of surrogate pairs replaced"] += count
    return value
