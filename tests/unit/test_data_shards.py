from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcore.data.manifest import FORMAT_VERSION, Manifest, SpecialTokens, SplitEntry, row_dtype, write_manifest
from kdcore.data.shard_writer import ShardWriter
from kdcore.data.shards import Masks, PreparedData, Sequences
from kdcore.data.tokenizers import load_tokenizer, tokenizer_fingerprint
from kdcore.errors import DataError

LENGTH = 16


def make_rows(count: int, top: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    random = np.random.default_rng(count)
    lengths = random.integers(3, LENGTH + 1, count).astype(np.int32)
    rows = random.integers(5, top, (count, LENGTH), dtype=np.int32)
    rows[np.arange(LENGTH) >= lengths[:, None]] = 0
    return rows, lengths


def make_folder(
    folder: Path,
    tokenizer_folder: Path,
    rows: NDArray[np.int32],
    lengths: NDArray[np.int32],
    *,
    dtype: Literal["uint16", "int32"] = "uint16",
) -> PreparedData:
    folder.mkdir()
    with ShardWriter(folder, "train-00000", LENGTH, dtype, batch_rows=7) as train:
        for start in range(0, len(rows), 5):
            train.append(rows[start : start + 5], lengths[start : start + 5])
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION,
            kdcore_version="0",
            fingerprint="f",
            recipe={},
            inputs=[],
            tokenizer_fingerprint=tokenizer_fingerprint(load_tokenizer(str(tokenizer_folder))),
            vocab_size=100,
            special_tokens=SpecialTokens(pad=0, cls=2, sep=3, mask=4, unk=1, all=[0, 1, 2, 3, 4]),
            sequence_length=LENGTH,
            dtype=dtype,
            reports=[],
            splits={"train": SplitEntry(sequences=len(rows), shards=train.shards), "held_out": SplitEntry()},
        ),
    )
    return PreparedData.open(folder)


@pytest.fixture
def rows() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return make_rows(500, 60_000)


@pytest.fixture
def prepared(tmp_path: Path, tokenizer_folder: Path, rows: tuple[NDArray[np.int32], NDArray[np.int32]]) -> PreparedData:
    return make_folder(tmp_path / "data", tokenizer_folder, *rows)


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 2**16), ("int32", 250_000)])
def test_rows_come_back_as_they_were_written_in_any_order(
    tmp_path: Path, tokenizer_folder: Path, dtype: Literal["uint16", "int32"], top: int
) -> None:
    rows, lengths = make_rows(500, top)
    data = make_folder(tmp_path / "data", tokenizer_folder, rows, lengths, dtype=dtype)
    assert len(data.manifest.splits["train"].shards) == 5  # 500 rows, 7 a batch, 16 batches a shard
    train = data.split("train")
    assert len(train) == 500
    np.testing.assert_array_equal(train.lengths, lengths)
    random = np.random.default_rng(0)
    for indices in (np.arange(500), random.permutation(500), random.integers(0, 500, 64), np.array([3, 3, 499, 0, 3])):
        read, read_lengths = train.rows(indices)
        assert read.dtype == read_lengths.dtype == np.int32
        np.testing.assert_array_equal(read, rows[indices])
        np.testing.assert_array_equal(read_lengths, lengths[indices])
    data.verify()


def test_what_rows_gives_is_the_callers_to_change(prepared: PreparedData) -> None:
    train = prepared.split("train")
    read, lengths = train.rows(np.array([1, 2]))
    before = read.copy()
    read[:] = 0
    lengths[:] = 0
    np.testing.assert_array_equal(train.rows(np.array([1, 2]))[0], before)
    assert train.lengths[1] != 0


def test_no_rows_and_rows_that_do_not_exist(prepared: PreparedData) -> None:
    train = prepared.split("train")
    assert train.rows(np.empty(0, np.int64))[0].shape == (0, LENGTH)
    for wrong in (-1, 500):
        with pytest.raises(IndexError, match="500 sequences"):
            train.rows(np.array([0, wrong]))
    assert len(prepared.split("held_out")) == 0
    assert prepared.split("held_out").rows(np.empty(0, np.int64))[0].shape == (0, LENGTH)


def test_a_split_can_be_sent_to_another_process_without_its_rows(prepared: PreparedData) -> None:
    train = prepared.split("train")
    sent = pickle.dumps(train)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).rows(np.arange(9))[0], train.rows(np.arange(9))[0])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "int32")])
def test_ids_are_stored_in_the_smaller_type_that_holds_them(vocab_size: int, dtype: str) -> None:
    assert row_dtype(vocab_size) == dtype
    assert np.iinfo(dtype).max >= vocab_size - 1


def test_a_folder_that_is_missing_or_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        PreparedData.open(tmp_path / "missing")
    with pytest.raises(DataError, match=r"is no folder of prepared data: it has no manifest\.json"):
        PreparedData.open(tmp_path)


