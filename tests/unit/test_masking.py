"""Whole words, caps and repeated draws, held against computations token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation import DataRecipe, prepare
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdcore.data.manifest import Manifest, ShardEntry, SpecialTokens, SplitEntry
from kdcore.data.shards import Masks, PreparedData
from kdcore.data.weighting import WeightedRows
from kdcore.errors import DataError
from kdcore.tasks.masking import MaskDrawer, Masking, at_most, stored_masks
from kdcore.tasks.word_starts import WordStarts

LENGTH = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> PreparedData:
    folder = tmp_path_factory.mktemp("masking")
    lines = [f"the zebra, and {number} giraffes of student zoology" for number in range(40)]
    (folder / "texts.txt").write_text("\n".join(lines))
    recipe = DataRecipe(
        corpora=[{"name": "text", "path": str(folder / "texts.txt")}],
        tokenizer=str(tokenizer_folder),
        sequence_length=LENGTH,
        held_out=0,
    )
    return prepare(recipe, folder / "data")


def draw(
    data: PreparedData, epoch: int = 0, seed: int = 1, **keys: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, lengths, what the model sees, and what is to be predicted."""
    train = data.split("train")
    tokens, lengths = train.rows(np.arange(len(train)))
    real = np.arange(LENGTH) < lengths[:, None]
    drawer = MaskDrawer(Masking(**keys), data, seed)
    samples = np.arange(len(train))
    masked = drawer.draw(tokens.astype(np.int64), real, samples, np.full(len(samples), epoch), 0)
    return tokens, lengths, masked.inputs, masked.predicted


def words_of(data: PreparedData, tokens: np.ndarray, lengths: np.ndarray) -> list[list[list[int]]]:
    """For each sequence the places of each word's tokens, found token by token."""
    vocabulary = {
        number: token
        for token, number in Tokenizer.from_file(str(data.tokenizer_folder / "tokenizer.json")).get_vocab().items()
    }
    found = []
    for row, length in zip(tokens, lengths, strict=True):
        words: list[list[int]] = []
        for place in range(1, length - 1):
            if place == 1 or not vocabulary[int(row[place])].startswith("##"):
                words.append([])
            words[-1].append(place)
        found.append(words)
    return found


def test_whole_words_are_predicted_or_not_and_about_as_many_tokens_as_asked_for(data: PreparedData) -> None:
    tokens = predicted_tokens = 0
    for epoch in range(20):
        rows, lengths, _, predicted = draw(data, epoch, whole_word=True, probability=0.3)
        for words, marks in zip(words_of(data, rows, lengths), predicted, strict=True):
            assert all(len({bool(marks[place]) for place in word}) == 1 for word in words)
        tokens += int((lengths - 2).sum())
        predicted_tokens += int(predicted.sum())
    assert predicted_tokens / tokens == pytest.approx(0.3, abs=0.02)


def test_all_tokens_of_a_word_are_replaced_one_by_one(data: PreparedData) -> None:
    rows, _, inputs, predicted = draw(data, whole_word=True, probability=0.5)
    hidden = (inputs == data.mask_id) & predicted
    assert 0.7 < hidden.sum() / predicted.sum() < 0.9
    assert (inputs == rows)[~predicted].all()


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_sequence_has_more_predictions_than_allowed_and_small_ones_keep_theirs(
    data: PreparedData, whole_word: bool
) -> None:
    _, _, _, free = draw(data, whole_word=whole_word, probability=0.4)
    rows, lengths, _, capped = draw(data, whole_word=whole_word, probability=0.4, max_predictions=6)
    assert capped.sum(axis=1).max() <= 6
    assert not (capped & ~free).any()
    few = free.sum(axis=1) <= 6
    assert (capped[few] == free[few]).all()
    assert few.any()
    assert not few.all()
    if whole_word:
        for words, marks in zip(words_of(data, rows, lengths), capped, strict=True):
            assert all(len({bool(marks[place]) for place in word}) == 1 for word in words)
    else:
        assert (capped.sum(axis=1)[~few] == 6).all()


def test_words_stay_in_the_order_of_their_draws_as_long_as_they_fit() -> None:
    choose = np.array([[0.3, 0.1, 0.1, 0.1, 0.2, 0.2, 0.05]])
    first = np.array([[0, 1, 1, 1, 4, 4, 6]])
    every = np.ones((1, 7), bool)
    kept = {limit: np.flatnonzero(at_most(limit, every, choose, first)[0]).tolist() for limit in range(8)}
    assert kept == {
        0: [],
        1: [6],
        2: [6],
        3: [6],
        4: [1, 2, 3, 6],
        5: [1, 2, 3, 6],
        6: [1, 2, 3, 4, 5, 6],
        7: [0, 1, 2, 3, 4, 5, 6],
    }


def test_caps_keep_each_token_equally_often() -> None:
    random = np.random.default_rng(0)
    kept = at_most(5, np.ones((4000, 20), bool), random.random((4000, 20)), None)
    assert np.abs(kept.mean(axis=0) - 0.25).max() < 0.03


