"""Labels and texts of tables of records, in the spelling of recipes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from unicodedata import normalize

from kdcore_preparation import RecordMistakes, RecordTable, require_columns

Quoting = Literal["none"]
QUOTES_HINT = (
    "close the quote or double it; if quotes are ordinary text in this file, set `quoting: none` under `task.data`"
)
_WHOLE_NUMBER = re.compile(r"-?[0-9]+\.0+")


def column_of_texts(table: RecordTable, column: str) -> list[str]:
    """Return a column as uncleaned texts; numbers keep their digits, missing values become empty texts.

    Raises:
        DataError: a value is neither text nor number.
    """
    texts: list[str] = []
    mistakes = RecordMistakes(table.where)
    for record, value in enumerate(table.columns[column]):
        if isinstance(value, str):
            texts.append(value)
        elif value is None or isinstance(value, int | float):
            texts.append("" if value is None else str(value))
        else:
            mistakes.add(table.place(record), f"has no text under `{column}` (found {type(value).__name__})")
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


def merged(tables: Sequence[RecordTable], where: str) -> RecordTable:
    """Concatenate the records of several files with the same columns."""
    if len(tables) == 1:
        return tables[0]
    columns: Mapping[str, list[Any]] = tables[0].columns
    for table in tables[1:]:
        require_columns(table.where, list(table.columns), list(columns))
    joined = {name: [value for table in tables for value in table.columns[name]] for name in columns}
    return RecordTable(where, "row", range(sum(map(len, tables))), joined)
