"""Every built-in reader meets the requirements, with one part and with several, and is documented."""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation.readers import file_corpus, hdf5, huggingface, parquet
from kdcore_preparation.readers.input_files import input_files
from kdcore_preparation.readers.wikipedia import wikipedia_dump
from kdcore_testing import check_corpus

from kdcore.registry import corpora

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "readers.md"
LINES = [f"document {number}: of the teachér and \ufffd the student" for number in range(300)] + [
    "",
    "a\0b",
    "Zu\u0308rich",
]


def write_text(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_bytes("\n".join(LINES).encode() + b"\n\xff broken")
    (folder / "b.txt").write_bytes(b"other\n")
    (folder / "c.bin").write_bytes(bytes(range(256)) * 9)
    return {"path": str(folder)}


def write_jsonl(folder: Path) -> dict[str, Any]:
    import json

    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    return {"path": str(folder / "a.jsonl")}


def write_books(folder: Path) -> dict[str, Any]:
    (folder / "shelf").mkdir()
    for number, encoding in enumerate(("utf-8", "utf-16", "utf-8-sig")):
        (folder / f"shelf/{number}.txt").write_bytes("\n".join(LINES).encode(encoding))
    (folder / "empty.txt").write_bytes(b"")
    return {"path": str(folder)}


def write_parquet(folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet as pq

    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.table({"text": LINES}), folder / name, row_group_size=40)
    return {"path": str(folder)}


def write_huggingface(folder: Path) -> dict[str, Any]:
    import datasets

    datasets.Dataset.from_dict({"text": LINES}).save_to_disk(folder / "saved")
    return {"path": str(folder / "saved")}


def write_hdf5(folder: Path) -> dict[str, Any]:
    import h5py

    random = np.random.default_rng(0)
    for name in ("train_shard_0.hdf5", "test_shard_0.hdf5"):
        with h5py.File(folder / name, "w") as file:
            file["input_ids"] = random.integers(5, 30_000, (70, 16))
            file["input_mask"] = np.ones((70, 16), "int8")
            file["segment_ids"] = np.zeros((70, 16), "int8")
            file["masked_lm_positions"] = np.tile([3, 5, 0], (70, 1))
            file["masked_lm_ids"] = random.integers(5, 30_000, (70, 3))
    return {"path": str(folder)}


def write_wikipedia(folder: Path) -> dict[str, Any]:
    pages = [
        f"<page><ns>{int(number % 9 == 0)}</ns><id>{number}</id><revision><text>{line}</text></revision></page>"
        for number, line in enumerate(LINES)
        if "\0" not in line
    ]
    pieces = ["<mediawiki>", *("\n".join(pages[start : start + 20]) for start in range(0, 300, 20)), "</mediawiki>"]
    (folder / "dump.xml.bz2").write_bytes(b"".join(bz2.compress(piece.encode()) for piece in pieces))
    return {"path": str(folder / "dump.xml.bz2")}


EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text": write_text,
    "jsonl": write_jsonl,
    "books": write_books,
    "parquet": write_parquet,
    "huggingface": write_huggingface,
    "hdf5": write_hdf5,
    "wikipedia": write_wikipedia,
}


def built_in() -> list[str]:
    return [entry.name for entry in corpora.entries() if entry.distribution == "kdcore-preparation"]


def test_there_is_an_example_for_each_reader() -> None:
    assert sorted(EXAMPLES) == sorted(built_in())


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("many_parts", [False, True])
def test_a_reader_keeps_the_promises_of_the_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, many_parts: bool
) -> None:
    config = EXAMPLES[name](tmp_path)
    if many_parts:
        for module in (file_corpus, parquet, huggingface, wikipedia_dump):
            monkeypatch.setattr(module, "PART_BYTES", 1000)
        monkeypatch.setattr(wikipedia_dump, "COMPRESSED_PART_BYTES", 1000)
        monkeypatch.setattr(hdf5, "_ROWS", 9)
        cls = corpora.get(name)
        assert len(cls(cls.Config(**config)).parts()) > 1
    check_corpus(name, config)


def test_progress_ends_at_the_size_of_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", 1000)
    for name in ("text", "jsonl", "books", "parquet", "hdf5"):
        folder = tmp_path / name
        folder.mkdir()
        cls = corpora.get(name)
        corpus = cls(cls.Config(**EXAMPLES[name](folder)))
        for part in corpus.parts():
            corpus.bytes_read = 0
            seen = [corpus.bytes_read for _ in corpus.read(part)]
            assert seen == sorted(seen)
            if seen:
                # A buffer may have been read beyond the requested data.
                assert part.bytes <= corpus.bytes_read <= part.bytes + 200_000, (name, part)


@pytest.mark.parametrize("name", ["books", "text"])
def test_a_folder_is_not_listed_anew_for_each_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("one\n")
    cls = corpora.get(name)
    corpus = cls(cls.Config(path=str(tmp_path)))
    parts, listed = corpus.parts(), []
    monkeypatch.setattr(file_corpus, "input_files", lambda path: listed.append(path) or input_files(path))
    assert [len(list(corpus.read(part))) for part in parts] == [1] * 20
    assert len(listed) == 1


def test_the_documentation_names_each_reader_with_all_its_keys() -> None:
    rows = {}
    for line in DOCUMENTATION.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) > 2:
            rows[cells[0].strip("`")] = set(re.findall(r"`(\w+)`", cells[1]))
    common = {"weight"}
    assert rows == {name: set(corpora.get(name).Config.model_fields) - common for name in built_in()}
