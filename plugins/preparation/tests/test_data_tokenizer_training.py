from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation import DataRecipe, prepare, tokenizer_training
from kdcore_preparation.tokenizer_training import KINDS, train_tokenizer

from kdcore.data.tokenizers import load_tokenizer, special_ids, tokenizer_fingerprint
from kdcore.errors import DataError


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Words of increasing rarity, with capitals, accents and a script of many characters."""
    choice = random.Random(4)
    stems = ["".join(choice.choices("abcdefghijklmnoprstuvw", k=choice.randint(2, 5))) for _ in range(150)]
    words = [stem + ending for stem in stems for ending in ("", "s", "ing", "ed")] + [
        "Zürich",
        "日本語",
        "C++",
        "don't",
    ]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return ["\n".join(" ".join(choice.choices(words, weights, k=25)) for _ in range(8)) for _ in range(60)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_an_encoders_tokenizer_and_the_same_each_time(
    tmp_path: Path, texts: list[str], kind: tokenizer_training.TokenizerKind
) -> None:
    from transformers import AutoTokenizer

    trained = train_tokenizer(texts, tmp_path / "one", kind=kind, vocabulary=300)
    assert trained.vocabulary == 300
    assert trained.characters == trained.sampled == sum(len(text.replace("\n", "")) for text in texts)
    assert 1 <= trained.tokens_a_word < 4
    assert trained.unknown < 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["one"]

    loaded = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert loaded.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    ids = special_ids(loaded)
    assert (ids.pad, ids.unk, ids.cls, ids.sep, ids.mask) == (0, 1, 2, 3, 4)
    text = texts[0].replace("\n", " ")
    encoded = loaded(text)["input_ids"]
    assert (encoded[0], encoded[-1]) == (ids.cls, ids.sep)
    assert loaded.decode(encoded[1:-1]).replace(" ", "") == text.replace(" ", "")
    assert loaded(f"{text} [MASK]")["input_ids"][-2] == ids.mask

    train_tokenizer(texts, tmp_path / "other", kind=kind, vocabulary=300)
    assert (tmp_path / "other/tokenizer.json").read_bytes() == (tmp_path / "one/tokenizer.json").read_bytes()
    fingerprints = {tokenizer_fingerprint(load_tokenizer(str(tmp_path / name))) for name in ("one", "other")}
    assert len(fingerprints) == 1


def test_a_vocabulary_of_wordpieces_is_in_an_order_of_its_own(tmp_path: Path, texts: list[str]) -> None:
    train_tokenizer(texts, tmp_path / "t", kind="wordpiece", vocabulary=300)
    vocabulary = json.loads((tmp_path / "t/tokenizer.json").read_text())["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    single = [piece for piece in pieces[5:] if len(piece.removeprefix("##")) == 1]
    assert pieces[5 : 5 + len(single)] == single == sorted(single, key=lambda piece: (len(piece) > 1, piece))


@pytest.mark.parametrize("kind", KINDS)
def test_small_letters_only_where_that_is_asked_for(
    tmp_path: Path, texts: list[str], kind: tokenizer_training.TokenizerKind
) -> None:
    for lowercase in (True, False):
        folder = tmp_path / str(lowercase)
        train_tokenizer(texts, folder, kind=kind, vocabulary=300, lowercase=lowercase)
        tokenizer = load_tokenizer(str(folder))
        same = tokenizer("ABING Zürich")["input_ids"] == tokenizer("abing zürich")["input_ids"]
        assert same == lowercase


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_the_text_cannot_fill_or_that_cannot_spell_it_is_refused(
    tmp_path: Path, texts: list[str], kind: tokenizer_training.TokenizerKind
) -> None:
    with pytest.raises(DataError, match=r"too small for a vocabulary of 100,000 tokens\n.*allowed: at most \d+"):
        train_tokenizer(texts, tmp_path / "t", kind=kind, vocabulary=100_000)
    with pytest.raises(DataError, match=r"vocabulary of 20 tokens is too small for the characters"):
        train_tokenizer(texts, tmp_path / "t", kind=kind, vocabulary=20)
    with pytest.raises(DataError, match="contain no text"):
        train_tokenizer(["", " \n "], tmp_path / "t", kind=kind, vocabulary=300)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lowercase", [False, True])
def test_wordpieces_spell_decomposed_text_and_long_words(tmp_path: Path, texts: list[str], lowercase: bool) -> None:
    from transformers import AutoTokenizer

    train_tokenizer(texts, tmp_path / "t", kind="wordpiece", vocabulary=300, lowercase=lowercase)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    decomposed = unicodedata.normalize("NFD", "Zürich")
    assert loaded(decomposed)["input_ids"] == loaded("Zürich")["input_ids"]
    assert loaded.unk_token_id not in loaded(decomposed)["input_ids"]
    long = loaded("ab" * 250, add_special_tokens=False)["input_ids"]
    assert loaded.decode(long) == "ab" * 250
    assert loaded("ab" * 251, add_special_tokens=False)["input_ids"] == [loaded.unk_token_id]
    pair = loaded("ab", "cd")
    assert pair["token_type_ids"] == sorted(pair["token_type_ids"])
    assert pair["token_type_ids"][-1] == 1


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_byte_level_bpe_spells_any_text_in_composed_form(tmp_path: Path, texts: list[str], lowercase: bool) -> None:
    from transformers import AutoTokenizer

    train_tokenizer(texts, tmp_path / "t", kind="byte_level_bpe", vocabulary=300, lowercase=lowercase)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    composed, decomposed = "Zürich Été naïve", unicodedata.normalize("NFD", "Zürich Été naïve")
    assert decomposed != composed
    assert loaded(decomposed)["input_ids"] == loaded(composed)["input_ids"]
    strange = "  two  spaces\t\n\r\x00 \u200b\U0001f600\U0010ffff 日本語 \ue000 [MASQUE] don't ,. "
    for text in (composed, strange, "".join(map(chr, range(0x20, 0x2C0)))):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert loaded.unk_token_id not in ids
        expected = unicodedata.normalize("NFC", text)
        assert loaded.decode(ids) == (expected.lower() if lowercase else expected)
    one, other = (loaded(text, add_special_tokens=False)["input_ids"] for text in ("ab", "cd"))
    pair = loaded("ab", "cd")
    cls, sep = loaded.cls_token_id, loaded.sep_token_id
    assert pair["input_ids"] == [cls, *one, sep, *other, sep]


def test_text_is_prepared_to_the_ids_that_a_byte_level_bpe_gives(tmp_path: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer

    train_tokenizer(texts, tmp_path / "t", kind="byte_level_bpe", vocabulary=300)
    lines = [line for text in texts for line in text.split("\n")][:200]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = DataRecipe(
        corpora=[{"name": "text", "path": str(tmp_path / "text.txt"), "documents": "lines"}],
        tokenizer=str(tmp_path / "t"),
        sequence_length=256,
        held_out=0,
    )
    data = prepare(recipe, tmp_path / "prepared", workers=1)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    rows, lengths = data.split("train").rows(np.arange(len(lines)))
    assert [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)] == loaded(lines)["input_ids"]


def test_a_folder_that_holds_something_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    def never() -> Iterator[str]:
        raise AssertionError("was read")
        yield

    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match="is not empty"):
            train_tokenizer(never(), folder, kind="bpe", vocabulary=300)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_long_text_is_thinned_out_evenly() -> None:
    sample = tokenizer_training._Sample(10_000)
    for number in range(20_000):
        sample.add(f"{number:05}")
    assert sample.characters == 100_000
    assert 4_000 < sample.kept <= 10_000
    numbers = [int(line) for line in sample.lines()]
    assert sum(map(len, sample.lines())) == sample.kept
    assert numbers == sorted(numbers)
    quarters = [sum(number // 5000 == quarter for number in numbers) for quarter in range(4)]
    assert min(quarters) > 0.7 * max(quarters)


def test_long_lines_are_cut_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def keep(lines: list[str], *_: Any) -> bytes:
        seen.extend(lines)
        raise DataError("seen")

    monkeypatch.setattr(tokenizer_training, "_sentencepiece", keep)
    text = "日本 " * 5000
    with pytest.raises(DataError, match="seen"):
        train_tokenizer([text], tmp_path / "t", kind="unigram", vocabulary=300)
    assert "".join(seen) == text.rstrip() or "".join(seen) == text
    assert max(len(line.encode()) for line in seen) < 4192
