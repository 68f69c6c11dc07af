"""Words aligned to subwords against transformers, and windows of long texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_supervised.data.tagged import TaggedText
from kdcore_supervised.data.word_windows import lost_spans, tokenize_words
from kdcore_supervised.data.words import word_bounds
from kdcore_supervised.tags import IGNORED, TaggedSpan
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

VOCABULARY = ["the", "teacher", "of", "student", "and", "unbelievably", "x", "2026", "co-operate", "."]


def of_words(words: list[str], spans: tuple[TaggedSpan, ...] | None = None) -> TaggedText:
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    starts = ends - [len(word) for word in words]
    return TaggedText("0", " ".join(words), np.stack([starts, ends], 1).astype(np.int32), spans)


def of_text(text: str, spans: tuple[TaggedSpan, ...] | None = None) -> TaggedText:
    return TaggedText("0", text, word_bounds(text), spans)


def drawn(count: int, most: int) -> list[list[str]]:
    draw = np.random.default_rng(4)
    return [draw.choice(VOCABULARY, draw.integers(1, most)).tolist() for _ in range(count)]


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A small byte-level BPE tokenizer without a space before the first word, like RoBERTa's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(["Hi (the teacher). " * 5, "the student)."] * 9, trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, cls_token="<s>", pad_token="<pad>", sep_token="</s>")


def test_tokens_and_words_are_those_of_transformers(tokenizer: Any) -> None:
    texts = drawn(30, 12)
    windows = tokenize_words(tokenizer, [of_words(words) for words in texts], 512)
    expected = tokenizer(texts, is_split_into_words=True)
    for number in range(len(texts)):
        here = slice(int(windows.tokens.starts[number]), int(windows.tokens.ends[number]))
        assert windows.tokens.tokens[here].tolist() == expected["input_ids"][number]
        word_ids = [-1 if one is None else one for one in expected.word_ids(number)]
        assert windows.word[here].tolist() == word_ids
        first = [one >= 0 and one != before for before, one in zip([-1, *word_ids], word_ids, strict=False)]
        assert windows.first[here].tolist() == first
    assert windows.windowed == windows.shortened == 0


def test_labels_are_on_the_first_subword_or_on_all(tokenizer: Any) -> None:
    windows = tokenize_words(tokenizer, [of_words(["xx", "the", "xyx"])], 512)
    pieces = [tokenizer.tokenize(word) for word in ("xx", "the", "xyx")]
    assert [len(own) for own in pieces] != [1, 1, 1]
    first = windows.labels([[1, 0, 3]], None).tolist()
    expected = [
        label for label, own in zip([1, 0, 3], pieces, strict=True) for label in [label, *[IGNORED] * (len(own) - 1)]
    ]
    assert first == [IGNORED, *expected, IGNORED]
    every = windows.labels([[1, 0, 3]], {0: 0, 1: 2, 3: 4}).tolist()
    expected = [
        label
        for label, inside, own in zip([1, 0, 3], [2, 0, 4], pieces, strict=True)
        for label in [label, *[inside] * (len(own) - 1)]
    ]
    assert every == [IGNORED, *expected, IGNORED]


@pytest.mark.parametrize("limit", [16, 24, 32])
def test_windows_hold_every_word_once(limit: int, tokenizer: Any) -> None:
    texts = [of_words(words) for words in drawn(40, 60)]
    whole, windows = tokenize_words(tokenizer, texts, 4096), tokenize_words(tokenizer, texts, limit)
    assert windows.tokens.lengths.max() <= limit
    assert windows.shortened == 0
    assert windows.windowed == sum(length > limit for length in whole.tokens.lengths.tolist()) > 0
    for number, text in enumerate(texts):
        own = np.flatnonzero(windows.texts == number)
        words, tokens = [], []
        for sequence in own:
            here = slice(int(windows.tokens.starts[sequence]), int(windows.tokens.ends[sequence]))
            words += windows.word[here][windows.first[here]].tolist()
            tokens += windows.tokens.tokens[here][1:-1].tolist()
            assert windows.first[here][1], "a window begins with a word"
        assert words == list(range(len(text.bounds)))
        start, end = int(whole.tokens.starts[number]), int(whole.tokens.ends[number])
        assert tokens == whole.tokens.tokens[start + 1 : end - 1].tolist()
    outputs = [np.arange(length, dtype=np.float32)[:, None] for length in windows.tokens.lengths]
    joined = windows.of_words(outputs)
    assert [len(one) for one in joined] == [len(text.bounds) for text in texts]


def test_windows_of_a_text_have_similar_lengths(tokenizer: Any) -> None:
    assert tokenizer.tokenize("x of") == ["x", "of"]
    found = [
        tokenize_words(tokenizer, [of_words(["x", "of"] * count)], 12).tokens.lengths.tolist() for count in (5, 6, 13)
    ]
    assert found == [[12], [8, 8], [11, 11, 10]], "10 tokens fit; 12 are cut into 6 and 6, 26 into 9, 9 and 8"


def test_a_word_longer_than_a_window_is_shortened_and_counted(tokenizer: Any) -> None:
    words = ["the", "xyxyxyxyxyxyxyxyxyxyxyxy", "of"]
    assert len(tokenizer.tokenize(words[1])) > 8
    windows = tokenize_words(tokenizer, [of_words(words)], 8)
    assert windows.shortened == 1
    assert windows.word[windows.first].tolist() == [0, 1, 2]
    assert windows.tokens.lengths.tolist() == [3, 8, 3]


def test_words_without_tokens_are_left_out_and_their_spans_counted(tokenizer: Any) -> None:
    spans = (TaggedSpan(0, 2, "a"), TaggedSpan(2, 3, "b"), TaggedSpan(3, 5, "a"))
    text = of_words(["the", "\u200b", "\u200b", "of", "x"], spans)
    (alignment,) = tokenize_words(tokenizer, [text], 32).alignments
    assert alignment.words.tolist() == [0, 3, 4]
    assert alignment.tags(spans, "bio") == ["B-a", "B-a", "I-a"]
    assert alignment.spans(["B-a", "B-a", "I-a"]) == [TaggedSpan(0, 1, "a"), TaggedSpan(3, 5, "a")]
    assert lost_spans(alignment, spans, "bio") == 2
    assert len(tokenize_words(tokenizer, [of_text(""), text], 32).texts) == 1, "no sequence without tokens"


def test_words_that_share_a_token_belong_to_one_span(byte_level: Any) -> None:
    text = of_text("Hi (the student).")
    tokens = byte_level.tokenize(text.text)
    assert tokens[-1] == ").", tokens
    windows = tokenize_words(byte_level, [text], 64)
    (alignment,) = windows.alignments
    words = [text.text[start:end] for start, end in text.bounds]
    assert words == ["Hi", "(", "the", "student", ")", "."]
    assert alignment.words.tolist() == [0, 1, 2, 3, 4]
    assert alignment.until.tolist() == [1, 2, 3, 4, 6]
    for spans, lost in (([TaggedSpan(3, 6, "a")], 0), ([TaggedSpan(3, 5, "a")], 1), ([TaggedSpan(5, 6, "a")], 1)):
        assert lost_spans(alignment, spans, "bioes") == lost
    first = windows.tokens.tokens[windows.first].tolist()
    assert byte_level.convert_ids_to_tokens(first)[0].startswith("H")
    assert [byte_level.decode([one]).strip()[0] for one in first] == ["H", "(", "t", "s", ")"]
