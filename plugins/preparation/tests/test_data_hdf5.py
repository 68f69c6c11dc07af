from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from kdcore_preparation.readers import hdf5
from kdcore_preparation.readers.hdf5 import Hdf5Corpus

from kdcore.data.base import TokenizedSequences
from kdcore.errors import DataError

CLS, SEP, MASK = 101, 102, 103
WIDTH, PREDICTIONS = 16, 4


def write_shard(path: Path, sentences: list[list[int]], *, seed: int = 0, **extra: Any) -> list[dict[int, int]]:
    """Write sequences row by row, like create_pretraining_data.py; return the tokens to predict and their positions."""
    random = np.random.default_rng(seed)
    shapes = {"input_ids": WIDTH, "input_mask": WIDTH, "segment_ids": WIDTH}
    shapes |= {"masked_lm_positions": PREDICTIONS, "masked_lm_ids": PREDICTIONS}
    columns = {name: np.zeros((len(sentences), width), "int32") for name, width in shapes.items()}
    labels = []
    for row, sentence in enumerate(sentences):
        tokens = [CLS, *sentence, SEP]
        count = int(random.integers(0, min(PREDICTIONS, len(sentence)) + 1))
        places = sorted(random.choice(np.arange(1, len(tokens) - 1), count, replace=False).tolist())
        labels.append({place: tokens[place] for place in places})
        for number, place in enumerate(places):
            columns["masked_lm_positions"][row, number] = place
            columns["masked_lm_ids"][row, number] = tokens[place]
            tokens[place] = [MASK, 7, tokens[place]][number % 3]
        columns["input_ids"][row, : len(tokens)] = tokens
        columns["input_mask"][row, : len(tokens)] = 1
    with h5py.File(path, "w") as file:
        for name, values in (columns | extra).items():
            kind = "i1" if name in ("input_mask", "segment_ids") else "i4"
            file.create_dataset(name, data=values, dtype=kind, compression="gzip")
    return labels


@pytest.fixture
def sentences() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(1000, 30_000, random.integers(1, WIDTH - 1)).tolist() for _ in range(30)]


def corpus_of(path: Path) -> Hdf5Corpus:
    return Hdf5Corpus(Hdf5Corpus.Config(path=str(path)))


def rows(groups: list[TokenizedSequences]) -> list[tuple[list[int], dict[int, int]]]:
    """Return each sequence before masking, and the model's inputs at the positions to be predicted."""
    found = []
    for group in groups:
        assert group.masked_positions is not None
        assert group.masked_inputs is not None
        for row, length in enumerate(group.lengths):
            places = [place for place in group.masked_positions[row].tolist() if place]
            inputs = group.masked_inputs[row, : len(places)].tolist()
            found.append((group.tokens[row, :length].tolist(), dict(zip(places, inputs, strict=True))))
    return found


def test_sequences_come_back_unmasked_with_their_masks_beside_them(
    tmp_path: Path, sentences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "_ROWS", 7)
    labels = write_shard(tmp_path / "train_shard_0.hdf5", sentences)
    groups = list(corpus_of(tmp_path).documents())
    assert [group.id for group in groups] == [f"train_shard_0.hdf5:{start}" for start in (0, 7, 14, 21, 28)]
    found = rows(groups)
    assert [tokens for tokens, _ in found] == [[CLS, *sentence, SEP] for sentence in sentences]
    with h5py.File(tmp_path / "train_shard_0.hdf5") as file:
        seen = file["input_ids"][:]
    for row, (tokens, inputs) in enumerate(found):
        assert {place: tokens[place] for place in inputs} == labels[row]
        assert inputs == {place: seen[row, place] for place in labels[row]}
    assert any(MASK in inputs.values() for _, inputs in found)


