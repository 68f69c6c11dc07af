from __future__ import annotations

import json
import os
import random
import shutil
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdcore_preparation.pipeline.text_encoding import CHUNK_CHARACTERS, TextEncoder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kdcore.data.tokenizers import (
    fit_tokenizer_settings,
    load_tokenizer,
    reading_difference,
    special_ids,
    tokenizer_fingerprint,
)
from kdcore.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer(str(tokenizer_folder))


def encode(tokenizer: Any, *texts: str) -> list[list[int]]:
    encoded = TextEncoder(tokenizer).encode(texts)
    return [tokens.tolist() for tokens in np.split(encoded.tokens, encoded.ends[:-1])]


def random_text(words: int) -> str:
    choice = random.Random(0)
    return "".join(
        "".join(choice.choices(string.ascii_letters, k=choice.randint(1, 9)))
        + choice.choice([" ", " ", " ", "\n", ", "])
        for _ in range(words)
    )


def with_settings(folder: Path, target: Path, **settings: Any) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    content = json.loads((target / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps({**content, **settings}))
    return target


def test_long_documents_have_the_tokens_of_their_text_taken_at_once(tokenizer: Any) -> None:
    text = random_text(60_000)
    assert len(text) > 3 * CHUNK_CHARACTERS
    expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert encode(tokenizer, "before", text, "after")[1] == expected


def test_documents_come_back_in_order_each_with_its_own_tokens(tokenizer: Any) -> None:
    texts = ["the teacher", "", "of the student", "zebra"]
    assert encode(tokenizer, *texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_truncation_and_padding_that_a_tokenizer_file_asks_for_lose_nothing(
    tokenizer: Any, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = with_settings(
        tokenizer_folder,
        tmp_path / "t",
        truncation={"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        padding={
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        },
    )  # fmt: skip
    limited = load_tokenizer(str(folder))
    assert encode(limited, "the", "the " * 100) == encode(tokenizer, "the", "the " * 100)
    assert tokenizer_fingerprint(limited) == tokenizer_fingerprint(tokenizer)
    limited.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert saved["truncation"] is None
    assert saved["padding"] is None
    assert "max_length" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())


def test_the_names_of_special_tokens_in_a_text_are_ordinary_text(tokenizer: Any) -> None:
    (tokens,) = encode(tokenizer, "the [MASK] of [SEP]")
    assert not {tokenizer.mask_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id} & set(tokens)


def test_the_fingerprint_survives_saving_and_changes_with_vocabulary_and_normalisation(
    tokenizer: Any, tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "same")
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path / "same"))) == tokenizer_fingerprint(tokenizer)
    other = load_tokenizer(str(tokenizer_folder))
    other.add_tokens(["zebra"])
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
    cased = with_settings(tokenizer_folder, tmp_path / "cased", **content)
    config = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    fingerprints = {tokenizer_fingerprint(each) for each in (tokenizer, other, load_tokenizer(str(cased)))}
    assert len(fingerprints) == 3


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "word": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "t")
    with pytest.raises(DataError, match=r"t: the tokenizer has no pad_token, mask_token"):
        load_tokenizer(str(tmp_path / "t"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="contains no tokenizer files"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(DataError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path / "missing"))


def test_encoding_leaves_later_forks_without_warnings_and_the_users_setting_alone(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    encode(tokenizer, "a", "b")
    assert os.environ["TOKENIZERS_PARALLELISM"].lower() == "false"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    encode(tokenizer, "a", "b")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    choice = random.Random(1)
    stems = ["".join(choice.choices(string.ascii_letters, k=choice.randint(2, 6))) for _ in range(200)]
    words = [stem + ending for stem in stems for ending in ("", "s", "ing", "ed", "ness")]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(choice.choices(words, k=30)) for _ in range(500)))
    return path


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byte_fallback": True},
        {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"], "pad_id": 3, "pad_piece": "[PAD]"},
    ],
)
def test_a_sentencepiece_model_gives_the_pieces_of_sentencepiece_and_the_roles_of_an_encoder(
    tmp_path: Path, corpus_file: Path, kind: str, options: dict[str, Any]
) -> None:
    import sentencepiece
    from transformers import AutoTokenizer

    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_file),
        model_prefix=str(tmp_path / "m"),
        vocab_size=500,
        model_type=kind,
        minloglevel=2,
        **options,
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tokenizer = load_tokenizer(str(tmp_path / "m.model"))
    texts = [random_text(300), "Ünïcode ½ ﬁne   wide  spaces\nnext paragraph é 日本語 x", " lead and trail "]
    assert encode(tokenizer, *texts) == [reference.encode(text) for text in texts]

    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "bert"}')  # as in the folder of an exported student
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    ids = special_ids(loaded)
    assert loaded("a")["input_ids"] == [ids.cls, *reference.encode("a"), ids.sep]
    assert (
        loaded.convert_tokens_to_ids("[MASK]")
        == ids.mask
        == loaded("[MASK]", add_special_tokens=False)["input_ids"][-1]
    )
    assert len({ids.pad, ids.cls, ids.sep, ids.mask, ids.unk}) == 5
    assert loaded.decode(reference.encode("a fine day")) == "a fine day"
    (in_text,) = encode(tokenizer, "a [MASK] b")
    assert ids.mask not in in_text


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(b"no protobuf \xff\xff\xff")
    with pytest.raises(DataError, match=r"a\.model: is not a SentencePiece model"):
        load_tokenizer(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no piece for unknown text"):
        load_tokenizer(str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["added_tokens"][0].pop("id"),
        lambda content: content["model"]["vocab"].update(p=2**63),
        lambda content: content["model"]["vocab"].update(p=2**31),
        lambda content: content["model"].update(vocab=None),
        lambda content: content.update(model=[1]),
        lambda content: content.clear(),
    ],
    ids=["an id that is missing", "an id of 64 bits", "an id of 32 bits", "no vocabulary", "no model", "nothing"],
)
def test_a_damaged_tokenizer_is_a_data_error(tokenizer_folder, tmp_path, change):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    words = r"contains no tokenizer files|the tokenizer cannot be loaded \(|largest id is out of range"
    with pytest.raises(DataError, match=words):
        load_tokenizer(str(folder))


