"""Tokens of prepared text against the plain tokenizer's, in scripts with and without spaces."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from kdcore_preparation import DataRecipe, clean_text, plain_backend, prepare, split_sentences, train_tokenizer
from kdcore_preparation.pipeline import text_encoding
from kdcore_preparation.pipeline.text_encoding import TextEncoder, separators_of
from kdcore_preparation.tokenizer_training import KINDS, TokenizerKind
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kdcore import load_tokenizer

SENTENCES = {
    "Chinese": [
        "今天天气很好。",
        "我们去公园吧！",
        "你喜欢看什么书？",
        "他说：“明天再来。”",
        "价格是12.5元。",
        "ABC公司成立了。",
    ],
    "Japanese": [
        "今日は天気がいいです。",
        "公園に行きましょう！",
        "コンピューターを買った。",
        "「はい。」と答えた。",
        "どこですか？",
        "３月です。",
    ],
    "Thai": ["วันนี้อากาศดีมาก", "เราไปสวนสาธารณะกันเถอะ!", "คุณชอบอ่านหนังสืออะไร?", "ราคา 12.5 บาท", "สวัสดี."],
    "Arabic": ["الطقس جميل اليوم.", "هل تحب القراءة؟", "سنذهب إلى الحديقة!", "قال: «نعم».", "السِّعر ١٢٫٥ دولار."],
    "Hindi": ["आज मौसम अच्छा है।", "क्या आपको पढ़ना पसंद है?", "चलो बगीचे चलते हैं!", "क़ीमत १२ रुपये है।", "हाँ।"],
    "emoji": ["Great 👍!", "👩\u200d👩\u200d👧\u200d👦 family.", "🇩🇪🇫🇷 flags!", "Why? 😀😀", "❤️ it.", "ok."],
}


def documents(language: str) -> list[str]:
    """Paragraphs of sentences, joined without, with one, and with several kinds of white space."""
    choice = random.Random(language)
    joints = ["", "", " ", "  ", "\n", " \n\n", "\u3000", "\u00a0", "\t"]
    return [
        clean_text("".join(choice.choice(SENTENCES[language]) + choice.choice(joints) for _ in range(12)), Counter())
        for _ in range(15)
    ]


def sentencepiece_model(texts: list[str]) -> bytes:
    """A model with the defaults of the library SentencePiece, except for pieces for single bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=470, byte_fallback=True, pad_id=3,
        control_symbols=["<mask>"], minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module", params=[*KINDS, "SentencePiece"])
def tokenizer_of_all(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizers") / request.param
    texts = [text for language in SENTENCES for text in documents(language)]
    if request.param == "SentencePiece":
        file = folder.with_suffix(".model")
        file.write_bytes(sentencepiece_model(texts))
        return file
    vocabulary = {"unigram": 215, "bpe": 500, "wordpiece": 500, "byte_level_bpe": 600}[request.param]
    train_tokenizer(texts, folder, kind=request.param, vocabulary=vocabulary)
    return folder


@pytest.mark.parametrize("sentences", [True, False])
def test_packed_text_has_the_tokens_of_the_plain_tokenizer(
    tokenizer_of_all: Path, tmp_path: Path, sentences: bool
) -> None:
    texts = {language: [text.replace("\n", "\t") for text in documents(language)] for language in SENTENCES}
    (tmp_path / "text.txt").write_text("\n".join(text for own in texts.values() for text in own), encoding="utf-8")
    recipe = DataRecipe(
        corpora=[{"name": "text", "path": str(tmp_path / "text.txt"), "documents": "lines"}],
        tokenizer=str(tokenizer_of_all), sequence_length=64, packing="full", sentences=sentences, held_out=0,
    )  # fmt: skip
    data = prepare(recipe, tmp_path / "prepared", workers=1)
    tokenizer = load_tokenizer(str(tokenizer_of_all))
    sep = tokenizer.sep_token_id
    train = data.split("train")
    rows, lengths = train.rows(np.arange(len(train)))
    stored = [int(one) for row, length in zip(rows, lengths, strict=True) for one in row[1 : length - 1] if one != sep]
    assert (lengths[:-1] >= 63).all() != sentences, "sequences are full unless they end with a sentence"
    for language, own in texts.items():
        plain = [token for text in own for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert stored[: len(plain)] == plain, language
        if tokenizer_of_all.suffix == ".model":
            reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_of_all))
            pieces = [reference.id_to_piece(token) for text in own for token in reference.encode(text)]
            assert tokenizer.convert_ids_to_tokens(plain) == pieces, language
        del stored[: len(plain)]
    assert not stored


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_end_after_the_tokens_that_begin_in_them(tokenizer_of_all: Path, language: str) -> None:
    tokenizer = load_tokenizer(str(tokenizer_of_all))
    texts = documents(language)
    encoded = TextEncoder(tokenizer, split_sentences=split_sentences).encode(texts)
    expected: list[int] = []
    before = 0
    for text in texts:
        whole = plain_backend(tokenizer).encode(text, add_special_tokens=False)
        end = 0
        for sentence in split_sentences(text):
            end += len(sentence)
            text_end = len(text[:end].rstrip())
            count = sum(max(start for start, _ in whole.offsets[: number + 1]) < text_end
                        for number in range(len(whole.ids)))  # fmt: skip
            expected.append(before + count)
        before += len(whole.ids)
    assert encoded.sentence_ends is not None
    assert encoded.sentence_ends.tolist() == sorted({one for one in expected if one})
    assert encoded.ends[-1] == before