def test_so_many_masks_are_drawn_of_each_sequence_and_used_in_turn(data: PreparedData) -> None:
    drawn = [draw(data, epoch, duplicates=3) for epoch in range(6)]
    for epoch in range(3):
        np.testing.assert_array_equal(drawn[epoch][2], drawn[epoch + 3][2])
        np.testing.assert_array_equal(drawn[epoch][2], draw(data, epoch)[2])
    assert (drawn[0][3] != drawn[1][3]).any()
    assert (drawn[1][3] != drawn[2][3]).any()


def test_keys_that_cannot_be_are_refused() -> None:
    for keys in ({"max_predictions": 0}, {"duplicates": 0}, {"mask": 0.8, "random": 0.3}):
        with pytest.raises(ValidationError):
            Masking(**keys)


def save_tokenizer(folder: Path, backend: Tokenizer) -> Path:
    roles = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    return folder


def word_starts_of(folder: Path, tokenizer: Path) -> dict[str, bool]:
    (folder / "text.txt").write_text("some text")
    recipe = DataRecipe(
        corpora=[{"name": "text", "path": str(folder / "text.txt")}], tokenizer=str(tokenizer), held_out=0
    )
    data = prepare(recipe, folder / "data")
    vocabulary = Tokenizer.from_file(str(data.tokenizer_folder / "tokenizer.json")).get_vocab()
    starts = WordStarts(data)(np.arange(data.vocab_size)[None])[0]
    return {token: bool(starts[number]) for token, number in vocabulary.items()}


def test_word_starts_are_known_by_the_marks_of_each_kind_of_tokenizer(tmp_path: Path) -> None:
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    pieces = [(piece, -1.0) for piece in (*special, "▁some", "▁", "text", "e")]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=1))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    (tmp_path / "unigram").mkdir()
    starts = word_starts_of(tmp_path / "unigram", save_tokenizer(tmp_path / "u", unigram))
    assert starts == {**dict.fromkeys(special, True), "▁some": True, "▁": True, "text": False, "e": False}

    words = [*special, "Ġtext", "Ċ", "some", "s", "o", "m", "e", "Ġ", "t", "x"]
    bpe = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    (tmp_path / "bpe").mkdir()
    starts = word_starts_of(tmp_path / "bpe", save_tokenizer(tmp_path / "b", bpe))
    assert {token for token, start in starts.items() if start} == {*special, "Ġtext", "Ċ", "Ġ"}

    unmarked = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*special, "some"])}, "<unk>"))
    unmarked.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "unmarked").mkdir()
    with pytest.raises(DataError, match="does not mark where words start"):
        word_starts_of(tmp_path / "unmarked", save_tokenizer(tmp_path / "w", unmarked))


def test_stored_masks_are_used_as_they_are() -> None:
    tokens = np.array([[2, 10, 11, 12, 3], [2, 20, 21, 22, 3]])
    masks = Masks(np.array([[3, 1], [2, 0]], np.int32), np.array([[4, 99], [21, 77]], np.int32))
    masked = stored_masks(tokens, masks)
    assert masked.inputs.tolist() == [[2, 99, 11, 4, 3], [2, 20, 21, 22, 3]]
    assert masked.predicted.astype(int).tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]


def manifest(rows: list[tuple[int, int]], weights: list[float]) -> Manifest:
    shards = [
        ShardEntry(file="train-00000.arrow", rows=count, bytes=0, sha256="", corpus=corpus) for corpus, count in rows
    ]
    special = SpecialTokens(pad=0, cls=1, sep=2, mask=3, unk=None, all=[0, 1, 2, 3])
    return Manifest(
        format_version=2, kdcore_version="", fingerprint="", recipe={}, inputs=[], tokenizer_fingerprint="",
        vocab_size=9, special_tokens=special, sequence_length=8, dtype="uint16", reports=[], weights=weights,
        splits={"train": SplitEntry(shards=shards), "held_out": SplitEntry(shards=shards)},
    )  # fmt: skip


def test_an_epoch_shows_the_sequences_of_a_corpus_as_often_as_its_weight_says() -> None:
    rows = WeightedRows(manifest([(0, 4), (0, 3), (1, 10), (2, 5)], [1.0, 0.5, 2.0]), "train")
    assert rows.num_samples == 7 + 5 + 10
    samples = np.arange(rows.num_samples)
    epochs = [rows.rows(samples, np.full(len(samples), epoch)).tolist() for epoch in range(4)]
    for shown in epochs:
        assert sorted(shown[:7]) == list(range(7))
        assert sorted(shown[12:]) == sorted([*range(17, 22), *range(17, 22)])
    assert sorted(epochs[0][7:12] + epochs[1][7:12]) == list(range(7, 17))
    assert epochs[2] == epochs[0]
    plain = WeightedRows(manifest([(0, 4), (1, 10)], [1.0, 0.5]), "held_out", weighted=False)
    assert plain.rows(np.arange(14), np.full(14, 3)).tolist() == list(range(14))


def test_a_weight_however_small_shows_something_and_a_corpus_without_sequences_nothing() -> None:
    rows = WeightedRows(manifest([(0, 7), (2, 3)], [1e-6, 5.0, 1.0]), "train")
    assert rows.num_samples == 1 + 3
    shown = {int(rows.rows(np.array([0]), np.array([epoch]))[0]) for epoch in range(7)}
    assert shown == set(range(7))
