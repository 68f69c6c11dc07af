"""Records of comma- and tab-separated files, each with the number of its first line."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple
from unicodedata import normalize

from kdcore import DataError

_MOST_CHARACTERS_A_FIELD = 2**30
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}
_IMPLAUSIBLE_LINES = 10
_QUOTES = "values in double quotes, with every double quote inside them doubled"
QUOTES_HINT = "close the quote or double it, or convert the file to jsonl"


class TableRow(NamedTuple):
    """A record of a file.

    Attributes:
        line: number of its first line, counted from 1.
        values: its fields.
        lines: the lines that it spans, if there are several.
    """

    line: int
    values: list[str]
    lines: Sequence[str] = ()


def split_records(lines: Iterator[str], delimiter: str) -> Iterator[TableRow]:
    """Yield one record per line, treating quotes as text; skip blank lines."""
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if line.strip(" "):
            yield TableRow(number, line.split(delimiter))


def quoted_records(lines: Iterator[str], delimiter: str, where: str, hint: str = QUOTES_HINT) -> Iterator[TableRow]:
    """Yield records whose fields may be quoted (RFC 4180) and may then span several lines; skip blank lines.

    Args:
        lines: the lines of the file.
        delimiter: the character between fields.
        where: the file.
        hint: how to repair a stray quote.

    Raises:
        DataError: a quote is never closed, or text follows a closing quote.
    """
    before = csv.field_size_limit(_MOST_CHARACTERS_A_FIELD)
    spanned: list[str] = []
    number = 0

    def noted() -> Iterator[str]:
        for line in lines:
            spanned.append(line)
            yield line

    try:
        reader = csv.reader(noted(), delimiter=delimiter, strict=True)
        for values in reader:
            if values:
                yield TableRow(number + 1, values, tuple(spanned) if len(spanned) > 1 else ())
            number += len(spanned)
            spanned.clear()
    except csv.Error as error:
        raise _malformed(where, number + 1, number + len(spanned), str(error), hint) from error
    finally:
        csv.field_size_limit(before)


def check_header(header: TableRow, needed: Sequence[str], delimiter: str, where: str, hint: str = QUOTES_HINT) -> None:
    """Require that the header is a single row in which no needed column occurs twice.

    Args:
        header: the first record.
        needed: names of columns.
        delimiter: the character between fields.
        where: the file.
        hint: how to repair a stray quote.

    Raises:
        DataError: a quote merges the header with other rows, or the header has a different separator or contains a
            column twice.
    """
    if header.lines and all(len(line.split(delimiter)) == len(header.values) for line in header.lines):
        raise _merged(where, header, "header", hint)
    other = next(
        (one for one in _OTHER_DELIMITERS if len(header.values) == 1 and one != delimiter and one in header.values[0]),
        None,
    )
    if other is not None and header.values[0] not in needed:
        raise DataError(
            f"line {header.line}, the header, is separated by {_OTHER_DELIMITERS[other]}",
            where=where,
            allowed="commas in csv files, tabs in tsv files",
            hint="convert the file, or rename it to match its format",
        )
    twice = next((name for name in needed if header.values.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"line {header.line}, the header, names the column `{twice}` twice", where=where)


class MergedRows:
    """Detect rows that a stray quote merges into one field of a record.

    A record of several lines is rejected if most of its lines, apart from the record's own row, look like rows. Such a
    line has as many fields as the header and a label that is known or that occurs in single-line rows; if labels are
    numbers, any number is accepted as a label. If there are no labels to compare, only records of at least ten lines
    are rejected. In files with a single column, every line of a text looks like a row, so no record is rejected.

    Args:
        where: the file.
        columns: number of columns.
        label: index of the column of labels, if any.
        delimiter: the character between fields.
        labels: known labels; None if labels are numbers.
        hint: how to repair a stray quote.
    """

    def __init__(
        self,
        where: str,
        columns: int,
        label: int | None,
        delimiter: str,
        labels: Collection[str] | None,
        hint: str = QUOTES_HINT,
    ) -> None:
        self._where = where
        self._hint = hint
        self._columns = columns
        self._label = label
        self._delimiter = delimiter
        self._numbers = label is not None and labels is None
        self._labels = set() if label is None else set(labels or ())
        self._suspects: list[tuple[TableRow, list[str]]] = []
        self._several: list[int] = []

    def add(self, record: TableRow) -> None:
        """Note a record with as many fields as the header."""
        if not record.lines:
            if self._label is not None:
                self._labels.add(_bare(record.values[self._label]))
                self._labels.discard("")
            return
        self._several.append(record.line)
        rows = [fields for line in record.lines if len(fields := line.split(self._delimiter)) == self._columns]
        if self._columns > 1 and _most(len(rows), len(record.lines)):
            labels = [] if self._label is None else [_bare(fields[self._label]) for fields in rows]
            self._suspects.append((record._replace(values=[]), labels))

    def refuse(self, report: Counter[str]) -> None:
        """Raise an error for the first record that merges rows, and count records of several lines in `report`.

        Raises:
            DataError: a record merges rows.
        """
        known = _is_number if self._numbers else self._labels.__contains__
        for record, labels in self._suspects:
            lines = len(record.lines)
            comparable = self._numbers or self._labels
            if _most(sum(map(known, labels)), lines) if comparable else lines >= _IMPLAUSIBLE_LINES:
                raise _merged(self._where, record, "row", self._hint)
        if self._several:
            what = f"values of several lines in {self._where} (the first: line {self._several[0]})"
            report[f"records with {what}"] += len(self._several)


def _most(rows: int, lines: int) -> bool:
    """Return whether most lines of a record are rows, not counting the record's own row."""
    return (rows - 1) * 2 > lines - 1


def _bare(label: str) -> str:
    return normalize("NFC", label.strip().strip('"').strip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _merged(where: str, record: TableRow, what: str, hint: str) -> DataError:
    last = record.line + len(record.lines) - 1
    return DataError(
        f"line {record.line}: a quote in this {what} merges it with the rows after it, up to line {last}",
        where=where,
        allowed=_QUOTES,
        hint=hint,
    )


def _malformed(where: str, line: int, last: int, error: str, hint: str) -> DataError:
    """Describe a parser error in a record that starts at `line`, detected at line `last`."""
    if "unexpected end of data" in error:
        what = f"line {line}: a quote in this row is never closed; the file ends in line {last}"
    elif "expected after" in error:
        place = "" if last == line else f", in line {last}"
        what = f"line {line}: a quote in this row is closed within a value{place}"
    elif "new-line character" in error:
        return DataError(
            f"line {line}: a carriage return outside quotes, although lines end in newlines",
            where=where,
            allowed="one kind of line ends",
            hint="convert the line ends, or quote the value",
        )
    else:
        what = f"line {line}: the row cannot be read ({error})"
    return DataError(what, where=where, allowed=_QUOTES, hint=hint)
