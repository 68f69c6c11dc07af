"""Files of labelled texts as columns: csv, tsv, JSON Lines and Parquet, plain or compressed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from kdcore_preparation import (
    COMPRESSED_ENDINGS,
    MergedRows,
    TableRow,
    check_header,
    decoded_lines,
    file_format,
    json_record,
    open_input,
    quoted_records,
    split_records,
)

from kdcore import DataError, first_line

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
Quoting = Literal["none"]
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE_NUMBER = re.compile(r"-?[0-9]+\.0+")
_SHOWN = 5
_QUOTES_HINT = (
    "close the quote or double it; if quotes are ordinary text in this file, set `quoting: none` under `task.data`"
)


@dataclass
class LabelledTable:
    """Some columns of a file.

    Attributes:
        where: the file or dataset, used in messages.
        unit: unit of `lines`: `line` or `row`.
        lines: position of each record in the file, counted from 1 for lines and from 0 for rows.
        columns: values by column name, one per record.
    """

    where: str
    unit: str
    lines: list[int]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass
class Mistakes:
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


def read_table(
    path: Path,
    needed: Sequence[str],
    wanted: Sequence[str],
    report: Counter[str],
    *,
    labels: Sequence[str] | None = (),
    quoting: Quoting | None = None,
    other_formats: Sequence[str] = (),
) -> LabelledTable:
    """Read columns of a file in the format given by its suffix.

    Tab-separated values are never quoted; comma-separated values may be quoted, also over several lines, unless
    `quoting` is `none`. Rows merged by a stray quote are refused. Invalid UTF-8 becomes U+FFFD. Invalid UTF-8 and
    records that span several lines are counted in `report`.

    Args:
        path: the file.
        needed: columns that must exist.
        wanted: columns that are read if they exist, such as the label.
        report: counts of repairs and possible mistakes.
        labels: known values of the label, which help to detect merged rows; None if labels are numbers.
        quoting: `none` if quotes in csv files are text.
        other_formats: suffixes of files that the caller reads itself, for the message.

    Raises:
        DataError: the format is unknown, a column is missing, or records are malformed.
    """
    ending = file_format(path)
    if ending not in FORMATS:
        endings = ", ".join(dict.fromkeys([*other_formats, *FORMATS]))
        raise DataError(
            "the file name does not end with a known format",
            where=str(path),
            allowed=f"names that end with {endings}, compressed or not ({', '.join(COMPRESSED_ENDINGS)})",
        )
    if ending == ".parquet":
        return _read_parquet(path, needed, wanted)
    with open_input(path) as stream:
        lines = decoded_lines(stream, report, str(path))
        if ending in (".csv", ".tsv"):
            table = _read_separated(path, lines, ending, quoting, needed, wanted, labels, report)
        else:
            table = _read_json_lines(path, lines, needed, wanted)
    for column, values in table.columns.items():
        table.columns[column] = [_without_surrogates(value, report) for value in values]
    return table


def require_columns(where: str, present: Sequence[str], needed: Sequence[str]) -> None:
    """Require columns of a file.

    Raises:
        DataError: a column is missing; the message lists those that exist.
    """
    for column in needed:
        if column not in present:
            raise DataError(
                f"has no column `{column}`",
                where=where,
                allowed=list(present) or "none: the file has no columns",
                hint="name existing columns under `task.data`",
            )


def _read_separated(
    path: Path,
    lines: Iterator[str],
    ending: str,
    quoting: Quoting | None,
    needed: Sequence[str],
    wanted: Sequence[str],
    labels: Sequence[str] | None,
    report: Counter[str],
) -> LabelledTable:
    delimiter, quoted = "," if ending == ".csv" else "\t", ending == ".csv" and quoting is None
    records = quoted_records(lines, delimiter, str(path), _QUOTES_HINT) if quoted else split_records(lines, delimiter)
    first = next(records, TableRow(1, []))
    header = [name.strip() for name in first.values]
    check_header(first._replace(values=header), needed, delimiter, str(path), _QUOTES_HINT)
    require_columns(str(path), header, needed)
    used = [name for name in dict.fromkeys([*needed, *wanted]) if name in header]
    places = [header.index(name) for name in used]
    label = next((header.index(name) for name in wanted if name in header), None)
    merged_rows = MergedRows(str(path), len(header), label, delimiter, labels, _QUOTES_HINT)
    found: list[list[Any]] = [[] for _ in used]
    numbers: list[int] = []
    mistakes = Mistakes(str(path))
    for record in records:
        if len(record.values) != len(header):
            mistakes.add(f"line {record.line}", f"has {len(record.values)} fields, the header {len(header)}")
            continue
        merged_rows.add(record)
        numbers.append(record.line)
        for values, place in zip(found, places, strict=True):
            values.append(record.values[place])
    merged_rows.refuse(report)
    mistakes.raise_if_any(
        allowed=f"{len(header)} fields in every row",
        hint="put values with commas, quotes or line breaks in them into double quotes, or convert the file to jsonl"
        if quoted
        else "values with separators or line breaks in them need csv with quotes, or jsonl",
    )
    return LabelledTable(str(path), "line", numbers, dict(zip(used, found, strict=True)))


def _read_json_lines(path: Path, lines: Iterator[str], needed: Sequence[str], wanted: Sequence[str]) -> LabelledTable:
    columns: dict[str, list[Any]] = {name: [] for name in dict.fromkeys([*needed, *wanted])}
    numbers: list[int] = []
    mistakes = Mistakes(str(path))
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            record = json_record(line, columns)
        except ValueError as error:
            mistakes.add(f"line {number}", str(error))
            continue
        if not numbers and not mistakes.count:
            require_columns(str(path), list(record), needed)
        missing = [name for name in needed if name not in record]
        if missing:
            mistakes.add(f"line {number}", f"has no key `{missing[0]}`")
            continue
        numbers.append(number)
        for name, values in columns.items():
            values.append(record.get(name))
    mistakes.raise_if_any(hint="each line has to be a JSON object with the same keys, each of them once")
    present = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return LabelledTable(
        str(path), "line", numbers, {name: columns[name] for name in columns if name in needed or name in present}
    )


def _read_parquet(path: Path, needed: Sequence[str], wanted: Sequence[str]) -> LabelledTable:
    import pyarrow
    from pyarrow import parquet

    try:
        present = parquet.read_schema(path).names
        require_columns(str(path), present, needed)
        used = [name for name in dict.fromkeys([*needed, *wanted]) if name in present]
        content = parquet.read_table(path, columns=used)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"is damaged or not a Parquet file ({first_line(error)})", where=str(path)) from error
    columns = {name: content.column(name).to_pylist() for name in used}
    return LabelledTable(str(path), "row", list(range(content.num_rows)), columns)


def _without_surrogates(value: Any, report: Counter[str]) -> Any:
    """Replace lone surrogates, also inside lists; JSON may contain them, but tokenizers reject them."""
    if isinstance(value, list):
        return [_without_surrogates(one, report) for one in value]
    if not isinstance(value, str) or not _SURROGATE.search(value):
        return value
    value, count = _SURROGATE.subn("\ufffd", value)
    report["halves of surrogate pairs replaced"] += count
    return value


def column_of_texts(table: LabelledTable, column: str) -> list[str]:
    """Return a column as uncleaned texts; numbers keep their digits, missing values become empty texts.

    Raises:
        DataError: a value is neither text nor number.
    """
    texts: list[str] = []
    mistakes = Mistakes(table.where)
    for record, value in enumerate(table.columns[column]):
        if isinstance(value, str):
            texts.append(value)
        elif value is None or isinstance(value, int | float):
            texts.append("" if value is None else str(value))
        else:
            mistakes.add(
                f"{table.unit} {table.lines[record]}", f"has no text under `{column}` (found {type(value).__name__})"
            )
            texts.append("")
    mistakes.raise_if_any(hint="name a column of texts under `task.data.text`")
    return texts


def count_empty(cleaned: Iterable[str], report: Counter[str]) -> None:
    """Count in `report` the texts that are empty after cleaning."""
    empty = sum(not text for text in cleaned)
    if empty:
        report["empty texts"] += empty


def label_as_text(value: Any) -> str:
    """Return a label in the spelling of recipes: 1 for 1.0, true for True, an empty text for a missing label.

    Unicode is converted to normal form C, as in texts.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return normalize("NFC", str(value).strip())


