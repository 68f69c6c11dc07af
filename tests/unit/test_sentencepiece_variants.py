"""Tokens of SentencePiece models of every kind against SentencePiece's own, or a refusal that names the kind."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import sentencepiece
from kdcore_preparation.pipeline.text_encoding import TextEncoder

from kdcore.data.tokenizers import load_tokenizer
from kdcore.errors import DataError

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and 12345 hens cluck.",
    "Привет, мир! Ёлка и чай стоят на столе, а кот спит.",
    "今天天气很好。我们去公园吧！你喜欢看什么书？",
    "Zażółć gęślą jaźń, proszę. Wir müssen größer denken über Straßen.",
    "El niño comió piñas; ¿verdad? (c) 2026 … “quotes” ½",
)
TEXTS = [
    *SENTENCES,
    "Hello  world   with  spaces 12345 and ½ ﬁ ＡＢＣ.",
    "emoji 👩‍👩‍👧‍👦 and 𝔘𝔫𝔦 ქართული ไทย",
    "a <sep1> b [NER] c <sep1>x",
    "<sep1>[NER] x<sep1>",
    "tab\there and nbsp\u00a0x",
    "ÀÉÎ MiXeD Case",
    "[MASK] x [UNK] <unk> <s> </s>[PAD]",
    "\u200bzero",
    "...---!!!",
    "ends with space",
    "two\nlines",
]
BASE: dict[str, Any] = {
    "vocab_size": 300, "character_coverage": 0.999, "num_threads": 1, "minloglevel": 2, "hard_vocab_limit": False,
    "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "control_symbols": ["[MASK]"],
    "pad_piece": "[PAD]", "unk_piece": "[UNK]", "bos_piece": "[CLS]", "eos_piece": "[SEP]",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "unigram with bytes": {"byte_fallback": True, "vocab_size": 500},
    "BPE with bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500},
    "user-defined symbols": {"user_defined_symbols": ["<sep1>", "[NER]"]},
    "case folding": {"normalization_rule_name": "nmt_nfkc_cf"},
    "no normalisation": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no dummy prefix": {"add_dummy_prefix": False},
    "BPE of single digits": {"model_type": "bpe", "split_digits": True},
    "pieces across spaces": {"split_by_whitespace": False},
    "BPE across spaces": {"model_type": "bpe", "split_by_whitespace": False},
    "T5": {
        "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>", "eos_piece": "</s>", "unk_piece": "<unk>",
        "control_symbols": [],
    },
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "spaces as suffixes": ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    "symbols in BPE": ({"model_type": "bpe", "user_defined_symbols": ["<sep1>"]}, "user_defined_symbols"),
    "words": ({"model_type": "word"}, "unsupported type"),
    "characters": ({"model_type": "char"}, "unsupported type"),
}


def trained(**options: Any) -> bytes:
    choice = random.Random(0)
    lines = []
    for _ in range(300):
        words = choice.choice(SENTENCES).split()
        lines.append(" ".join(choice.choices(words, k=12)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **{**BASE, **options})
    return model.getvalue()


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_those_of_sentencepiece(name: str, tmp_path: Any) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained(**VARIANTS[name]))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(str(path))
    encoder = TextEncoder(tokenizer)
    different = []
    for text in TEXTS:
        expected = reference.id_to_piece(reference.encode(text.replace("\n", " ")))
        found = tokenizer.convert_ids_to_tokens(encoder.encode([text]).tokens.tolist())
        if found != expected:
            different.append((text, expected, found))
    assert not different


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(name: str, tmp_path: Any) -> None:
    options, words = REFUSED[name]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained(**options))
    with pytest.raises(DataError, match=words):
        load_tokenizer(str(path))
