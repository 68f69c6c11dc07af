"""Labelled texts get the cleaning of raw text, and special tokens in them stay text."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation import train_tokenizer
from kdcore_preparation.tokenizer_training import KINDS, TokenizerKind
from kdcore_supervised import SequenceClassification, tokenize
from kdcore_supervised.data.tagged import TaggedText
from kdcore_supervised.data.word_windows import tokenize_words
from transformers import AutoTokenizer

from kdcore import load_tokenizer
from kdcore.data.tokenizers import fit_tokenizer_settings

CZECH = "Příliš žluťoučký kůň, který úpěl"


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    kind: TokenizerKind = request.param
    choice = random.Random(0)
    words = [*CZECH.split(), "[x]", "MASK", "SEP", "Press", "here"]
    folder = tmp_path_factory.mktemp("tokenizer") / kind
    vocabulary = {"unigram": 46, "bpe": 80, "wordpiece": 80, "byte_level_bpe": 290}[kind]
    lines = [" ".join(choice.choices(words, k=20)) for _ in range(100)]
    train_tokenizer(lines, folder, kind=kind, vocabulary=vocabulary)
    return load_tokenizer(str(folder))


def test_decomposed_text_has_the_tokens_of_composed_text(tokenizer: Any) -> None:
    decomposed = unicodedata.normalize("NFD", CZECH)
    assert decomposed != CZECH
    report: Counter[str] = Counter()
    one, other = tokenize(tokenizer, [[decomposed]], 128, report), tokenize(tokenizer, [[CZECH]], 128)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert tokenizer.unk_token_id not in one.tokens
    assert report == {"documents brought into Unicode normal form C": 1}


def test_both_texts_of_a_pair_are_cleaned(tokenizer: Any) -> None:
    decomposed = unicodedata.normalize("NFD", CZECH)
    one = tokenize(tokenizer, [[f"\ufeff{CZECH}\x00"], [f" {decomposed}\n"]], 256)
    assert one.tokens.tolist() == tokenize(tokenizer, [[CZECH], [CZECH]], 256).tokens.tolist()


def test_special_tokens_are_text(tokenizer: Any) -> None:
    text = "Press [MASK] and [SEP] here"
    tokens = tokenize(tokenizer, [[text]], 64).tokens
    assert (tokens[0], tokens[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert not set(tokens[1:-1].tolist()) & {tokenizer.mask_token_id, tokenizer.sep_token_id}


def test_words_are_cleaned_one_by_one_and_keep_their_numbers(tokenizer: Any) -> None:
    words = CZECH.replace(",", "").split()
    decomposed = [unicodedata.normalize("NFD", word) for word in words]
    decomposed.insert(2, "\x07")  # nothing is left of this word

    def windows(words: list[str]) -> Any:
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        bounds = np.stack([ends - [len(word) for word in words], ends], axis=1).astype(np.int32)
        return tokenize_words(tokenizer, [TaggedText("0", " ".join(words), bounds, None)], 128)

    one, other = windows(decomposed), windows([*words[:2], "", *words[2:]])
    assert one.tokens.tokens.tolist() == other.tokens.tokens.tolist()
    assert one.alignments[0].words.tolist() == other.alignments[0].words.tolist() == [0, 1, 3, 4, 5]
    assert one.first.tolist() == other.first.tolist()


def test_an_exported_tokenizer_reads_text_as_training_did(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    texts = [
        CZECH,
        unicodedata.normalize("NFD", CZECH),
        "Press [MASK] and [SEP] here",
        "[MASK]",
        "x[UNK]x[CLS][CLS]y[PAD]",
        " \t Press\u00a0here\r\n",
        "Press\r\nhere\rPress\x0bhere\x0cPress\x85here\u2028Press\u2029here\x1cPress",
        "Pr\x00es\ufeffs\x1f he\ufdd0re\x9f\uffff",
        "\x00 Press \x1f\u3000",
    ]
    records = [{"text": text, "label": label} for text in texts for label in ("yes", "no")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    data = {
        "train": str(tmp_path / "train.jsonl"), "tokenizer": str(tmp_path / "t"),
        "text": "text", "label": "label", "labels": ["yes", "no"],
    }  # fmt: skip
    config = SequenceClassification.Config.model_validate({"data": data})
    task = SequenceClassification(config, 0, tmp_path)
    (tmp_path / "export").mkdir()
    task.save_tokenizer(tmp_path / "export")
    fit_tokenizer_settings(tmp_path / "export", 128, token_types=False)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export")
    trained = task.tokens("train")
    for number, record in enumerate(records):
        here = slice(int(trained.starts[number]), int(trained.ends[number]))
        assert loaded(record["text"])["input_ids"] == trained.tokens[here].tolist()
    assert loaded.convert_tokens_to_ids("[MASK]") == tokenizer.mask_token_id
