"""Texts whose lines end in carriage returns alone, as on old Macintoshes, are read line by line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from kdcore_preparation.readers import file_corpus
from kdcore_preparation.readers.input_streams import universal_lines
from kdcore_preparation.readers.json_lines import JsonLinesCorpus
from kdcore_preparation.readers.text_files import TextCorpus

from kdcore import DataError

LINES = [f"line {number} žluťoučký" for number in range(300)]


def zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


def plain(content: bytes) -> bytes:
    return content


def texts(path: Path, **keys: Any) -> list[str]:
    return [document.text for document in TextCorpus(TextCorpus.Config(path=str(path), **keys)).documents()]


@pytest.mark.parametrize("pack", [plain, gzip.compress, bz2.compress, zstd])
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_every_kind_of_line_end_gives_the_same_documents(
    tmp_path: Path, pack: Callable[[bytes], bytes], end: str
) -> None:
    (tmp_path / "a.txt").write_bytes(pack((end.join(LINES) + end).encode()))
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path / "a.txt")))
    documents = [(document.id, document.text) for document in corpus.documents()]
    assert documents == [(f"a.txt:{number}", line) for number, line in enumerate(LINES, start=1)]
    assert corpus.report == {}


def test_blank_lines_of_carriage_returns_separate_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\rstill one\r\r\rtwo\r")
    assert texts(tmp_path / "a.txt", documents="blank_lines") == ["one\nstill one", "two"]


def test_a_carriage_return_among_newlines_ends_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\rstill one\ntwo\n")
    assert texts(tmp_path / "a.txt") == ["one\nstill one", "two"]


def test_lines_of_json_may_end_in_carriage_returns(tmp_path: Path) -> None:
    records = [json.dumps({"text": line}) for line in LINES]
    (tmp_path / "a.jsonl").write_bytes("\r".join(records).encode())
    corpus = JsonLinesCorpus(JsonLinesCorpus.Config(path=str(tmp_path)))
    assert [document.text for document in corpus.documents()] == LINES
    (tmp_path / "a.jsonl").write_bytes("\r".join([*records[:7], "{", *records[7:]]).encode())
    with pytest.raises(DataError, match="line 8 is not JSON"):
        list(corpus.documents())


@pytest.mark.parametrize("documents", ["lines", "blank_lines"])
@pytest.mark.parametrize("size", [50, 77, 1000])
def test_parts_of_such_files_hold_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str, size: int
) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", size)
    content = "\r\r".join(LINES).encode() + b"\r"
    (tmp_path / "a.txt").write_bytes(content)
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path / "a.txt"), documents=documents))
    assert len(corpus.parts()) > 5
    assert [document.text for part in corpus.parts() for document in corpus.read(part)] == LINES


def test_a_bad_record_in_a_later_part_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", 500)
    records = [json.dumps({"text": line}) for line in LINES]
    (tmp_path / "a.jsonl").write_bytes("\r".join([*records[:200], "[]", *records[200:]]).encode())
    corpus = JsonLinesCorpus(JsonLinesCorpus.Config(path=str(tmp_path / "a.jsonl")))
    errors = []
    for part in corpus.parts():
        try:
            list(corpus.read(part))
        except DataError as error:
            errors.append(str(error))
    assert len(errors) == 1
    assert "line 201 is not a JSON object" in errors[0]


def test_random_mixtures_keep_their_length_and_their_text() -> None:
    numbers = random.Random(0)
    for _ in range(300):
        content = b"".join(numbers.choice([b"\r", b"\r", b"\r\n", b"a", b"bc"]) for _ in range(numbers.randrange(60)))
        content = b"x\r" + content
        found = universal_lines(io.BufferedReader(io.BytesIO(content), buffer_size=numbers.randrange(1, 9))).read()  # type: ignore[arg-type]
        bars = content.replace(b"\r\n", b"|")
        if bars.count(b"\r") <= bars.count(b"|"):
            assert found == content
        else:
            assert found == bars.replace(b"\r", b"\n").replace(b"|", b"\r\n")


@pytest.mark.parametrize("size", range(2, 9))
def test_a_newline_after_the_first_megabyte_stays_with_its_carriage_return(tmp_path: Path, size: int) -> None:
    content = b"x\r" * 2**19 + b"y\r" * size + b"a\r\nb\rc"
    (tmp_path / "a.txt").write_bytes(content)
    with (tmp_path / "a.txt").open("rb", buffering=size) as file:
        assert universal_lines(file).read() == content.replace(b"\r\n", b"\0").replace(b"\r", b"\n").replace(
            b"\0", b"\r\n"
        )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\r\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_newlines_at_the_end_do_not_join_the_other_lines(tmp_path: Path, end: bytes, packed: bool) -> None:
    content = "\r".join(LINES).encode() + end
    (tmp_path / "a.txt").write_bytes(bz2.compress(content) if packed else content)
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path)))
    assert [document.text for document in corpus.documents()] == LINES


def test_lines_of_both_kinds_are_documents_if_most_end_in_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\n".join([*LINES[:9], "\r".join(LINES[9:])]).encode())
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path)))
    assert [document.text for document in corpus.documents()] == LINES


def test_few_carriage_returns_inside_of_lines_divide_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"10 %\r20 %\n" + "\r\r\n".join(LINES).encode())
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path)))
    assert [document.text for document in corpus.documents()] == ["10 %\n20 %", *LINES]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((b"some words of a line" * 5 + b"\r") * 200_000)
    tracemalloc.start()
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path / "a.txt")))
    assert sum(1 for _ in corpus.documents()) == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20, "the file has 20 MB"


def test_lines_before_damage_are_kept(tmp_path: Path) -> None:
    first, second = ("".join(f"{line}\r" for line in part).encode() for part in (LINES[:150], LINES[150:]))
    damaged = bytearray(bz2.compress(second))
    damaged[1] ^= 4
    (tmp_path / "a.bz2").write_bytes(bz2.compress(first) + damaged)
    corpus, found = TextCorpus(TextCorpus.Config(path=str(tmp_path / "a.bz2"))), []
    with pytest.raises(DataError, match="damaged or ends too early"):  # noqa: PT012
        for document in corpus.documents():
            found.append(document.text)
    assert found == LINES[:150]
