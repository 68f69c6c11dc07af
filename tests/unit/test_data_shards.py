from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from kdcore_preparation.inspection import describe
from numpy.typing import NDArray

from kdcore.data.manifest import FORMAT_VERSION, Manifest, SpecialTokens, SplitEntry, row_dtype, write_manifest
from kdcore.data.shard_writer import ShardWriter
from kdcore.data.shards import Masks, PreparedData, Sequences
from kdcore.data.tokenizers import load_tokenizer, tokenizer_fingerprint
from kdcore.data.weighting import WeightedRows
from kdcore.errors import DataError

LENGTH = 16
VOCABULARY = 146
"""Of the fixture `tokenizer_folder`."""


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
    vocab_size: int = VOCABULARY,
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
            vocab_size=vocab_size,
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
    return make_rows(500, VOCABULARY)


@pytest.fixture
def prepared(tmp_path: Path, tokenizer_folder: Path, rows: tuple[NDArray[np.int32], NDArray[np.int32]]) -> PreparedData:
    return make_folder(tmp_path / "data", tokenizer_folder, *rows)


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 2**16), ("int32", 250_000)])
def test_rows_come_back_as_they_were_written_in_any_order(
    tmp_path: Path, tokenizer_folder: Path, dtype: Literal["uint16", "int32"], top: int
) -> None:
    rows, lengths = make_rows(500, top)
    data = make_folder(tmp_path / "data", tokenizer_folder, rows, lengths, dtype=dtype, vocab_size=top)
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
    train.verify()


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
    with pytest.raises(DataError, match="no such folder"):
        PreparedData.open(tmp_path / "missing")
    with pytest.raises(DataError, match=r"is not a folder of prepared data: it has no manifest\.json"):
        PreparedData.open(tmp_path)


def test_a_truncated_or_missing_shard_is_found_on_opening(prepared: PreparedData) -> None:
    shard = prepared.folder / prepared.manifest.splits["train"].shards[1].file
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(
        DataError,
        match=rf"{shard.name}: has the wrong size \(found {len(content) - 10} bytes, expected {len(content)}\)",
    ):
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


def test_intact_data_passes_verify(prepared: PreparedData) -> None:
    prepared.verify()


def rewritten(prepared: PreparedData, **changes: Any) -> PreparedData:
    """The folder with another manifest that carries the hash over itself."""
    write_manifest(prepared.folder, prepared.manifest.model_copy(update=changes))
    return PreparedData.open(prepared.folder)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_an_id_out_of_range_is_named_with_its_shard_and_row(
    tmp_path: Path, tokenizer_folder: Path, dtype: Literal["uint16", "int32"]
) -> None:
    rows, lengths = make_rows(500, VOCABULARY)
    rows[437, 3] = VOCABULARY
    data = make_folder(tmp_path / "data", tokenizer_folder, rows, lengths, dtype=dtype)
    name = data.manifest.splits["train"].shards[3].file
    train = data.split("train")
    assert train.rows(np.arange(437))[0].max() < VOCABULARY
    # 500 rows, 7 a batch, 16 batches a shard: row 437 is row 437 - 3 * 112 of the fourth.
    words = rf"{name}: row 101 contains an id outside of the vocabulary \(found 146 of 146\)"
    with pytest.raises(DataError, match=words):
        train.rows(np.array([5, 437, 6]))
    with pytest.raises(DataError, match=words):
        data.verify()


def test_a_negative_id_is_out_of_range(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows, lengths = make_rows(20, VOCABULARY)
    rows[3, 0] = -1
    data = make_folder(tmp_path / "data", tokenizer_folder, rows, lengths, dtype="int32")
    with pytest.raises(DataError, match=r"row 3 contains an id outside of the vocabulary \(found -1 of 146\)"):
        data.split("train").rows(np.arange(20))


@pytest.mark.parametrize("length", [0, -1, LENGTH + 1, 2**31 - 1])
def test_a_length_out_of_range_is_named_with_its_shard(tmp_path: Path, tokenizer_folder: Path, length: int) -> None:
    rows, lengths = make_rows(20, VOCABULARY)
    lengths[7] = length
    data = make_folder(tmp_path / "data", tokenizer_folder, rows, lengths)
    with pytest.raises(DataError, match=rf"train-00000\.arrow: has sequences of .*{length}.* \(expected 1 to 16"):
        data.split("train")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mask", 5, r"special_tokens\.mask: differs from the tokenizer \(found 5, expected 4\)"),
        ("pad", 1, r"special_tokens\.pad: differs from the tokenizer \(found 1, expected 0\)"),
        ("unk", None, r"special_tokens\.unk: differs from the tokenizer \(found None, expected 1\)"),
        ("all", [0, 1], r"special_tokens\.all: differs from the tokenizer \(found \[0, 1\], expected"),
    ],
)
def test_verify_compares_special_ids_with_the_tokenizer(
    prepared: PreparedData, key: str, value: Any, words: str
) -> None:
    tokens = prepared.manifest.special_tokens.model_copy(update={key: value})
    with pytest.raises(DataError, match=rf"manifest\.json: {words}"):
        rewritten(prepared, special_tokens=tokens).verify()