def test_a_truncated_or_missing_shard_is_found_on_opening(prepared: PreparedData) -> None:
    shard = prepared.folder / prepared.manifest.splits["train"].shards[1].file
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(DataError, match=rf"{shard.name}: has {len(content) - 10} bytes instead of {len(content)}"):
        PreparedData.open(prepared.folder)
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}: is missing"):
        PreparedData.open(prepared.folder)


def test_a_flipped_byte_is_found_by_verify(prepared: PreparedData) -> None:
    shard = prepared.folder / prepared.manifest.splits["train"].shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name}: is damaged: its checksum differs"):
        PreparedData.open(prepared.folder).verify()


def test_a_shard_of_garbage_is_an_error_not_a_traceback(prepared: PreparedData) -> None:
    shard = prepared.folder / prepared.manifest.splits["train"].shards[0].file
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(DataError, match=rf"{shard.name}: cannot be read"):
        PreparedData.open(prepared.folder).split("train")


def test_another_tokenizer_in_the_folder_is_found_by_verify(prepared: PreparedData) -> None:
    tokenizer = load_tokenizer(str(prepared.tokenizer_folder))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(prepared.tokenizer_folder)
    with pytest.raises(DataError, match="another tokenizer"):
        prepared.verify()
    shutil.rmtree(prepared.tokenizer_folder)
    with pytest.raises(DataError, match="tokenizer's files are missing"):
        PreparedData.open(prepared.folder)


def change_manifest(prepared: PreparedData, **changes: Any) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_says_so_even_when_it_has_other_keys(prepared: PreparedData) -> None:
    change_manifest(prepared, format_version=FORMAT_VERSION + 1, kdcore_version="9.1", splits=None)
    with pytest.raises(DataError, match=r"written by a newer kdcore \(9\.1\)(.|\n)*upgrade kdcore"):
        PreparedData.open(prepared.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2}'])
def test_a_damaged_manifest_is_an_error_not_a_traceback(prepared: PreparedData, content: str) -> None:
    (prepared.folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json.*: (cannot be read|is damaged)"):
        PreparedData.open(prepared.folder)


def test_a_folder_of_an_older_format_says_so(prepared: PreparedData) -> None:
    change_manifest(prepared, format_version=FORMAT_VERSION - 1, kdcore_version="0.0.1")
    with pytest.raises(DataError, match=r"written by an older kdcore \(0\.0\.1\)(.|\n)*prepare the data again"):
        PreparedData.open(prepared.folder)


def test_additions_to_the_manifest_do_not_keep_an_older_kdcore_from_reading_it(prepared: PreparedData) -> None:
    change_manifest(prepared, something_new=1)
    assert len(PreparedData.open(prepared.folder).split("train")) == 500


def test_verify_names_every_file_that_is_wrong(prepared: PreparedData) -> None:
    one, other = (prepared.folder / shard.file for shard in prepared.manifest.splits["train"].shards[:2])
    content = bytearray(one.read_bytes())
    content[-100] ^= 1
    one.write_bytes(content)
    other.unlink()
    with pytest.raises(DataError) as caught:
        prepared.verify()
    assert [problem.what for problem in caught.value.problems] == ["is damaged: its checksum differs", "is missing"]


def test_stored_masks_come_back_with_their_rows_where_rows_have_any(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows, lengths = make_rows(40, 60_000)
    random = np.random.default_rng(3)
    few = Masks(random.integers(0, 3, (20, 2), dtype=np.int32), random.integers(5, 9, (20, 2), dtype=np.int32))
    more = Masks(random.integers(0, 3, (10, 4), dtype=np.int32), random.integers(5, 9, (10, 4), dtype=np.int32))
    with ShardWriter(tmp_path, "train-00000", LENGTH, "uint16", batch_rows=6) as writer:
        writer.append(rows[:20], lengths[:20], few)
        writer.append(rows[20:30], lengths[20:30], more)
        writer.append(rows[30:], lengths[30:])
    assert [shard.predictions for shard in writer.shards] == [2, 4, 0]
    entry = SplitEntry(sequences=40, shards=writer.shards)
    train = Sequences(tmp_path, "train", entry, LENGTH, 0)
    assert not train.has_masks
    assert Sequences(tmp_path, "train", entry.model_copy(update={"shards": writer.shards[:2]}), LENGTH, 0).has_masks
    order = random.permutation(40)
    np.testing.assert_array_equal(train.rows(order)[0], rows[order])
    found = train.masks(order)
    for part in range(2):
        expected = np.zeros((40, 4), np.int32)
        expected[:20, :2] = few[part]
        expected[20:30] = more[part]
        np.testing.assert_array_equal(found[part], expected[order])
