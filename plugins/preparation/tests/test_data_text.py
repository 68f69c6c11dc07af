from __future__ import annotations

import bz2
import gzip
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation.readers import file_corpus
from kdcore_preparation.readers.text_files import TextCorpus

from kdcore.errors import DataError


def read(path: Path | str, **settings: Any) -> tuple[list[tuple[str, str]], dict[str, int]]:
    corpus = TextCorpus(TextCorpus.Config(path=str(path), **settings))
    documents = [(document.id, document.text) for document in corpus.documents()]
    return documents, dict(corpus.report)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_each_line_is_a_document_named_after_its_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\ntwo\nthree without an end")
    assert read(path) == ([("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:3", "three without an end")], {})


def test_blank_lines_separate_documents_and_single_newlines_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\n\nfirst\nstill first\n \t\n\nsecond\n")
    documents, report = read(path, documents="blank_lines")
    assert documents == [("a.txt:3", "first\nstill first"), ("a.txt:7", "second")]
    assert report == {}


@pytest.mark.parametrize("documents", ["lines", "blank_lines"])
def test_windows_line_ends_give_the_same_documents(tmp_path: Path, documents: str) -> None:
    content = b"one\ntwo\n\nthree\n"
    unix = read(write(tmp_path / "unix" / "a.txt", content), documents=documents)
    windows = read(write(tmp_path / "windows" / "a.txt", content.replace(b"\n", b"\r\n")), documents=documents)
    assert windows == unix
    assert "\r" not in "".join(each for _, each in windows[0])


def test_broken_utf8_is_replaced_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ä\ufffd".encode() + b"x\xffy\xc3\nfine\n")
    documents, report = read(path)
    assert documents == [("a.txt:1", "ä\ufffdx\ufffdy\ufffd"), ("a.txt:2", "fine")]
    assert report == {"broken UTF-8 replaced": 2}


def test_control_characters_are_removed_and_counted(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"a\0b\0\nc")) == (
        [("a.txt:1", "ab"), ("a.txt:2", "c")],
        {"control characters removed": 2},
    )


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    documents, report = read(write(tmp_path / "a.txt", b"a\n\n   \n\0\nb\n"))
    assert documents == [("a.txt:1", "a"), ("a.txt:5", "b")]
    assert report == {"empty documents skipped": 3, "control characters removed": 1}


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n"))[0] == [("a.txt:1", "one")]


def test_utf16_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt: is UTF-16 text.*\n.*iconv"):
        read(write(tmp_path / "a.txt", "one".encode("utf-16")))


def test_a_second_reading_counts_from_the_callers_report(tmp_path: Path) -> None:
    corpus = TextCorpus(TextCorpus.Config(path=str(write(tmp_path / "a.txt", b"a\n\nb\n"))))
    first, second = list(corpus.documents()), list(corpus.documents())
    assert first == second


@pytest.mark.parametrize("documents", ["lines", "blank_lines"])
def test_a_gigantic_line_is_cut_at_white_space_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str
) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 1000)
    words = [f"wörd{number}" for number in range(2000)]
    path = write(tmp_path / "a.txt", b"small\n\n" + " ".join(words).encode() + b"\n\nafter\n")
    found, report = read(path, documents=documents)
    assert [each for _, part in found for each in part.split()] == ["small", *words, "after"]
    assert max(len(part.encode()) for _, part in found) <= 1000
    names = [name for name, _ in found]
    assert names[:3] == ["a.txt:1", "a.txt:3", "a.txt:3#2"]
    assert names[-1] == "a.txt:5"
    assert len(set(names)) == len(names)
    assert report["documents continued as another one, being very long"] == len(found) - 3


@pytest.mark.parametrize("lead", range(4))
def test_a_gigantic_line_without_white_space_is_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lead: int
) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 101)
    content = "x" * lead + "日本😀" * 200
    found, report = read(write(tmp_path / "a.txt", content.encode()))
    assert "".join(part for _, part in found) == content
    assert "broken UTF-8 replaced" not in report


@pytest.mark.parametrize("size", [99, 100, 101, 200, 201])
def test_a_line_about_as_long_as_the_limit_keeps_the_lines_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 100)
    found, _ = read(write(tmp_path / "a.txt", b"\xef\xbb\xbf" + b"x" * size + b"\nnext\n"))
    assert "".join(part for _, part in found[:-1]) == "x" * size
    assert found[-1] == ("a.txt:2", "next")