def reader(**parts: Any) -> Any:
    """A fast tokenizer of some words, with these parts set on its backend."""
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "The", "##k", "fox"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for name, value in parts.items():
        setattr(backend, name, value)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("ours", "theirs", "text", "pieces"),
    [
        (normalizers.BertNormalizer(lowercase=True), None, "The Quick Fox", ("the", "The")),
        (normalizers.BertNormalizer(lowercase=False, strip_accents=True), None, "École à Köln", ("Ecole", "École")),
        (normalizers.NFC(), normalizers.NFD(), "École à Köln", ("École", "E\u0301cole")),
        (normalizers.NFC(), normalizers.NFKC(), "ＦＵＬＬ Ⅳ ﬁx", ("ＦＵＬＬ", "FULL")),
        (
            normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False),
            None,
            "中文字 text",
            ("中文字", "中"),
        ),
        (pre_tokenizers.WhitespaceSplit(), None, "don't well-known 12.5% x_y", ("don't", "don")),
    ],
    ids=["casing", "accents", "composition", "compatibility", "Chinese", "punctuation"],
)
def test_tokenizers_of_one_vocabulary_that_read_text_differently(
    ours: Any, theirs: Any, text: str, pieces: tuple[str, str]
) -> None:
    name = "pre_tokenizer" if isinstance(ours, pre_tokenizers.PreTokenizer) else "normalizer"
    difference = reading_difference(reader(**{name: ours}), reader() if theirs is None else reader(**{name: theirs}))
    assert difference is not None
    found, one, other = difference
    assert (found, one[0], other[0]) == (text, *pieces)


def test_tokenizers_that_state_the_same_in_other_words_do_not_differ() -> None:
    same = normalizers.Sequence([normalizers.BertNormalizer(lowercase=False, strip_accents=False)])
    assert reading_difference(reader(), reader(normalizer=same)) is None


def test_merges_of_one_vocabulary_may_differ() -> None:
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}

    def bpe(merges: list[tuple[str, str]]) -> Any:
        backend = Tokenizer(models.BPE(vocabulary, merges))
        return PreTrainedTokenizerFast(tokenizer_object=backend)

    one, other = bpe([("a", "b"), ("ab", "c")]), bpe([("b", "c"), ("a", "bc")])
    assert reading_difference(one, one) is None
    assert reading_difference(one, other) is not None


def test_saved_settings_fit_the_model_and_earlier_versions(tmp_path: Path) -> None:
    tokenizer = reader()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[EXTRA]"]})
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    assert json.loads(path.read_text())["tokenizer_class"] == "TokenizersBackend"
    fit_tokenizer_settings(tmp_path, 128, token_types=False)
    settings = json.loads(path.read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["[EXTRA]"]
    assert "extra_special_tokens" not in settings
    assert settings["model_max_length"] == 128
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    fit_tokenizer_settings(tmp_path, 300, token_types=True)
    assert json.loads(path.read_text())["model_max_length"] == 128, "never raised"


def test_an_exported_tokenizer_composes_letters_as_training_text_is_composed(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Köln", "ein", "K", "##o", "##ln", "koln"]
    vocabulary = {word: index for index, word in enumerate(words)}
    decomposed = unicodedata.normalize("NFD", "ein Köln")
    for lowercase, expected in ((False, ["ein", "Köln"]), (True, ["ein", "koln"])):
        folder = tmp_path / str(lowercase)
        BertTokenizer(vocab=vocabulary, do_lower_case=lowercase).save_pretrained(folder)
        before = tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder))
        fit_tokenizer_settings(folder, 64, token_types=True)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded.tokenize(decomposed) == loaded.tokenize("ein Köln") == expected
        assert list(loaded("ein")) == ["input_ids", "token_type_ids", "attention_mask"]
        assert tokenizer_fingerprint(loaded) == before
        original = BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
        assert reading_difference(load_tokenizer(str(folder)), original) is None
        fit_tokenizer_settings(folder, 64, token_types=True)
        assert AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str() == loaded.backend_tokenizer.to_str()


def test_an_exported_classifiers_setting_for_special_tokens_is_not_inherited(
    tokenizer: Any, tokenizer_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(tokenizer_folder, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "split_special_tokens": True}))
    loaded = load_tokenizer(str(tmp_path / "t"))
    assert loaded("the [MASK]")["input_ids"] == tokenizer("the [MASK]")["input_ids"]
    assert loaded.mask_token_id in loaded("the [MASK]")["input_ids"]
    exported = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert exported.mask_token_id not in exported("the [MASK]")["input_ids"]
    assert reading_difference(exported, loaded) is None
    loaded.save_pretrained(tmp_path / "saved")
    assert "split_special_tokens" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