def test_test_shards_are_held_out_and_other_files_left_alone(tmp_path: Path, sentences: list[list[int]]) -> None:
    for name in ("train_shard_0.hdf5", "test_shard_0.hdf5", "valid_1.h5", "mine.hdf5"):
        write_shard(tmp_path / name, sentences)
    (tmp_path / "notes.txt").write_text("mine")
    splits = {group.id.partition(":")[0]: group.split for group in corpus_of(tmp_path).documents()}
    assert splits == {
        "train_shard_0.hdf5": "train", "test_shard_0.hdf5": "held_out", "valid_1.h5": "held_out", "mine.hdf5": None,
    }  # fmt: skip


def test_the_names_of_nvidias_shards_state_their_split(tmp_path: Path, sentences: list[list[int]]) -> None:
    expected = {
        "training/books_wiki_en_corpus_training_0.hdf5": "train",
        "training/books_wiki_en_corpus_training_12.hdf5": "train",
        "test/books_wiki_en_corpus_test_3.hdf5": "held_out",
        "my_test_shard.hdf5": None,
        "latest_7.hdf5": None,
    }
    for name in expected:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / name, sentences)
    assert {group.id.partition(":")[0]: group.split for group in corpus_of(tmp_path).documents()} == expected


def test_what_follows_the_first_0_is_no_prediction_as_where_the_shards_come_from(tmp_path: Path) -> None:
    positions = np.array([[2, 0, 1, 0]])
    write_shard(
        tmp_path / "train.hdf5", [[5, 6, 7]], masked_lm_positions=positions, masked_lm_ids=np.array([[9, 0, 8, 0]])
    )
    ((tokens, inputs),) = rows(list(corpus_of(tmp_path).documents()))
    assert tokens[2] == 9
    assert list(inputs) == [2]


def test_second_segments_and_next_sentence_labels_are_counted(tmp_path: Path, sentences: list[list[int]]) -> None:
    segments = np.zeros((len(sentences), WIDTH), "int8")
    segments[:5, 1] = 1
    write_shard(tmp_path / "a.hdf5", sentences, segment_ids=segments, next_sentence_labels=np.zeros(len(sentences)))
    corpus = corpus_of(tmp_path)
    assert len(rows(list(corpus.documents()))) == len(sentences)
    assert corpus.report == {"next-sentence labels left out": 30, "sequences of two segments read as one": 5}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"masked_lm_positions": np.full((2, PREDICTIONS), 15)}, "in row 0 mask and predictions do not match"),
        ({"input_mask": np.tile([1, 0], (2, WIDTH // 2))}, "in row 0 mask and predictions do not match"),
        ({"input_ids": np.zeros((3, WIDTH))}, r"its datasets have \[2, 3\] rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, extra: dict[str, Any], words: str) -> None:
    write_shard(tmp_path / "a.hdf5", [[1, 2, 3], [4, 5, 6]], **extra)
    with pytest.raises(DataError, match=rf"a\.hdf5: is damaged: {words}"):
        list(corpus_of(tmp_path).documents())


def test_files_that_are_none_of_these_are_refused(tmp_path: Path, sentences: list[list[int]]) -> None:
    with pytest.raises(DataError, match="no files"):
        corpus_of(tmp_path).files()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"the folder contains no HDF5 files\n.*train_shard_0\.hdf5"):
        corpus_of(tmp_path).files()
    (tmp_path / "a.hdf5").write_text("no such thing")
    with pytest.raises(DataError, match=r"a\.hdf5: is damaged or not an HDF5 file"):
        list(corpus_of(tmp_path).documents())
    write_shard(tmp_path / "a.hdf5", sentences)
    content = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.hdf5: is damaged or not an HDF5 file"):
        list(corpus_of(tmp_path).documents())
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["input_ids"] = np.zeros((2, 2))
    with pytest.raises(DataError, match=r"has no dataset `input_mask`, .*\n.*allowed: input_ids"):
        list(corpus_of(tmp_path).documents())


def test_without_the_package_the_error_says_how_to_get_it(
    tmp_path: Path, sentences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "a.hdf5", sentences)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs the package `h5py`\n.*pip install 'kdcore-preparation\[hdf5\]'"):
        list(corpus_of(tmp_path).documents())