def test_verify_compares_the_vocabulary_with_the_tokenizer(prepared: PreparedData) -> None:
    with pytest.raises(DataError, match=r"vocab_size: differs from the tokenizer \(found 147, expected 146\)"):
        rewritten(prepared, vocab_size=VOCABULARY + 1).verify()
    with pytest.raises(DataError, match=r"vocab_size: differs from the tokenizer \(found 145, expected 146\)"):
        rewritten(prepared, vocab_size=VOCABULARY - 1).verify()


def test_verify_compares_length_and_type_with_the_rows(prepared: PreparedData) -> None:
    with pytest.raises(DataError, match=r"train-00000\.arrow: has rows of 16 tokens \(expected 15\)"):
        rewritten(prepared, sequence_length=LENGTH - 1).verify()
    with pytest.raises(DataError, match=r"dtype: differs from the rows of train \(found int32, expected uint16\)"):
        rewritten(prepared, sequence_length=LENGTH, dtype="int32").verify()


def test_another_tokenizer_in_the_folder_is_found_by_verify(prepared: PreparedData) -> None:
    tokenizer = load_tokenizer(str(prepared.tokenizer_folder))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(prepared.tokenizer_folder)
    with pytest.raises(DataError, match="is not the tokenizer of the data"):
        prepared.verify()
    shutil.rmtree(prepared.tokenizer_folder)
    with pytest.raises(DataError, match="tokenizer's files are missing"):
        PreparedData.open(prepared.folder)