@pytest.mark.parametrize("joint", ["", " ", " \n", "\u3000"])
def test_long_texts_have_their_tokens_however_they_can_be_cut(
    tokenizer_of_all: Path, monkeypatch: pytest.MonkeyPatch, joint: str
) -> None:
    tokenizer = load_tokenizer(str(tokenizer_of_all))
    choice = random.Random(joint)
    every = [sentence for language in SENTENCES.values() for sentence in language]
    text = joint.join(choice.choices(every, k=600))
    whole = plain_backend(tokenizer).encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(text_encoding, "CHUNK_CHARACTERS", 500)
    for split in (None, split_sentences):
        assert TextEncoder(tokenizer, split_sentences=split).encode([text]).tokens.tolist() == whole


def test_text_without_white_space_is_cut_at_last(tokenizer_of_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(str(tokenizer_of_all))
    monkeypatch.setattr(text_encoding, "CHUNK_CHARACTERS", 50)
    monkeypatch.setattr(text_encoding, "UNBROKEN_CHARACTERS", 120)
    encoder = TextEncoder(tokenizer)
    text = "天气" * 170 + " 天"
    pieces = encoder._cut([text]).pieces
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces] == [120, 120, 100, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_are_text(tmp_path: Path, kind: TokenizerKind) -> None:
    choice = random.Random(0)
    words = ["Press", "here", "and", "[x]", "MASK", "SEP", "CLS", "PAD", "UNK", "]a[", "KAS", "LM", "xx"]
    lines = [" ".join(choice.choices(words, k=20)) for _ in range(100)]
    vocabulary = {"unigram": 36, "bpe": 60, "wordpiece": 60, "byte_level_bpe": 280}[kind]
    train_tokenizer(lines, tmp_path / "t", kind=kind, vocabulary=vocabulary)
    tokenizer = load_tokenizer(str(tmp_path / "t"))
    for text in ("Press [MASK] and [SEP] here", "[CLS][PAD] [UNK]", "[MASK]"):
        tokens = TextEncoder(tokenizer).encode([text]).tokens.tolist()
        assert not set(tokens) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(tokens).replace(" ", "") == text.replace(" ", "")


def test_text_is_cut_only_where_the_tokenizer_separates_words() -> None:
    def separators(pre_tokenizer: Any, normalizer: Any = None) -> str:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizer
        backend.normalizer = normalizer
        return separators_of(backend)

    assert separators(pre_tokenizers.BertPreTokenizer()) == " \n"
    assert separators(pre_tokenizers.ByteLevel(add_prefix_space=False)) == " \n"
    assert separators(pre_tokenizers.ByteLevel(add_prefix_space=True)) == " "
    assert separators(pre_tokenizers.Metaspace()) == " "
    assert separators(pre_tokenizers.Metaspace(split=False)) == ""
    assert separators(None) == ""
    assert separators(pre_tokenizers.Metaspace(), normalizers.Prepend("x")) == ""
