"""Words of scripts with and without spaces, as whole-word masking finds them among tokens."""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kdcore_preparation import DataRecipe, prepare, train_tokenizer
from kdcore_preparation.tokenizer_training import TokenizerKind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kdcore.errors import InputError
from kdcore.tasks.masked_lm import MaskedLM
from kdcore.tasks.masking import MaskDrawer, Masking
from kdcore.tasks.word_starts import Segmenter, WordStarts, icu_segmenter


def bytes_as_characters(text: str) -> list[str]:
    """Each byte of a text as a byte-level BPE writes it."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return list(pre_tokenizer.pre_tokenize_str(text)[0][0])


def words(folder: Path, tokens: list[str], kind: str = "▁", segmenter: Segmenter | None = None) -> list[str]:
    """Join tokens to the words that are found among them; a bar separates tokens of a word."""
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(["<unk>", *tokens]))}
    if kind == "##":
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    else:
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
        backend.decoder = decoders.ByteLevel() if kind == "Ġ" else decoders.Metaspace()
    backend.save(str(folder / "tokenizer.json"))
    data: Any = SimpleNamespace(tokenizer_folder=folder, vocab_size=len(vocabulary))
    ids = np.array([[vocabulary[token] for token in tokens]])
    starts = WordStarts(data, segmenter)(ids)[0]
    assert (WordStarts(data, segmenter)(np.repeat(ids, 3, axis=0)) == starts).all()
    found: list[str] = []
    for number, (token, start) in enumerate(zip(tokens, starts, strict=True)):
        if start or not number:
            found.append(token)
        else:
            found[-1] += "|" + token
    return found


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("▁to day ▁is , ▁the", "▁to|day ▁is|, ▁the"),
        ("▁ 今天 天气 很 好 。 我", "▁ 今天 天气 很 好 。 我"),
        ("▁用 ABC def 公司 12 3 年", "▁用 ABC|def 公司 12|3 年"),
        ("▁コン ピュー ター を 買 った", "▁コン|ピュー|ター を 買 った"),
        ("▁グ ー グル で", "▁グ|ー|グル で"),
        ("▁在 2024 。 ABC ） 、 《 x 》", "▁在 2024 。 ABC ） 、 《 x 》"),
        ("▁グラフ ィ ・ ッ ク 「 ab cd 」 ！", "▁グラフ|ィ ・ ッ|ク 「 ab|cd 」 ！"),
        ("▁“ ab ” ， ‘ c", "▁“ ab ” ， ‘ c"),
        ("▁don ’ t ▁Ａ Ｂ １", "▁don|’|t ▁Ａ|Ｂ|１"),
        ("▁안녕 하세요 ▁세계", "▁안녕|하세요 ▁세계"),
        ("▁วัน นี้ อากาศ ดี", "▁วัน นี้ อากาศ ดี"),
        ("▁ก ี ่ ดี า", "▁ก|ี|่ ดี|า"),
        ("▁ไป เ ดิน", "▁ไป เ|ดิน"),
        ("▁ราคา 12 5 บาท", "▁ราคา 12|5 บาท"),
        ("▁ខ្ញុំ ស្រ ឡា ញ់", "▁ខ្ញុំ ស្រ ឡា ញ់"),
        ("▁မြန် မာ ▁စာ", "▁မြန် မာ ▁စာ"),
        ("▁Ку да ▁नम स्ते ▁مر حبا", "▁Ку|да ▁नम|स्ते ▁مر|حبا"),
        ("<0xE4> <0xBB> <0x8A> 天", "<0xE4>|<0xBB>|<0x8A> 天"),
    ],
)
def test_words_of_sentencepiece_tokens(tmp_path: Path, tokens: str, expected: str) -> None:
    assert words(tmp_path, tokens.split()) == expected.split()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("stu ##dent ##s 今 天 。", "stu|##dent|##s 今 天 。"),
        ("これ ##は ##テ ##スト ##です", "これ ##は ##テ|##スト ##です"),
        ("12 ##。 ##ab ##」 ##，", "12 ##。 ##ab ##」 ##，"),
        ("วัน ##นี้ ##อา", "วัน ##นี้ ##อา"),
        ("Ге ##рой ü ##ber", "Ге|##рой ü|##ber"),
    ],
)
def test_words_of_wordpieces(tmp_path: Path, tokens: str, expected: str) -> None:
    assert words(tmp_path, tokens.split(), "##") == expected.split()


def test_words_of_byte_level_tokens_that_cut_characters(tmp_path: Path) -> None:
    one, two, three = bytes_as_characters("天")
    day = "".join(bytes_as_characters("今天"))
    tokens = ["Ġthe", "re", day, one + two, three, one, two, three, "Ġ" + day, "ab", "c"]
    assert words(tmp_path, tokens, "Ġ") == [
        "Ġthe|re", day, f"{one}{two}|{three}", f"{one}|{two}|{three}", "Ġ" + day, "ab|c",
    ]  # fmt: skip
    thai = bytes_as_characters("กี")
    tokens = ["Ġ" + "".join(thai[:3]), "".join(thai[3:5]), thai[5], "".join(thai[:3])]
    assert words(tmp_path, tokens, "Ġ") == [tokens[0], "|".join(tokens[1:3]), tokens[3]], "the vowel is cut"


def fives(text: str) -> list[int]:
    """Words of five characters."""
    return list(range(0, len(text), 5))


def test_a_segmenter_joins_tokens_to_words(tmp_path: Path) -> None:
    tokens = ["the", "กข", "คงจ", "ฉช", "ซฌญ", "ฎฏฐฑฒ", "ณด", "x", "▁กข", "คงจ"]
    expected = ["the", "กข|คงจ", "ฉช|ซฌญ", "ฎฏฐฑฒ", "ณด", "x", "▁กข|คงจ"]
    assert words(tmp_path, tokens, segmenter=fives) == expected
    raw = bytes_as_characters("กขคงจฉชซฌญ")
    cut = ["".join(raw[a:b]) for a, b in ((0, 4), (4, 15), (15, 16), (16, 30))]
    assert words(tmp_path, cut, "Ġ", fives) == [f"{cut[0]}|{cut[1]}", f"{cut[2]}|{cut[3]}"]


def test_icu_finds_thai_words(tmp_path: Path) -> None:
    pytest.importorskip("icu4py")
    tokens = ["วัน", "นี้", "อา", "กา", "ศดี", "มาก"]
    assert words(tmp_path, tokens, segmenter=icu_segmenter()) == ["วัน", "นี้", "อา|กา|ศดี", "มาก"]


def test_a_missing_segmenter_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    with pytest.raises(InputError, match=r"task\.masking\.segmenter.*icu4py") as caught:
        icu_segmenter()
    assert 'pip install "kdcore[icu]"' in str(caught.value)
    with pytest.raises(ValueError, match="no effect without"):
        Masking(segmenter="icu")


CHINESE = "今天天气很好我们去公园吧你喜欢看什么书他说明天再来价格是元公司成立了中国人民银行发布数据显示经济增长"


def prepared(folder: Path, kind: TokenizerKind, vocabulary: int, lines: list[str]) -> Any:
    train_tokenizer(lines, folder / "t", kind=kind, vocabulary=vocabulary)
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = DataRecipe(
        corpora=[{"name": "text", "path": str(folder / "text.txt")}], tokenizer=str(folder / "t"), held_out=0
    )
    return prepare(recipe, folder / "data", workers=1)


@pytest.mark.parametrize(("kind", "vocabulary"), [("unigram", 130), ("bpe", 150), ("byte_level_bpe", 330)])
def test_chinese_is_predicted_as_often_as_asked_for(tmp_path: Path, kind: TokenizerKind, vocabulary: int) -> None:
    choice = random.Random(0)
    lines = ["".join(choice.choices(CHINESE, k=choice.randint(150, 250))) for _ in range(150)]
    data = prepared(tmp_path, kind, vocabulary, lines)
    train = data.split("train")
    tokens, lengths = train.rows(np.arange(len(train)))
    full = lengths == data.sequence_length
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    samples = np.arange(len(train))

    def predicted(**keys: Any) -> Any:
        drawer = MaskDrawer(Masking(whole_word=True, **keys), data, 1)
        return drawer.draw(tokens.astype(np.int64), real, samples, samples * 0, 0).predicted.sum(1)

    free, limited = predicted()[full], predicted(max_predictions=20)[full]
    assert 0.14 < free.sum() / (full.sum() * 126) < 0.16
    assert 0.13 < limited.sum() / (full.sum() * 126) < 0.155
    assert limited.max() <= 20
    assert limited.min() > 5


def test_words_that_are_never_predicted_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    choice = random.Random(0)
    lines = ["".join(choice.choices("abcdefgh", k=60)) for _ in range(30)] + ["ab cd ef gh" for _ in range(10)]
    data = prepared(tmp_path, "bpe", 20, lines)

    def warnings(**masking: Any) -> list[str]:
        config = MaskedLM.Config.model_validate({"data": str(data.folder), "masking": masking})
        caplog.clear()
        with caplog.at_level(logging.WARNING, "kdcore"):
            MaskedLM(config, 0, tmp_path)._warn_of_long_words()
        return [record.getMessage() for record in caplog.records]

    (message,) = warnings(whole_word=True, max_predictions=20)
    assert "75.0% of 40 sequences contain words with more tokens" in message
    share = float(message.partition("never predicted; ")[2].partition("%")[0])
    assert 75 <= share <= 100
    assert not warnings(whole_word=True, max_predictions=60)
    assert not warnings(whole_word=True)
    assert not warnings(max_predictions=20)