class ClassNumbers:
    """Map labels, as spelled in any file format, to class numbers.

    csv files have no types. Their values `1.0`, `True` and `TRUE` are therefore the classes 1 and true, as in Parquet
    files, unless a class is spelled exactly this way.

    Args:
        classes: the classes, in the order of their numbers.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._exact = {label: number for number, label in enumerate(classes)}
        values = {_value(label): number for number, label in enumerate(classes)}
        self._values = values if len(values) == len(classes) else {}

    def get(self, label: str) -> int | None:
        """Return the number of a label's class; None if it is not a class."""
        return self._exact.get(label, self._values.get(_value(label)))


def _value(label: str) -> str:
    if _WHOLE_NUMBER.fullmatch(label):
        return label.partition(".")[0]
    return label.lower() if label.lower() in ("true", "false") else label


def merged(tables: Sequence[LabelledTable], where: str) -> LabelledTable:
    """Concatenate the records of several files with the same columns."""
    if len(tables) == 1:
        return tables[0]
    columns: Mapping[str, list[Any]] = tables[0].columns
    for table in tables[1:]:
        require_columns(table.where, list(table.columns), list(columns))
    joined = {name: [value for table in tables for value in table.columns[name]] for name in columns}
    return LabelledTable(where, "row", list(range(sum(map(len, tables)))), joined)
