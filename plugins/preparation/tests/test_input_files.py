"""Files of a folder or glob are all read or counted, and damage in compressed files is never mistaken for their end."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from kdcore_preparation import DataRecipe, input_files, prepare, table_files
from kdcore_preparation.readers.file_listing import InputFiles
from kdcore_preparation.readers.json_lines import JsonLinesCorpus
from kdcore_preparation.readers.parquet import ParquetCorpus
from kdcore_preparation.readers.text_files import TextCorpus

from kdcore import Corpus, CorpusConfig, DataError, Document, PathString

FIRST = b"".join(b"line %d of the first stream\n" % number for number in range(100))
SECOND = FIRST.replace(b"first", b"second")
LINES = (FIRST + SECOND).decode().splitlines()


def zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {"bz2": bz2.compress, "gz": gzip.compress, "zst": zstd}


def tree(root: Path, files: str, links: dict[str, str] | None = None) -> Path:
    """Write files that contain their names, and links."""
    for name in files.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}\n")
    for name, target in (links or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


def documents(path: Path | str, **keys: Any) -> tuple[list[str], dict[str, int], str]:
    """Read a text corpus to its end or its damage: texts, report, error."""
    corpus = TextCorpus(TextCorpus.Config(path=str(path), **keys))
    texts: list[str] = []
    try:
        for document in corpus.documents():
            texts.append(document.text)
    except DataError as error:
        return texts, dict(corpus.report), str(error)
    return texts, dict(corpus.report), ""


def found_by_find(folder: Path) -> set[str]:
    """List files with `find -L`, which reports loops and dangling links on standard error."""
    done = subprocess.run(["find", "-L", ".", "-type", "f"], cwd=folder, capture_output=True, text=True, check=False)
    return {line.removeprefix("./") for line in done.stdout.splitlines()}


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**"])
def test_linked_folders_are_read_by_folder_and_glob(tmp_path: Path, pattern: str) -> None:
    names = [f"sub/{number}.txt" for number in range(5)]
    data = tree(tmp_path / "data", " ".join(["a.txt", *names]), {"external": "../ext", "gone.txt": "/nowhere/x.txt"})
    tree(tmp_path / "ext", " ".join(f"{number}.txt" for number in range(5)))
    texts, report, _ = documents(data / pattern if pattern else data)
    assert len(texts) == 11
    assert set(input_files(str(data / pattern))) == found_by_find(data)
    assert report == {"dangling links left out (the first: gone.txt)": 1}


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
@pytest.mark.parametrize(
    ("links", "files", "cycle", "again"),
    [
        ({"a/up": ".."}, "a/1.txt b/2.txt b/c/3.txt", "a/up", ""),
        ({"a/self": "."}, "a/1.txt b/2.txt b/c/3.txt", "a/self", ""),
        ({"a/b": "../b", "b/a": "../a"}, "a/1.txt a/b/2.txt a/b/c/3.txt", "a/b/a", "b"),
        ({"a/back": "../b", "b/up": ".."}, "a/1.txt a/back/2.txt a/back/c/3.txt", "a/back/up", "b"),
        ({"d": "b/c", "b/z": "../a"}, "a/1.txt b/2.txt b/c/3.txt", "", "b/z"),
    ],
)
def test_a_folder_is_read_under_the_first_of_its_names(
    tmp_path: Path, pattern: str, links: dict[str, str], files: str, cycle: str, again: str
) -> None:
    data = tree(tmp_path, "a/1.txt b/2.txt b/c/3.txt", links)
    found = input_files(str(data / pattern) if pattern else str(data))
    assert list(found) == files.split()
    assert {path.resolve() for path in found.values()} == {(data / name).resolve() for name in found_by_find(data)}
    expected = {}
    if cycle:
        expected[f"links to a folder that contains them not followed (the first: {cycle})"] = 1
    if again:
        expected[f"links to a folder that is read already not followed (the first: {again})"] = 1 + ("d" in links)
    assert found.left_out == expected


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**/**/*.txt"])
def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path, pattern: str) -> None:
    names = "abcdefghij"
    links = {f"{name}/to-{other}": f"../{other}" for name in names for other in names if name != other}
    data = tree(tmp_path, " ".join(f"{name}/{name}.txt" for name in names), links)
    found = input_files(str(data / pattern) if pattern else str(data))
    assert sorted(path.name for path in found.values()) == [f"{name}.txt" for name in names]


def test_a_folder_whose_names_match_different_parts_of_a_glob_is_read_for_both(tmp_path: Path) -> None:
    data = tree(tmp_path, "a/x b/1.txt b/c/2.txt", {"a/link": "../b"})
    assert list(input_files(str(data / "*/*/*.txt"))) == ["a/link/1.txt", "b/c/2.txt"]


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = tree(tmp_path / "data", "a.txt")
    folder = os.fsencode(data) + b"/caf\xe9"
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/\xff.txt")).write_text("text of the second\n")
    os.symlink(b"nowhere", folder + b"/gone\xff")
    assert list(input_files(str(data))) == ["a.txt", r"caf\xe9/\xff.txt"]
    assert list(input_files(os.fsdecode(folder + b"/\xff.txt"))) == [r"\xff.txt"]
    texts, report, _ = documents(data)
    assert texts == ["text of a.txt", "text of the second"]
    assert report == {r"dangling links left out (the first: caf\xe9/gone\xff)": 1}
    recipe = DataRecipe(corpora=[{"name": "text", "path": str(data)}], tokenizer=str(tokenizer_folder), held_out=0)
    prepare(recipe, tmp_path / "prepared")
    assert r"caf\\xe9/gone\\xff" in (tmp_path / "prepared" / "manifest.json").read_text()


def test_of_two_files_with_one_escaped_name_one_is_read_and_the_other_counted(tmp_path: Path) -> None:
    data = tree(tmp_path, r"caf\xe9.txt")
    Path(os.fsdecode(os.fsencode(data) + b"/caf\xe9.txt")).write_text("other text\n")
    texts, report, _ = documents(data)
    assert len(texts) == 1
    assert report == {r"files left out that have the escaped name of another one (the first: caf\xe9.txt)": 1}


def test_one_file_under_two_names_is_read_twice_and_counted(tmp_path: Path) -> None:
    data = tree(tmp_path, "a.txt", {"b.txt": "a.txt"})
    os.link(data / "a.txt", data / "c.txt")
    texts, report, _ = documents(data)
    assert texts == ["text of a.txt"] * 3
    assert report == {"files read again under another name (the first: b.txt)": 2}


def test_a_link_to_itself_and_special_files_are_counted(tmp_path: Path) -> None:
    data = tree(tmp_path, "a.txt .hidden/x .y", {"loop": "loop"})
    os.mkfifo(data / "pipe")
    assert documents(data) == (
        ["text of a.txt"],
        {
            "dangling links left out (the first: loop)": 1,
            "entries that are neither files nor folders left out (the first: pipe)": 1,
            "hidden files and folders left out (the first: .hidden)": 2,
        },
        "",
    )


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt"])
def test_an_unreadable_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    data = tree(tmp_path, "a/1.txt b/2.txt")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = input_files(str(data / pattern) if pattern else str(data))
    assert list(found) == ["a/1.txt"]
    assert found.left_out == {"unreadable files and folders left out (the first: b)": 1}
    with pytest.raises(DataError, match="b: cannot be read: Permission denied"):
        input_files(str(data / "b"))


def test_an_unreadable_file_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tree(tmp_path, "a.txt b.txt")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b.txt")
    texts, report, _ = documents(data)
    assert texts == ["text of a.txt"]
    assert report == {"unreadable files and folders left out (the first: b.txt)": 1}


def test_the_first_part_alone_counts_what_was_left_out(tmp_path: Path) -> None:
    corpus = TextCorpus(TextCorpus.Config(path=str(tree(tmp_path, "a.txt b.txt c.txt", {"gone": "nowhere"}))))
    counts = []
    for part in corpus.parts():
        corpus.report.clear()
        list(corpus.read(part))
        counts.append(sum(corpus.report.values()))
    assert counts == [1, 0, 0]


def test_other_files_beside_shards_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    from kdcore_preparation.readers.hdf5 import Hdf5Corpus

    files = Hdf5Corpus(Hdf5Corpus.Config(path=str(tree(tmp_path, "a.hdf5 b.txt c.md")))).files()
    assert list(files) == ["a.hdf5"]
    assert isinstance(files, InputFiles)
    assert files.left_out == {"files that are not HDF5 left out (the first: b.txt)": 2}


class PlainReader(Corpus):
    """A reader like those of other packages, based on the example in the documentation."""

    class Config(CorpusConfig):
        path: PathString

    def files(self) -> Mapping[str, Path]:
        return input_files(self.config.path)

    def documents(self) -> Iterator[Document]:
        for name, path in self.files().items():
            yield Document(name, path.read_text())


@pytest.mark.parametrize("reader", ["text", "plain"])
@pytest.mark.parametrize("workers", [1, 2])
def test_prepared_data_counts_entries_that_were_left_out_once(
    tmp_path: Path, tokenizer_folder: Path, reader: str, workers: int
) -> None:
    names = [f"sub/{number}.txt" for number in range(5)]
    data = tree(tmp_path / "data", " ".join(["a.txt", *names]), {"external": "../ext", "gone.txt": "/nowhere/x.txt"})
    tree(tmp_path / "ext", " ".join(f"{number}.txt" for number in range(5)))
    recipe = DataRecipe(
        corpora=[{"name": "text", "path": str(data)}], tokenizer=str(tokenizer_folder), sequence_length=16, held_out=0.1
    )
    corpora = [PlainReader(PlainReader.Config(path=str(data)))] if reader == "plain" else None
    prepared = prepare(recipe, tmp_path / "out", corpora=corpora, workers=workers)
    assert sum(entry.documents for entry in prepared.manifest.splits.values()) == 11
    assert prepared.manifest.reports == [{"dangling links left out (the first: gone.txt)": 1}]


def test_a_named_entry_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "", {"gone.txt": "/nowhere/x.txt", "loop": "loop"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    tree(tmp_path / "dangling", "", {"a": "nowhere"})
    for name, message in {
        "gone.txt": r"gone\.txt: is a dangling link \(to /nowhere/x\.txt\)",
        "loop": "loop: is a dangling link",
        "missing": "missing: no such file or folder",
        "pipe": "pipe: is neither a file nor a folder",
        "empty": "empty: the folder contains no files",
        "*.md": "no file matches the pattern",
        "dangling": r"contains no files, but 1 dangling links left out \(the first: a\)",
    }.items():
        with pytest.raises(DataError, match=message):
            input_files(str(tmp_path / name))


def test_globs_match_what_the_standard_library_matches(tmp_path: Path) -> None:
    import glob

    tree(tmp_path, "a/1.txt a/b/2.txt a/b/c/3.md .h/4.txt a/.h.txt x[1].txt b/2.txt a/b/c/d.txt/5.txt")
    for pattern in (
        "*/*.txt",
        "**/*.txt",
        "**",
        "a/**",
        "a/**/c/*",
        "[ab]/?.txt",
        "x[[]1].txt",
        "*/b/../*.txt",
        ".*/*",
    ):
        matches = glob.glob(pattern, root_dir=tmp_path, recursive=True)
        expected = {str(tmp_path / match) for match in matches if (tmp_path / match).is_file()}
        assert {str(path) for path in input_files(str(tmp_path / pattern)).values()} == expected, pattern


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("documents_of", [{}, {"documents": "blank_lines"}])
def test_a_flipped_bit_anywhere_in_a_later_stream_is_an_error(
    tmp_path: Path, kind: str, documents_of: dict[str, str]
) -> None:
    start = len(PACK[kind](FIRST))
    whole = PACK[kind](FIRST) + PACK[kind](SECOND)
    path = tmp_path / f"a.{kind}"
    for place in range(3):
        damaged = bytearray(whole)
        damaged[start + place] ^= 4
        path.write_bytes(damaged)
        texts, _, error = documents(path, **documents_of)
        assert "damaged or ends too early" in error, place
        assert documents_of or texts == LINES[:100]


@pytest.mark.parametrize("kind", PACK)
def test_every_flipped_bit_is_an_error_or_harmless(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zst":  # only with checksums, which the command zstd writes and pyarrow does not
        if shutil.which("zstd") is None:
            pytest.skip("the command zstd is not installed")
        streams = [
            subprocess.run(["zstd", "-c", "-q", "--check"], input=text, capture_output=True, check=True).stdout
            for text in (FIRST, SECOND)
        ]
    else:
        streams = [PACK[kind](FIRST), PACK[kind](SECOND)]
    whole = b"".join(streams)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        texts, _, error = documents(path)
        assert error or texts == LINES, place


@pytest.mark.parametrize("kind", PACK)
def test_data_after_the_last_stream_is_an_error_but_all_text_is_kept(tmp_path: Path, kind: str) -> None:
    whole = PACK[kind](FIRST) + PACK[kind](SECOND)
    for tail in (b"trailing garbage", b"\0" * 512 + b"x", b"<html>404</html>"):
        (tmp_path / "a").write_bytes(whole + tail)
        texts, _, error = documents(tmp_path / "a")
        assert texts == LINES
        assert "damaged or ends too early" in error


def test_zero_bytes_after_gzip_are_legal_padding(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(FIRST) + bytes(512))
    assert documents(tmp_path / "a") == (LINES[:100], {}, "")


@pytest.mark.parametrize("kind", PACK)
def test_a_file_that_ends_within_a_later_stream_keeps_the_earlier_ones(tmp_path: Path, kind: str) -> None:
    first, second = PACK[kind](FIRST), PACK[kind](SECOND)
    for length in (1, 2, 3, 8, len(second) // 2, len(second) - 1):
        (tmp_path / "a").write_bytes(first + second[:length])
        texts, _, error = documents(tmp_path / "a")
        assert texts[:100] == LINES[:100]
        assert "damaged or ends too early" in error


def test_skippable_frames_of_zstd_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    (tmp_path / "a").write_bytes(skipped + zstd(FIRST) + skipped + zstd(SECOND) + skipped)
    assert documents(tmp_path / "a") == (LINES, {}, "")


@pytest.mark.parametrize("kind", PACK)
def test_a_damaged_beginning_is_damage_not_a_binary_file(tmp_path: Path, kind: str) -> None:
    packed = bytearray(PACK[kind](FIRST))
    packed[0] ^= 4
    (tmp_path / f"b.{kind}").write_bytes(packed)
    (tmp_path / "c.txt").write_bytes(SECOND)
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path)))
    with pytest.raises(DataError, match=rf"b\.{kind}: .*does not begin as a \.{kind} file"):
        list(corpus.documents())


def test_records_before_damage_are_kept(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(100))
    second = bytearray(bz2.compress(lines))
    second[1] ^= 4
    (tmp_path / "a.jsonl").write_bytes(bz2.compress(lines) + second)
    corpus = JsonLinesCorpus(JsonLinesCorpus.Config(path=str(tmp_path)))
    found = []
    with suppress(DataError):
        for document in corpus.documents():
            found.append(document.text)
    assert found == [str(number) for number in range(100)]
    with pytest.raises(DataError, match="damaged or ends too early"):
        list(corpus.documents())


def test_files_that_spark_writes_beside_parquet_are_left_out_and_counted(tmp_path: Path) -> None:
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one", "two"]})
    (tmp_path / "_key=1").mkdir()
    for name in ("part-0.parquet", "_key=1/part-1.parquet"):
        parquet.write_table(table, tmp_path / name)
    for name in ("_SUCCESS", "_metadata", "part-0.parquet.crc", ".part-0.parquet.crc", "._SUCCESS.crc"):
        (tmp_path / name).write_bytes(b"")
    corpus = ParquetCorpus(ParquetCorpus.Config(path=str(tmp_path)))
    assert [document.id for document in corpus.documents()] == [
        f"{name}:{row}" for name in ("_key=1/part-1.parquet", "part-0.parquet") for row in range(2)
    ]
    assert corpus.report == {
        "files that are not data left out (the first: _SUCCESS)": 3,
        "hidden files and folders left out (the first: ._SUCCESS.crc)": 2,
    }
    named = ParquetCorpus(ParquetCorpus.Config(path=str(tmp_path / "_SUCCESS")))
    with pytest.raises(DataError, match="_SUCCESS: is damaged or not a Parquet file"):
        list(named.documents())
    shutil.rmtree(tmp_path / "_key=1")
    (tmp_path / "part-0.parquet").unlink()
    with pytest.raises(DataError, match="contains only files such as _SUCCESS"):
        ParquetCorpus(ParquetCorpus.Config(path=str(tmp_path))).parts()


@pytest.mark.parametrize(
    "path",
    [
        "x" * 300, "x" * 300 + "*", "x" * 300 + "/*.txt", "*/" + "x" * 300, "*" * 300, "a/" * 3000 + "*", "a\0b", "*\0",
        "\ud800", "\ud800*", "", "[", "a/**/\0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("find", [input_files, table_files])
def test_impossible_paths_and_patterns_are_input_errors(
    find: Callable[[str], object], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        find(path)
    with pytest.raises(DataError):
        find(f"{tmp_path}/{path or '*'}")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("reader", [TextCorpus, JsonLinesCorpus])
def test_utf16_without_a_byte_order_mark_is_refused(reader: Any, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes('{"text": 1}\n'.encode(encoding))
    with pytest.raises(DataError, match="is UTF-16 text"):
        list(reader(reader.Config(path=str(tmp_path / "a.txt"))).documents())


def test_a_small_file_that_is_compressed_twice_is_binary(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(gzip.compress(b"two\n")))
    (tmp_path / "b.txt").write_bytes(b"one\n")
    corpus = TextCorpus(TextCorpus.Config(path=str(tmp_path)))
    assert [document.text for document in corpus.documents()] == ["one"]
    assert corpus.report["binary files skipped"] == 1
