"""Unknown text is counted in characters."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation.pipeline.text_encoding import TextEncoder
from transformers import BertTokenizer, PreTrainedTokenizerFast

WORDS = ["river", "the", "of", "x", "日本", "été", "👩‍🚀", "a-b", "don't", "สวัสดีครับ", "unbelievable", "...", "\u0301"]


def wordpiece(words: list[str]) -> Any:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})


def unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = [("[UNK]", 0.0), ("▁", -3.0), *((letter, -4.0) for letter in "abcdefghijklmnoprstuvwxyz"), ("▁the", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)
    tokenizer.add_special_tokens(special)
    return tokenizer


def whole_words() -> Any:
    """A tokenizer whose tokens depend on more than words: a text of a single word is entirely unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "a": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)
    tokenizer.add_special_tokens(special)
    return tokenizer


def lost_characters(tokenizer: Any, text: str) -> int:
    """Sum the spans of [UNK] in the offsets of the plain tokenizer."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return sum(end - start for token, (start, end) in spans if token == tokenizer.unk_token_id)


def test_unknown_characters_of_mixtures_with_ideographs_are_counted() -> None:
    choice = random.Random(1)
    tokenizer = wordpiece(["a", "##b", "b", "人", "中", ".", "。", "の", "##の", "1"])
    alphabet = "ab .,。！人中们龘ß\u0e01\u0301 \n\u3000１ＡのアZ😀한\U00020000\u3007"
    texts = ["".join(choice.choices(alphabet, k=choice.randrange(40))) for _ in range(1000)]
    encoder = TextEncoder(tokenizer)
    found = encoder.encode(texts).unknown_characters
    assert found.tolist() == [lost_characters(tokenizer, text) for text in texts]
    assert not encoder._unknown_text.needs_offsets, "its words and ideographs are looked up"


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "whole words"])
def test_the_characters_inside_unknown_tokens_are_counted(kind: str) -> None:
    choice = random.Random(0)
    kinds = {"unigram": unigram, "whole words": whole_words}
    tokenizer = wordpiece(["the", "of", "x", "-", "a"]) if kind == "wordpiece" else kinds[kind]()
    texts = [" ".join(choice.choices(WORDS, k=choice.randrange(1, 30))) for _ in range(200)]
    texts += ["the of", "", "a\nthe", "river\nriver  river"]
    encoder = TextEncoder(tokenizer, all_cores=False)
    expected = [lost_characters(tokenizer, text) for text in texts]
    assert sum(expected) > 1000
    assert encoder.encode(texts).unknown_characters.tolist() == expected
    assert encoder.encode(texts[::-1]).unknown_characters.tolist() == expected[::-1]
    with_offsets = TextEncoder(tokenizer, all_cores=False, offsets=True)
    assert with_offsets.encode(texts).unknown_characters.tolist() == expected
    assert encoder.encode([]).unknown_characters.tolist() == []


def test_text_that_is_mostly_unknown_is_encoded_with_offsets_at_once() -> None:
    """Encoding twice would take more than twice the time for scripts without spaces."""
    tokenizer = wordpiece(["the", "river"])
    encoder = TextEncoder(tokenizer, all_cores=False)
    unknown = ["สวัสดีครับ" * (20 + number) for number in range(10)]
    assert not encoder._unknown_text.needs_offsets
    for texts, expected in ((unknown, True), (unknown, True), (["the river"] * 100, False), (unknown, True)):
        found = encoder.encode(texts)
        assert encoder._unknown_text.needs_offsets == expected
        assert found.unknown_characters.tolist() == [lost_characters(tokenizer, text) for text in texts]


def test_a_tokenizer_that_spells_everything_has_no_unknown_text(tokenizer_folder: Path) -> None:
    from kdcore.data.tokenizers import load_tokenizer

    encoder = TextEncoder(load_tokenizer(str(tokenizer_folder)), all_cores=False)
    assert np.array_equal(encoder.encode(["the teacher", "student 1!"]).unknown_characters, [0, 0])


def test_the_words_of_a_text_are_looked_up_where_tokens_lie_within_words() -> None:
    """Otherwise texts with one unknown word would be encoded twice."""
    for tokenizer, separate in ((wordpiece(["the"]), True), (whole_words(), False)):
        encoder = TextEncoder(tokenizer, all_cores=False)
        assert encoder._unknown_text._separates_words == separate
        encoder.encode(["the river the"])
        assert ("river" in encoder._unknown_text._words) == separate
