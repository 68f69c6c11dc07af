"""Comma- and tab-separated files: every record is read as the standard parsers read it, or refused with its line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from kdcore_preparation import read_records
from kdcore_supervised.data.labelled import LabelledData, read_labelled
from kdcore_supervised.data.labelled_tables import QUOTES_HINT

from kdcore import DataError

GOOD = {
    "plain": "label,text\n1,one\n0,two\n",
    "no newline at the end": "label,text\n1,one\n0,two",
    "crlf": "label,text\r\n1,one\r\n0,two\r\n",
    "mark": "\ufefflabel,text\n1,one\n",
    "mark before a quote": '\ufeff"label","text"\n1,one\n',
    "doubled quotes": 'label,text\n1,"he said ""yes"", twice"\n0,""""\n1,""\n',
    "several lines": 'label,text\n1,"Dear Sir,\nthank you, and bye\n\nYours"\n0,"a\r\nb"\n',
    "text before its label": 'text,label\n"Dear John,\nplease call\nsoon",1\nshort,0\n"two\nlines",1\n',
    "text between": 'id,text,label\n1,"a, b\nc, d\ne, f",0\n2,x,1\n',
    "quotes within": 'label,text\n1,a 5" disk\n0,"x" \n'.replace('"x" ', "x"),
    "blank lines": "label,text\n\n1,one\n\n\n0,two\n",
    "delimiters in quotes": 'label,text\n1,",,,"\n0,"\t;|"\n',
    "only a header": "label,text\n",
    "empty fields": "label,text\n,\n1,\n,x\n",
    "unicode": "label,text\n1,žluťoučký \u2028 kůň\n0,日本語\n",
    "a header of several lines": '"the\nid",text,label\n1,a,0\n2,b,1\n',
    "one column": 'text\none\n"two\nlines"\n',
}


def table(path: Path, content: str | bytes, needed: list[str] | None = None, **keys: Any) -> Any:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_records(path, needed or ["text"], Counter(), label="label", quotes_hint=QUOTES_HINT, **keys)


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_good_files_are_read_as_by_the_standard_library_and_pandas(tmp_path: Path, content: str) -> None:
    found = table(tmp_path / "x.csv", content)
    reader = csv.DictReader(io.StringIO(content.removeprefix("\ufeff"), newline=""), strict=True)
    rows = list(reader)
    frame = pandas.read_csv(tmp_path / "x.csv", dtype=str, keep_default_na=False)
    assert list(frame["text"]) == [row["text"] for row in rows]
    assert found.columns["text"] == [row["text"] for row in rows]
    if "label" in frame:
        assert found.columns["label"] == [row["label"] for row in rows]


def test_records_are_numbered_by_the_line_that_they_start_at(tmp_path: Path) -> None:
    assert table(tmp_path / "x.csv", 'label,text\n\n1,"a\nb"\n0,c\n').numbers == [3, 5]


def rows(count: int) -> list[str]:
    return [f"{number % 2},text number {number}" for number in range(count)]


def test_an_unclosed_quote_is_refused_with_the_line_of_its_row(tmp_path: Path) -> None:
    for place in (0, 3, 298, 299):
        lines = rows(300)
        lines[place] = '0,"he said hello and left'
        with pytest.raises(DataError) as caught:
            table(tmp_path / "x.csv", "\n".join(["label,text", *lines]) + "\n")
        assert f"x.csv: line {place + 2}: a quote in this row is never closed; the file ends in line 301" in str(
            caught.value
        )
        assert "allowed: values in double quotes" in str(caught.value)
        assert "`quoting: none`" in str(caught.value)


@pytest.mark.parametrize("header", ["label,text", "text,label", "id,text,label"])
@pytest.mark.parametrize("length", [1, 2, 3, 30, 250])
@pytest.mark.parametrize("labels", [("0", "1"), ("good", "bad"), [f"{number / 7:.3f}" for number in range(300)]])
def test_rows_that_stray_quotes_merge_are_refused(tmp_path: Path, header: str, length: int, labels: list[str]) -> None:
    def row(number: int, before: str, after: str) -> str:
        values = {"id": str(number), "text": f"{before}text {number}{after}", "label": labels[number % len(labels)]}
        return ",".join(values[name] for name in header.split(","))

    first, last = 20, 20 + length
    lines = [row(number, '"' if number == first else "", '"' if number == last else "") for number in range(300)]
    content = "\n".join([header, *lines]) + "\n"
    merged = list(csv.reader(io.StringIO(content), strict=True))
    assert len(merged) == 301 - length, "the standard library takes the merged rows for one"
    known: tuple[str, ...] | None = None if len(labels) > 2 else ()
    with pytest.raises(DataError, match=f"line 22: a quote in this row merges it with .* up to line {22 + length}"):
        table(tmp_path / "x.csv", content, labels=known)