def test_a_folder_is_read_file_by_file_in_the_order_of_names_but_for_hidden_ones(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", b"b")
    write(tmp_path / "a" / "z.txt", b"z")
    write(tmp_path / ".hidden", b"no")
    write(tmp_path / ".git" / "x", b"no")
    assert read(tmp_path)[0] == [("a/z.txt:1", "z"), ("b.txt:1", "b")]


def test_a_glob_names_files_below_its_fixed_part(tmp_path: Path) -> None:
    write(tmp_path / "en" / "b.txt", b"b")
    write(tmp_path / "de" / "a.txt", b"a")
    write(tmp_path / "de" / "a.md", b"no")
    assert read(tmp_path / "*" / "*.txt")[0] == [("de/a.txt:1", "a"), ("en/b.txt:1", "b")]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a[1].txt", b"one"))[0] == [("a[1].txt:1", "one")]


def zstd(content: bytes) -> bytes:
    import pyarrow

    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


def test_compressed_files_are_known_by_their_content(tmp_path: Path) -> None:
    write(tmp_path / "a", gzip.compress(b"gzip"))
    write(tmp_path / "b", bz2.compress(b"first ") + bz2.compress(b"second stream"))
    write(tmp_path / "c.gz", b"not compressed")
    write(tmp_path / "d", zstd(b"first frame ") + zstd(b"second frame"))
    texts = ["gzip", "first second stream", "not compressed", "first frame second frame"]
    assert [each for _, each in read(tmp_path)[0]] == texts


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_truncated_compressed_file_is_an_error_that_names_it(tmp_path: Path, compress: Any) -> None:
    whole = compress(b"".join(b"line %d\n" % number for number in range(20_000)))
    path = write(tmp_path / "texts.z", whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"texts\.z: the compressed file is damaged or ends too early") as caught:
        read(path)
    assert "download the file again" in str(caught.value)


def test_damaged_compressed_data_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = bytearray(bz2.compress(bytes(range(256)) * 2000))
    whole[40:80] = bytes(40)
    with pytest.raises(DataError, match="damaged or ends too early"):
        read(write(tmp_path / "a.bz2", bytes(whole)))


def test_other_compressions_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.xz: is compressed with xz.*\n.*allowed: plain text, gzip, bzip2, zstd"):
        read(write(tmp_path / "a.xz", b"\xfd7zXZ\x00 rest"))


BINARY = bytes(range(256)) * 20


@pytest.mark.parametrize("content", [BINARY, b"%PDF-1.7\n", "no byte order mark".encode("utf-16-le") * 9])
def test_a_binary_file_is_refused_where_it_is_named_and_skipped_among_others(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "texts" / "b.txt", content)
    with pytest.raises(DataError, match=r"b\.txt: is binary data, not text(.|\n)*glob"):
        read(path)
    write(tmp_path / "texts" / "a.txt", b"one")
    write(tmp_path / "texts" / "c.gz", gzip.compress(content))
    assert read(tmp_path / "texts") == ([("a.txt:1", "one")], {"binary files skipped": 2})


def ranges(content: bytes, size: int, monkeypatch: pytest.MonkeyPatch, path: Path, documents: str) -> list[list[str]]:
    monkeypatch.setattr(file_corpus, "PART_BYTES", size)
    corpus = TextCorpus(TextCorpus.Config(path=str(write(path, content)), documents=documents))
    return [[document.text for document in corpus.read(part)] for part in corpus.parts()]


@pytest.mark.parametrize("documents", ["lines", "blank_lines"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_parts_of_any_size_together_hold_each_document_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str, end: str
) -> None:
    generator = random.Random(3)
    for _ in range(12):
        lines = [generator.choice(["", "", "a", "bb", "c" * 30, "ü d", "  "]) for _ in range(generator.randint(1, 40))]
        content = end.join(lines).encode()
        (whole,) = ranges(content, 10**6, monkeypatch, tmp_path / "a.txt", documents)
        for size in (1, 2, 7, 40, 100):
            parts = ranges(content, size, monkeypatch, tmp_path / "a.txt", documents)
            assert len(parts) == max(1, -(-len(content) // size))
            assert [text for part in parts for text in part] == whole


def test_documents_keep_their_names_when_a_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", 100)
    path = write(tmp_path / "a.txt", b"".join(b"document %d\n" % number for number in range(60)))
    before, _ = read(path)
    with path.open("ab") as file:
        file.writelines(b"new document %d\n" % number for number in range(60))
    after, _ = read(path)
    assert after[:60] == before
    assert len({name for name, _ in after}) == 120
    assert ("a.txt@100:1", "document 10") in after


def test_a_gigantic_line_over_many_parts_is_read_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 50)
    content = b"first\n" + b"word " * 100 + b"\nlast"
    parts = ranges(content, 60, monkeypatch, tmp_path / "a.txt", "lines")
    assert len(parts[0]) > 10
    assert parts[1:8] == [[]] * 7
    assert " ".join(parts[0]).split() == ["first", *["word"] * 100]
    assert parts[-1] == ["last"]


def test_two_hundred_megabytes_without_a_newline_need_little_memory_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"abcdefg " * 125_000)
    code = f"""
import resource, time
from kdcore_preparation.readers.text_files import TextCorpus
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = TextCorpus(TextCorpus.Config(path={str(path)!r}))
print(sum(len(document.text) + 1 for document in corpus.documents()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == 200_000_000
    assert int(out[1]) < 200_000  # KiB
    assert float(out[2]) < 10


def test_what_came_before_damage_is_kept(tmp_path: Path) -> None:
    lines = [b"line %d" % number for number in range(150_000)]
    for compress in (gzip.compress, bz2.compress, zstd):
        whole = compress(b"\n".join(lines))
        path = write(tmp_path / "a.txt", whole[: len(whole) * 2 // 3])
        corpus = TextCorpus(TextCorpus.Config(path=str(path)))
        kept = []
        with pytest.raises(DataError, match=r"a\.txt: the compressed file is damaged or ends too early"):
            kept.extend(document.text for document in corpus.documents())
        assert 0 < len(kept) < len(lines)
        assert kept == [line.decode() for line in lines[: len(kept)]]


def test_a_missing_file_an_empty_folder_and_an_empty_glob_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="the folder contains no files"):
        read(tmp_path)
    with pytest.raises(DataError, match="no file matches the pattern"):
        read(tmp_path / "*.txt")
