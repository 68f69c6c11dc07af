"""The task `embeddings`: the texts of its batches, and what it leaves out or refuses."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from kdcore_embeddings.data.text_tokens import TextTokenizer, common_units
from kdcore_embeddings.data.texts import TextData, read_texts
from kdcore_embeddings.task import Embeddings
from kdcore_testing import check_task
from pyarrow import parquet
from transformers import AutoTokenizer

from kdcore import InputError


@pytest.fixture
def make(tmp_path: Path, tokenizer_folder: Path, some_texts: list[str]) -> Callable[..., Embeddings]:
    """Make a task on the texts: `make(data={...}, **keys of the task)`."""
    (tmp_path / "texts.txt").write_text("\n".join(some_texts) + "\n", encoding="utf-8")

    def task(data: dict[str, Any] | None = None, **keys: Any) -> Embeddings:
        own = {"train": str(tmp_path / "texts.txt"), "held_out": 0.2} | (data or {})
        usual = {"data": own, "tokenizer": str(tokenizer_folder), "max_length": 24, "dimension": 24}
        config = Embeddings.Config.model_validate(usual | keys)
        return Embeddings(config, 1, tmp_path)

    return task


def test_it_does_what_every_task_must_do(make: Callable[..., Embeddings], tmp_path: Path) -> None:
    config = make().config.model_dump(exclude_none=True)
    check_task("embeddings", config, cache=tmp_path)
    check_task("embeddings", config | {"teacher_prompts": {"document": "of "}}, cache=tmp_path)


def test_each_model_receives_its_own_tokens(
    make: Callable[..., Embeddings], tokenizer_folder: Path, some_texts: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def expected(texts: list[str], length: int) -> Any:
        return tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")["input_ids"]

    same = make()
    assert not same.separate_views
    assert same.batch("train", np.arange(4), np.zeros(4, int)).teacher is None
    texts = same.parts["train"].texts
    assert set(texts) | set(same.parts["held_out"].texts) == set(some_texts)
    task = make(prompts={"document": "and "}, teacher_prompts={"document": "student of "}, teacher_max_length=30)
    batch = task.batch("train", np.arange(9), np.zeros(9, int))
    assert task.separate_views
    assert batch.input_ids.equal(expected(["and " + text for text in texts[:9]], 24))
    assert batch.teacher is not None
    assert batch.teacher.input_ids.equal(expected(["student of " + text for text in texts[:9]], 30))
    assert batch.units is not None
    assert batch.teacher.units is not None
    assert batch.units.lengths.tolist() == batch.teacher.units.lengths.tolist()


def test_units_are_the_same_characters_in_both_models(tokenizer_folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "teach", "##er", "student", "of"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names).save_pretrained(tmp_path)
    texts = ["teacher of student", "abc student", "of"]
    own = TextTokenizer(str(tokenizer_folder), 24).encode(texts, ["", "", ""])
    theirs = TextTokenizer(str(tmp_path), 24).encode(texts, ["of ", "of ", "of "])
    samples = np.array([0, 1, 2])
    units = common_units(own, theirs, samples)
    # "teacher" is one token of one and two of the other; "abc" three of one and an unknown word of the other.
    expected = [["teacher", "of", "student"], ["abc", "student"], ["of"]]
    assert units[0].lengths.tolist() == units[1].lengths.tolist() == [3, 2, 1]
    for side, tokens in zip(units, (own, theirs), strict=True):
        starts = [*side.starts.tolist(), len(side.tokens)]
        batch = tokens.batch(samples)
        rows = (batch.token_index // batch.input_ids.shape[1]).tolist()
        places = np.concatenate([tokens.places[tokens.slice_of(sample)] for sample in samples])
        found: list[list[str]] = [[], [], []]
        for start, end in pairwise(starts):
            members = side.tokens[start:end].tolist()
            row = rows[members[0]]
            found[row].append(texts[row][places[members[0]][0] : places[members[-1]][1]])
        assert found == expected


def test_every_format_gives_the_same_texts(tmp_path: Path, some_texts: list[str]) -> None:
    import datasets

    texts = [*some_texts[:20], 'a "quoted", text']
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    (tmp_path / "a.csv").write_text("n,text\n" + "\n".join(f"1,{text}" for text in quoted), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tn\n" + "\n".join(f"{text}\t1" for text in texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    sources: list[dict[str, Any]] = [
        {"train": str(tmp_path / f"a.{kind}")} for kind in ("txt", "csv", "tsv", "jsonl", "parquet")
    ]
    sources.append({"huggingface": {"path": str(tmp_path / "saved")}})
    for source in sources:
        train, held_out = read_texts(TextData.model_validate(source | {"held_out": 0.3}), Counter())
        assert sorted(train.texts + held_out.texts) == sorted(texts)
        assert 2 < len(held_out) < 12


def test_empty_and_repeated_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\none\n  \nthree\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": null}\n{"text": "two"}\n', encoding="utf-8")
    report: Counter[str] = Counter()
    data = TextData.model_validate({"train": str(tmp_path / "a.txt"), "held_out": str(tmp_path / "b.jsonl")})
    train, held_out = read_texts(data, report)
    assert train.texts == ["one", "three"]
    assert held_out.texts == ["two"]
    assert report == {
        "empty texts left out": 3,
        "repeated texts left out": 2,
        "texts left out of training because they are held out": 1,
    }


def test_texts_that_are_held_out_depend_on_their_content_only(tmp_path: Path, some_texts: list[str]) -> None:
    held = []
    for number, texts in enumerate([some_texts, some_texts[::-1], some_texts[10:]]):
        (tmp_path / f"{number}.txt").write_text("\n".join(texts), encoding="utf-8")
        data = TextData.model_validate({"train": str(tmp_path / f"{number}.txt"), "held_out": 0.4})
        held.append(set(read_texts(data, Counter())[1].texts))
    assert held[0] == held[1]
    assert held[2] == held[0] & set(some_texts[10:])


def test_truncated_texts_are_counted(make: Callable[..., Embeddings], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kdcore"):
        task = make(max_length=10, teacher_max_length=20)
    encoded = task.student_tokenizer.tokenizer([text for part in task.parts.values() for text in part.texts])
    own, theirs = (sum(len(ids) > length for ids in encoded["input_ids"]) for length in (10, 20))
    messages = [record.getMessage() for record in caplog.records]
    assert f"texts: {own} are longer than 10 tokens of the student (task.max_length) and were truncated" in messages
    assert f"texts: {theirs} are longer than 20 tokens of the teacher (task.teacher_max_length) and were truncated" in (
        messages
    )


def test_mistakes_are_named(make: Callable[..., Embeddings], tmp_path: Path) -> None:
    (tmp_path / "lists.jsonl").write_text('{"text": ["a"]}\n{"text": "b"}\n', encoding="utf-8")
    (tmp_path / "rows.csv").write_text("text,n\nabc,1\nx\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "a.doc").write_text("x", encoding="utf-8")
    cases = [
        ({"data": {"train": str(tmp_path / "lists.jsonl")}}, "line 1 has no text under `text` (found list)"),
        ({"data": {"train": str(tmp_path / "rows.csv")}}, "line 3 has 1 fields, the header 2"),
        ({"data": {"train": str(tmp_path / "rows.csv"), "text": "body"}}, "has no column `body`"),
        ({"data": {"train": str(tmp_path / "blank.txt")}}, "contains no texts to train on"),
        ({"data": {"train": str(tmp_path / "a.doc")}}, "does not end with a known format"),
        ({"prompts": {"document": "the " * 30}}, "the prompt leaves no tokens for texts (found 32, expected less than"),
        ({"tokenizer": None}, "no tokenizer is set"),
    ]
    for keys, message in cases:
        with pytest.raises(InputError) as refused:
            make(**keys)
        assert message in str(refused.value)
    with pytest.raises(ValueError, match="needs either `train`"):
        make(data={"huggingface": {"path": "x"}})
    with pytest.raises(InputError, match=r"task\.dimension: the width of embeddings is not set"):
        Embeddings.heads(Embeddings.Config.model_validate({"data": {"train": "x"}}))