def test_merged_rows_may_spell_labels_in_either_normal_form(tmp_path: Path) -> None:
    lines = [*rows(20), 'cafe\u0301,"a', "cafe\u0301,b", 'cafe\u0301,c"']
    with pytest.raises(DataError, match=r"line 22: a quote in this row merges it with .* up to line 24"):
        table(tmp_path / "x.csv", "\n".join(["label,text", *lines]), labels=["0", "1", "caf\u00e9"])


def test_any_number_is_a_label_of_regression(tmp_path: Path) -> None:
    lines = [f"text number {number},{number % 11 * 0.5}" for number in range(200)]
    lines += ['"stray 5 inches,3.25', "lost row one,4.75", "lost row two,1.25", 'lost row 4",2']
    (tmp_path / "x.csv").write_text("\n".join(["text,score", *lines]))
    data = LabelledData(train=str(tmp_path / "x.csv"), text="text", label="score", regression=True)
    with pytest.raises(DataError, match=r"line 202: a quote in this row merges it with .* up to line 205"):
        read_labelled(data, Counter())


def test_without_labels_ten_merged_lines_are_refused(tmp_path: Path) -> None:
    def content(length: int) -> str:
        lines = [f"{number},text" for number in range(40)]
        lines[5], lines[4 + length] = '5,"text', f'{4 + length},text"'
        return "\n".join(["id,text", *lines])

    assert len(table(tmp_path / "x.csv", content(9))) == 32
    with pytest.raises(DataError, match="line 7: a quote in this row merges it with the rows after it, up to line 16"):
        table(tmp_path / "x.csv", content(10))


def test_texts_of_many_lines_are_read_from_a_single_column(tmp_path: Path) -> None:
    text = "\n".join(f"line {number}" for number in range(12))
    assert table(tmp_path / "x.csv", f'text\nshort\n"{text}"\n').columns == {"text": ["short", text]}


def test_records_of_several_lines_are_counted_for_each_file(tmp_path: Path) -> None:
    report: Counter[str] = Counter()
    for name, content in (("a", 'one,1\n"two\nlines",0\n"x\n\ny",1\n'), ("b", '"t\nu",1\n'), ("c", '"v",1\n\nw,0\n')):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + content)
        read_records(tmp_path / f"{name}.csv", ["text"], report, label="label")
    assert report == {
        f"records with values of several lines in {tmp_path}/a.csv (the first: line 3)": 2,
        f"records with values of several lines in {tmp_path}/b.csv (the first: line 2)": 1,
    }


@pytest.mark.parametrize("header", ["label,text", "text,label"])
def test_texts_of_many_lines_with_commas_are_no_merged_rows(tmp_path: Path, header: str) -> None:
    random_lines = random.Random(0)
    expected = []
    for number in range(50):
        words = [f"line {line}, with {random_lines.randint(0, 9)} words" for line in range(number + 1)]
        expected.append({"label": str(number % 2), "text": "\n".join(words)})
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header.split(","))
        writer.writeheader()
        writer.writerows([*expected, {"label": "1", "text": "short"}])
    found = read_records(path, ["text"], Counter(), label="label")
    assert found.columns["text"] == [row["text"] for row in expected] + ["short"]


BAD = {
    'label,text\n1,"one" and more\n': "line 2: a quote in this row is closed within a value",
    'label,text\n1,ok\n0,"one\n1,"two"\n': "line 3: a quote in this row is closed within a value, in line 4",
    'label,text\n1,"he said \\"no\\""\n': "line 2: a quote in this row is closed within a value",
    'label,text\n1,ok\n0,"last': "line 3: a quote in this row is never closed; the file ends in line 3",
    'label,"text\n1,one\n0,two\n': "line 1: a quote in this row is never closed",
    'label,"text\n1,one\n0,two"\n1,three\n': "line 1: a quote in this header merges it with the rows after it, up to",
    'label,text\n1,one\n1,"a\nb",c\n0,two\n': "line 3 has 3 fields, the header 2",
    "label,text\n1,one\n0\n": "line 3 has 1 fields, the header 2",
    "label,text\n1,one\n0,a,b\n": r"line 3 has 3 fields, the header 2(?s:.)*allowed: 2 fields in every row",
    "label;text\n1;one\n": "line 1, the header, is separated by semicolons",
    "label\ttext\n1\tone\n": "line 1, the header, is separated by tabs",
    "label,text,text\n1,a,b\n": "line 1, the header, names the column `text` twice",
    "label,text\n1,one\rtwo\n": "line 2: a carriage return outside quotes",
}


