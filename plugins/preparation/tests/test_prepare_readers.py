"""Results of `kdcore prepare` for each kind of raw text, intact and damaged."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdcore.commands.main import main
from kdcore.data.shards import PreparedData

LINES = [f"the teacher and student number {number}" for number in range(3000)]
PAGES = "".join(
    f"<page><ns>0</ns><id>{number}</id><revision><text>{line}</text></revision></page>"
    for number, line in enumerate(LINES)
)
DUMP = f"<mediawiki>{PAGES}</mediawiki>".encode()

Prepare = Callable[..., tuple[int, str]]


@pytest.fixture
def prepare(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Prepare:
    monkeypatch.chdir(tmp_path)

    def run(corpus: str, *options: str) -> tuple[int, str]:
        recipe = f"corpora: [{{{corpus}}}]\ntokenizer: {tokenizer_folder}\nsequence_length: 16\nheld_out: 0.1\n"
        Path("data.yaml").write_text(recipe, encoding="utf-8")
        code = main(["prepare", "data.yaml", "out", "--workers", "1", *options])
        return code, capsys.readouterr().err

    return run


def parquet_of(column: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({column: LINES}), path)

    return write


def content(raw: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(raw) and None


def half(raw: bytes) -> Callable[[Path], None]:
    return content(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    ("file", "write", "keys", "words"),
    [
        ("a.txt", content(b""), "name: text", ["contain no text"]),
        ("a.txt", content(b" \n\n"), "name: books", ["contain no text"]),
        ("a.txt", content(bytes(range(256)) * 20), "name: text", ["a.txt: is binary data, not text", "glob"]),
        ("a.txt", content("\n".join(LINES).encode("utf-16")), "name: text", ["a.txt: is UTF-16 text", "iconv"]),
        ("a.7z", content(b"7z\xbc\xaf\x27\x1c"), "name: text", ["a.7z: is compressed with 7z", "gzip, bzip2, zstd"]),
        ("a.jsonl", content(b'{"body": "x"}\n' * 200), "name: jsonl", ['line 1 has no field "text", only body']),
        ("a.parquet", parquet_of("body"), "name: parquet", ["no column `text`", "allowed: body", "set `column`"]),
        ("a.parquet", content(b"text"), "name: parquet", ["a.parquet: is damaged or not a Parquet file"]),
        ("a.xml", content(b"<html/>"), "name: wikipedia", ["not a MediaWiki dump", "<html>", "pages-articles"]),
        ("a.xml", content(b"<mediawiki></mediawiki>"), "name: wikipedia", ["the dump contains no pages"]),
        ("a.hdf5", content(b"text"), "name: hdf5", ["a.hdf5: is damaged or not an HDF5 file"]),
        ("a.txt", content(b"text"), "name: hdf5", ["the folder contains no HDF5 files", "train_shard_0.hdf5"]),
        ("a.txt", content(b"text"), "name: books, encoding: utf-9", ["corpora.0.encoding", "unknown encoding `utf-9`"]),
    ],
)
def test_what_cannot_be_read_at_all_is_refused_and_leaves_nothing(
    tmp_path: Path, prepare: Prepare, file: str, write: Callable[[Path], None], keys: str, words: list[str]
) -> None:
    write(tmp_path / file)
    code, message = prepare(f"{keys}, path: {file}")
    assert code == 2
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "write", "keys", "words"),
    [
        ("a.gz", half(gzip.compress("\n".join(LINES * 9).encode())), "name: text", ["a.gz: the compressed file"]),
        ("a.bz2", half(bz2.compress(DUMP, 1) + bz2.compress(b"")), "name: wikipedia", ["a.bz2: the compressed file"]),
        ("a.xml", half(DUMP), "name: wikipedia", ["a.xml: the dump is damaged or ends too early, after"]),
        ("a.xml", content(DUMP.replace(b"</id>", b"</di>", 1)), "name: wikipedia", ["page 1", "not valid XML"]),
        (
            "a.jsonl",
            content(b"".join(b'{"text": "the teacher %d"}\n' % number for number in range(300)) + b"{"),
            "name: jsonl",
            ["a.jsonl: line 301 is not JSON"],
        ),
    ],
)
def test_what_is_damaged_is_kept_but_for_the_damage_which_is_an_error_unless_that_is_accepted(
    tmp_path: Path, prepare: Prepare, file: str, write: Callable[[Path], None], keys: str, words: list[str]
) -> None:
    write(tmp_path / file)
    code, message = prepare(f"{keys}, path: {file}")
    assert code == 2
    for word in words:
        assert word in message
    code, _ = prepare(f"{keys}, path: {file}", "--keep-going")
    assert code == 0
    data = PreparedData.open(tmp_path / "out")
    data.verify()
    assert sum(split.documents for split in data.manifest.splits.values()) > 200


def test_shards_of_the_source_keep_their_masks_and_their_splits(
    tmp_path: Path, prepare: Prepare, tokenizer_folder: Path
) -> None:
    import h5py
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    random = np.random.default_rng(0)
    original = random.integers(5, len(tokenizer), (40, 16))
    original[:, 0], original[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    seen = original.copy()
    seen[:, 3] = tokenizer.mask_token_id
    for name, rows in (("train_shard_0", slice(0, 30)), ("test_shard_0", slice(30, 40))):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["input_ids"] = seen[rows]
            file["input_mask"] = np.ones_like(seen[rows])
            file["segment_ids"] = np.zeros_like(seen[rows])
            file["masked_lm_positions"] = np.tile([3, 0], (len(seen[rows]), 1))
            file["masked_lm_ids"] = np.stack([original[rows, 3], np.zeros(len(seen[rows]))], axis=1)
    code, message = prepare("name: hdf5, path: .")
    assert code == 0, message
    data = PreparedData.open(tmp_path / "out")
    for split, rows in (("train", slice(0, 30)), ("held_out", slice(30, 40))):
        part = data.split(split)  # type: ignore[arg-type]
        assert {tuple(row) for row in part.rows(np.arange(len(part)))[0]} == {tuple(row) for row in original[rows]}
