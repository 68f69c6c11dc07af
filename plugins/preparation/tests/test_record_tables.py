"""Columns of files of records, whatever their format; labelled csv files have tests in kdcore-supervised."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from kdcore_preparation import RecordMistakes, RecordTable, read_records
from pyarrow import parquet

from kdcore import DataError

RECORDS = [{"text": "one", "label": "a", "other": "x"}, {"text": "two, three", "label": "b", "other": "y"}]


def write(path: Path) -> Path:
    """Write the records in the format that the name of the file states."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        return path
    rows = [list(RECORDS[0]), *(list(record.values()) for record in RECORDS)]
    if ".csv" in path.suffixes:
        content = "\n".join(",".join(f'"{value}"' for value in row) for row in rows)
    elif ".tsv" in path.suffixes:
        content = "\n".join("\t".join(row) for row in rows)
    else:
        content = "\n\n".join(map(json.dumps, RECORDS))
    raw = content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.ndjson", "a.json.gz", "a.parquet"])
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    table = read_records(path, ["text"], Counter(), label="label")
    assert table.columns == {"text": ["one", "two, three"], "label": ["a", "b"]}
    places = {".parquet": ["row 0", "row 1"], ".csv": ["line 2", "line 3"], ".tsv": ["line 2", "line 3"]}
    assert [table.place(0), table.place(1)] == places.get(path.suffixes[0], ["line 1", "line 3"])
    assert list(read_records(path, ["text"], Counter(), label="none").columns) == ["text"]
    with pytest.raises(DataError, match=r"has no column `body`\n.*allowed: text, label, other"):
        read_records(path, ["text", "body"], Counter())


@pytest.mark.parametrize("keys", [{"needed": ["text"]}, {"needed": [], "label": "text"}])
def test_a_repeated_column_of_parquet_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has 2 columns `text`"):
        read_records(tmp_path / "a.parquet", report=Counter(), **keys)


def test_halves_of_surrogate_pairs_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ["a\\ud800", "b"]}\n{"text": "\\udc00c"}\n')
    report: Counter[str] = Counter()
    assert read_records(tmp_path / "a.jsonl", ["text"], report).columns == {"text": [["a\ufffd", "b"], "\ufffdc"]}
    assert report == {"halves of surrogate pairs replaced": 2}


def test_the_first_mistakes_are_shown_and_all_are_counted() -> None:
    table = RecordTable("a.csv", "line", range(2, 10), {})
    mistakes = RecordMistakes(table.where)
    mistakes.raise_if_any(hint="none")
    for record in range(len(table)):
        mistakes.add(table.place(record), "is empty")
    with pytest.raises(DataError) as caught:
        mistakes.raise_if_any(hint="fill it")
    shown = "; ".join(f"line {number} is empty" for number in range(2, 7))
    assert f"a.csv: 8 records cannot be used: {shown}, and 3 more" in str(caught.value)