@pytest.mark.parametrize(("content", "message"), BAD.items())
def test_malformed_files_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(tmp_path / "x.csv", content)


def test_the_column_count_may_not_change_in_tsv_nor_without_quoting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3 has 3 fields, the header 2(?s:.)*allowed: 2 fields in every row"):
        table(tmp_path / "x.tsv", "label\ttext\n1\ta\n0\ta\tb\n")
    with pytest.raises(DataError, match="line 3 has 3 fields, the header 2"):
        table(tmp_path / "x.csv", 'label,text\n1,"a\n0,"a,b"\n', quoted=False)


def test_tsv_keeps_quotes_and_rows_of_empty_fields(tmp_path: Path) -> None:
    found = table(tmp_path / "x.tsv", 'label\ttext\n1\t"one\n0\ttwo"\n\n\t\n1\t"x"\r\n')
    assert found.columns == {"text": ['"one', 'two"', "", '"x"'], "label": ["1", "0", "", "1"]}
    assert found.numbers == [2, 3, 5, 6]


def test_quoting_none_reads_quotes_as_text(tmp_path: Path) -> None:
    content = 'label,text\n1,"one\n0,he said ""no""\n1,two"\n'
    assert table(tmp_path / "x.csv", content, quoted=False).columns["text"] == ['"one', 'he said ""no""', 'two"']
    keys: dict[str, Any] = {"train": str(tmp_path / "x.csv"), "text": "text", "label": "label", "labels": ["0", "1"]}
    data = LabelledData(quoting="none", **keys)
    assert read_labelled(data, Counter())[0].texts == (['"one', 'he said ""no""', 'two"'],)
    with pytest.raises(DataError, match="line 2: a quote in this row merges it with the rows after it, up to line 4"):
        read_labelled(LabelledData(**keys), Counter())
    assert LabelledData(**keys).identity() == data.identity(), "texts identify the data, not how they were parsed"


def test_a_nul_byte_stays_in_its_field(tmp_path: Path) -> None:
    assert table(tmp_path / "x.csv", 'label,text\n1,a\0b\n0,"c\0"\n').columns["text"] == ["a\0b", "c\0"]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_may_end_in_carriage_returns_alone(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    lines = {
        "x.csv": ["label,text", "1,one", '0,"a, b"'],
        "x.tsv": ["label\ttext", "1\tone", "0\ta, b"],
        "x.jsonl": ['{"label": "1", "text": "one"}', '{"label": "0", "text": "a, b"}'],
    }[name]
    found = table(tmp_path / name, pack("\r".join(lines).encode()))
    assert found.columns == {"text": ["one", "a, b"], "label": ["1", "0"]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
def test_utf16_is_refused_by_name(tmp_path: Path, encoding: str, name: str) -> None:
    with pytest.raises(DataError, match=r"is UTF-16 text, which is not supported \(expected UTF-8\)(?s:.)*iconv"):
        table(tmp_path / name, "label,text\n1,one\n".encode(encoding))


def test_a_folder_of_sparks_parts_is_read_without_what_lies_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(2):
        (folder / f"part-{number}.csv").write_text(f"label,text\n{number},text {number}\n")
        (folder / f".part-{number}.csv.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    report: Counter[str] = Counter()
    data = LabelledData(train=str(folder), text="text", label="label", labels=["0", "1"])
    assert read_labelled(data, report)[0].texts == (["text 0", "text 1"],)
    assert report == {
        "files that are not data left out (the first: _SUCCESS)": 1,
        "hidden files and folders left out (the first: .part-0.csv.crc)": 2,
        "dangling links left out (the first: gone.csv)": 1,
    }


def test_damage_of_a_compressed_file_is_refused(tmp_path: Path) -> None:
    content = "\n".join(["label,text", *rows(300)]).encode()
    damaged = bytearray(bz2.compress(b"\n1,more\n"))
    damaged[1] ^= 4
    with pytest.raises(DataError, match=r"x\.csv: the compressed file is damaged or ends too early"):
        table(tmp_path / "x.csv", bz2.compress(content) + damaged)
