"""An exported tokenizer.json reads raw text as training reads it after cleaning."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from kdcore_preparation import clean_text, plain_backend
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdcore.data.cleaned_text import with_cleaning, without_cleaning
from kdcore.data.tokenizers import fit_tokenizer_settings, load_tokenizer, reading_difference, tokenizer_fingerprint

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def exported(tokenizer: Any, folder: Path, *, classifier: bool) -> Any:
    tokenizer.save_pretrained(folder)
    if classifier:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "split_special_tokens": True}))
    fit_tokenizer_settings(folder, 64, token_types=False)
    return AutoTokenizer.from_pretrained(folder)


def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({role: AddedToken(name, special=True) for role, name in SPECIAL.items()})
    return tokenizer


def unigram(words: list[tuple[str, float]], **metaspace: Any) -> Any:
    backend = Tokenizer(models.Unigram([*((name, 0.0) for name in SPECIAL.values()), *words], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.mark.parametrize("strip", [False, True])
def test_the_normalizers_clean_every_character_as_training_does(strip: bool) -> None:
    content = json.loads(Tokenizer(models.BPE()).to_str())
    normalizer = Tokenizer.from_str(json.dumps(with_cleaning(content, strip=strip))).normalizer
    points = [*range(0x3100), *range(0xAC00, 0xAC10), *range(0xF900, 0xFFFF + 1), *range(0x1D150, 0x1D1C0), 0x1F600]
    for point in points:
        for text in (f"{chr(point)}b{chr(point)}\r", f"a\u0301{chr(point)}\n{chr(point)}c"):
            bars = ("", "") if strip else ("|", "|")
            raw = text.join(bars)
            assert normalizer.normalize_str(raw) == clean_text(raw, Counter()), hex(point)


@pytest.mark.parametrize("own", [{}, {"lowercase": False, "strip_accents": True}])
def test_berts_words_of_any_text_are_those_of_the_cleaned_text(own: dict[str, Any]) -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(**own)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    content = json.loads(backend.to_str())
    cleaned = with_cleaning(content, strip=True)
    assert without_cleaning(cleaned) == content
    assert with_cleaning(cleaned, strip=False) == cleaned
    block = with_cleaning({**content, "normalizer": None}, strip=True)["normalizer"]["normalizers"][0]
    earlier = {"type": "Sequence", "normalizers": [block, content["normalizer"]]}
    assert with_cleaning({**content, "normalizer": earlier}, strip=True) == cleaned, "exports with the whole cleaning"
    assert not re.search('"NFC"|"Strip"', json.dumps(cleaned)), "slow, and done by BERT's own normalizer"
    normalizer = Tokenizer.from_str(json.dumps(cleaned)).normalizer

    def words(text: str) -> list[str]:
        return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]

    for point in [*range(0x2100), *range(0xF900, 0xFFFF + 1), 0x1F600]:
        character = chr(point)
        text = f"a{character}b {character} A\u0301{character}\u0301"
        for raw in (text, unicodedata.normalize("NFD", text)):
            expected = words(backend.normalizer.normalize_str(clean_text(raw, Counter())))
            assert words(normalizer.normalize_str(raw)) == expected, hex(point)


def test_spelled_special_tokens_are_text_to_any_unigram_model(tmp_path: Path) -> None:
    choice = random.Random(0)
    for case in range(12):
        letters = list("▁MASKUNC]")
        choice.shuffle(letters)
        known = ["[", *letters[: choice.randint(4, 9)]]  # the others are unknown text
        longer = {"".join(choice.choices(known, k=choice.randint(2, 3))) for _ in range(12)}
        longer = {piece for piece in longer if not re.search(r"\[[A-Z]", piece)}  # "[" is a neighbour of no letter
        words = [(piece, -choice.uniform(2, 9)) for piece in [*known, *sorted(longer)]]
        tokenizer = unigram(words, prepend_scheme=choice.choice(["always", "never"]), split=choice.random() < 0.5)
        classifier = exported(tokenizer, tmp_path / str(case), classifier=True)
        plain = plain_backend(tokenizer)
        parts = [*SPECIAL.values(), *"MASK[]x ", "[[", "]]"]
        for _ in range(150):
            text = "".join(choice.choices(parts, k=choice.randint(1, 6)))
            found = classifier(text, add_special_tokens=False)["input_ids"]
            assert found == plain.encode(text.strip(), add_special_tokens=False).ids, (words, text)
        assert tokenizer_fingerprint(classifier) == tokenizer_fingerprint(tokenizer)
        assert reading_difference(classifier, tokenizer) is None


def test_no_cut_is_at_neighbours_of_another_piece(tmp_path: Path) -> None:
    words = [(piece, -3.0) for piece in ("▁", "[", "M", "A", "S", "K", "]")]
    inner = [("[M", -1.0), ("AS", -1.0), ("K]", -1.0), ("SK", -1.0)]
    classifier = exported(unigram([*words, *inner]), tmp_path, classifier=True)
    assert classifier.tokenize("[MASK]") == ["▁", "[M", "AS", "K]"]


def test_a_sentencepiece_models_own_control_pieces_are_text_to_its_classifier(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("press mask MASK <mask and> here s /s\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=40, hard_vocab_limit=False,
        control_symbols=["<pad>", "<mask>"], minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(tmp_path / "m.model"))
    assert tokenizer.mask_token == "<mask>"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    classifier = exported(tokenizer, tmp_path / "export", classifier=True)
    for text in ("press <mask> here", "<mask>", "</s><s>x<mask></s>", "<unk> <pad>"):
        assert classifier(text, add_special_tokens=False)["input_ids"] == processor.encode(text), text
    assert classifier("here")["input_ids"][0] == tokenizer.cls_token_id


@pytest.mark.parametrize("make", [byte_level, lambda: unigram([(one, -3.0) for one in "▁MASKabx[]"])])
def test_a_masked_models_export_reads_a_spelled_mask_as_the_mask(make: Any, tmp_path: Path) -> None:
    tokenizer = make()
    loaded = exported(tokenizer, tmp_path, classifier=False)
    text = "ab [MASK] ba\r\n"
    plain = tokenizer("ab [MASK] ba\n")["input_ids"]
    assert loaded(text)["input_ids"] == plain, "white space around the mask stays, line ends are newlines"
    assert plain.count(tokenizer.mask_token_id) == 1
    as_text = loaded(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert as_text == plain_backend(tokenizer).encode("ab [MASK] ba\n", add_special_tokens=False).ids
    assert tokenizer.mask_token_id not in as_text


def test_white_space_beside_an_added_word_stays(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<url>"])
    loaded = exported(tokenizer, tmp_path, classifier=True)
    assert loaded("see <url> now")["input_ids"] == tokenizer("see <url> now")["input_ids"]


def test_cleaning_is_added_once_and_can_be_removed() -> None:
    bare = json.loads(byte_level().backend_tokenizer.to_str())
    own = {**bare, "normalizer": json.loads(normalizers.Lowercase().__getstate__())}
    bert = {**bare, "normalizer": json.loads(normalizers.BertNormalizer().__getstate__())}
    bert["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    cased = {**bert, "normalizer": {**bert["normalizer"], "lowercase": False}}
    composing = Tokenizer.from_str(json.dumps(with_cleaning(cased, strip=True))).normalizer
    assert composing.normalize_str("A\u0301") == "\u00c1", "cased models keep accents"
    for content in (bare, own, cased, json.loads(unigram([("▁", -1.0), ("a", -1.0)]).backend_tokenizer.to_str())):
        cleaned = with_cleaning(content, strip=True)
        assert with_cleaning(cleaned, strip=False) == with_cleaning(content, strip=False) != cleaned
        assert without_cleaning(cleaned) == without_cleaning(content) == content