def change_manifest(prepared: PreparedData, **changes: Any) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its hash: SHA-256 over canonical JSON without the hash."""
    bare = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return {**bare, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_a_newer_format_says_so_even_when_it_has_other_keys(prepared: PreparedData) -> None:
    change_manifest(prepared, format_version=FORMAT_VERSION + 1, kdcore_version="9.1", splits=None)
    with pytest.raises(
        DataError,
        match=rf"newer kdcore \(9\.1, format version {FORMAT_VERSION + 1}\)(.|\n)*1 to {FORMAT_VERSION}(.|\n)*upgrade",
    ):
        PreparedData.open(prepared.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2}'])
def test_a_damaged_manifest_is_an_error_not_a_traceback(prepared: PreparedData, content: str) -> None:
    (prepared.folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json.*: (cannot be read|is damaged)"):
        PreparedData.open(prepared.folder)


GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"


@pytest.mark.parametrize(
    ("folder", "version", "rows"),
    [
        (GOLDEN / "prepared" / "manifest-version-1", 1, 49),
        (GOLDEN / "cache" / "51fe6e3dbfc897809ab4491438619a35", 2, 49),
    ],
)
def test_folders_of_older_formats_are_read(folder: Path, version: int, rows: int) -> None:
    data = PreparedData.open(folder)
    assert data.manifest.format_version == version
    train = data.split("train")
    assert len(train) == rows
    tokens, lengths = train.rows(np.arange(rows))
    assert (tokens[:, 0] == data.cls_id).all()
    assert (tokens[np.arange(rows), lengths - 1] == data.sep_id).all()
    data.verify()


def test_additions_to_the_manifest_do_not_keep_an_older_kdcore_from_reading_it(prepared: PreparedData) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), "something_new": 1})))
    assert len(PreparedData.open(prepared.folder).split("train")) == 500


def test_the_hash_is_over_canonical_json_whatever_the_layout_of_the_file(prepared: PreparedData) -> None:
    path = prepared.folder / "manifest.json"
    content = json.loads(path.read_text())
    assert content == sealed(content)
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    prepared.verify()


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON document but the root, leaves and containers."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*place, key)
        yield from places(item, (*place, key))


def others(value: Any) -> list[Any]:
    """Values of the same and of other types."""
    found: list[Any] = [None, True, False, 0, 1, -1, 1.5, "", "x", "a\0b", "../x", [], {}, [value], {"x": value}]
    if isinstance(value, int) and not isinstance(value, bool):
        found += [value + 1, float(value), str(value)]
    elif isinstance(value, float):
        found += [value + 1, int(value)]
    elif isinstance(value, str):
        found += [value + "x", value.upper() + "y"]
    return [other for other in found if json.dumps(other) != json.dumps(value)]


def test_no_changed_manifest_is_accepted(prepared: PreparedData) -> None:
    """Every leaf and container: changed, of another type, removed, joined by a new key."""
    path = prepared.folder / "manifest.json"
    content = json.loads(path.read_text())
    accepted, unnamed, tried = [], [], 0
    for place in places(content):
        variants = []
        changed = copy.deepcopy(content)
        around = changed
        for key in place[:-1]:
            around = around[key]
        last, before = place[-1], around[place[-1]]
        for other in others(before):
            around[last] = other
            variants.append(json.dumps(changed))
        around[last] = before
        if isinstance(before, dict):
            before["something_new"] = 1
            variants.append(json.dumps(changed))
        del around[last]
        variants.append(json.dumps(changed))
        for text in variants:
            path.write_text(text)
            tried += 1
            try:
                PreparedData.open(prepared.folder)
            except DataError as error:
                unnamed += [str(error)] if str(prepared.folder) not in str(error) else []
            else:
                accepted.append((place, text))
    assert accepted == []
    assert unnamed == []
    assert tried > 1000


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_changed_manifest_without_a_hash_is_read_or_named_and_never_a_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(GOLDEN / "cache" / "51fe6e3dbfc897809ab4491438619a35", folder)
    content = json.loads((folder / "manifest.json").read_text())
    refused = 0
    for place in places(content):
        changed = copy.deepcopy(content)
        around = changed
        for key in place[:-1]:
            around = around[key]
        for other in others(around[place[-1]])[::2]:
            around[place[-1]] = other
            (folder / "manifest.json").write_text(json.dumps(changed))
            try:
                data = PreparedData.open(folder)
                list(describe(data, 1))
                WeightedRows(data.manifest, "train")
            except DataError:
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "text",
    ["null", "3", '"text"', "[" * 100_000, '{"a":' * 100_000, '{"format_version": 3', "\0", '{"a": "\0"}', "\ud800"],
    ids=["null", "number", "text", "deep-list", "deep-map", "cut", "nul", "nul-inside", "surrogate"],
)
def test_what_is_no_manifest_is_named(prepared: PreparedData, text: str) -> None:
    (prepared.folder / "manifest.json").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(DataError, match=r"manifest\.json: (is damaged|cannot be read)"):
        PreparedData.open(prepared.folder)


@pytest.mark.parametrize("version", [None, 0, -1, "3", 3.0, True, [], 2**70])
def test_a_format_version_that_is_none_is_refused(prepared: PreparedData, version: Any) -> None:
    change_manifest(prepared, format_version=version)
    with pytest.raises(DataError, match=r"format_version|newer kdcore"):
        PreparedData.open(prepared.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"corpora": 3}},
        {"recipe": {"corpora": [{"path": "x"}]}},
        {"inputs": [{"corpus": 0}]},
        {"inputs": [3]},
        {"reports": [{"x": -1}]},
        {"weights": ["1"]},
        {"special_tokens": {}},
        {"sequence_length": "16"},
        {"splits": {"elsewhere": {}}},
        {"splits": {"train": {"shards": [{"file": "../x", "rows": 1, "bytes": 1, "sha256": ""}]}}},
        {"splits": {"train": {"shards": [{"file": "a\0b", "rows": 1, "bytes": 1, "sha256": ""}]}}},
        {"splits": {"train": {"shards": [{"file": "x", "rows": 1, "bytes": 1, "sha256": "", "corpus": 7}]}}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_a_manifest_with_a_right_hash_and_wrong_types_is_refused(
    prepared: PreparedData, change: dict[str, Any]
) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **change})))
    with pytest.raises(DataError, match=rf"manifest\.json: is damaged: .*{next(iter(change))}|has no weight"):
        PreparedData.open(prepared.folder)


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
    train = Sequences(tmp_path, "train", entry, LENGTH, 0, vocab_size=60_000)
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
