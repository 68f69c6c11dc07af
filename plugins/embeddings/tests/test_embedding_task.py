"""The task `embeddings`: the texts of its batches, and what it leaves out or refuses."""

from __future__ import annotations

import hashlib
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
import torch
from kdcore_embeddings.data.text_tokens import TextTokenizer, common_units
from kdcore_embeddings.data.texts import TextData, read_texts
from kdcore_embeddings.search_scores import random_scores, retrieval_scores
from kdcore_embeddings.task import Embeddings
from kdcore_testing import check_task
from pyarrow import parquet
from transformers import AutoTokenizer

from kdcore import DataError, InputError, StoredData, tokenizer_fingerprint


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


def earlier_fingerprint(task: Embeddings) -> str:
    """Compute the fingerprint of this data in runs that began when batches had texts of similar length."""
    tokenizers = (task.student_tokenizer, task.teacher_tokenizer)
    digest = hashlib.sha256("".join(tokenizer_fingerprint(one.tokenizer) for one in tokenizers).encode())
    for tokenizer, prompts in zip(tokenizers, (task.config.prompts, task.config.teacher_prompts), strict=True):
        query, document = ("", "") if prompts is None else (prompts.query, prompts.document)
        for part in task.parts.values():
            first = document if part.width == 1 else query
            each = [first, *[document] * (part.width - 1)] * len(part)
            digest.update(tokenizer.encode(part.texts, each).fingerprint())
    for part in task.parts.values():
        digest.update(repr(part.width).encode() + (b"" if part.scores is None else part.scores.tobytes()))
    return digest.hexdigest()


def test_texts_are_in_random_order_unless_a_run_began_with_batches_of_similar_length(
    make: Callable[..., Embeddings], tokenizer_folder: Path, tmp_path: Path
) -> None:
    def lengths(texts: list[str]) -> list[int]:
        encoded = AutoTokenizer.from_pretrained(tokenizer_folder)(texts, truncation=True, max_length=24)
        return [len(ids) for ids in encoded["input_ids"]]

    task = make()
    assert task.lengths("train") is None
    held_out = task.lengths("held_out")
    assert held_out is not None
    assert held_out.tolist() == lengths(task.parts["held_out"].texts)
    stored = earlier_fingerprint(task)
    earlier = Embeddings.resumed(task.config, 1, tmp_path, StoredData(stored))
    own = earlier.lengths("train")
    assert own is not None
    assert own.tolist() == lengths(earlier.parts["train"].texts)
    assert earlier.fingerprint == stored != task.fingerprint, "a run is resumed in its own order only"
    assert task.batch_identity == earlier.batch_identity == {"data": stored}, "a teacher's stored signals serve both"
    again = Embeddings.resumed(task.config, 1, tmp_path, StoredData(task.fingerprint))
    assert (again.lengths("train"), again.fingerprint) == (None, task.fingerprint)


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
    assert same.texts("train", np.array([5, 2])) == [texts[5], texts[2]]
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
    assert {what: count for what, count in report.items() if count} == {
        "empty texts left out": 3,
        "repeated texts left out": 2,
        "texts left out of training because they are held out": 1,
    }


def test_translations_learn_the_embedding_of_their_text(
    make: Callable[..., Embeddings], tokenizer_folder: Path, tmp_path: Path, some_texts: list[str]
) -> None:
    rows = [
        {"en": text, "de": f"abc {text}", "fr": None if n % 3 else f"efg {text}"} for n, text in enumerate(some_texts)
    ]
    rows += [{"en": "", "de": "x", "fr": "y"}, {"en": "other", "de": some_texts[0], "fr": " "}]
    (tmp_path / "parallel.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {"train": str(tmp_path / "parallel.jsonl"), "text": "en", "translations": ["de", "fr"], "held_out": 0.2}
    report: Counter[str] = Counter()
    train, held_out = read_texts(TextData.model_validate(data), report)
    assert report["empty texts left out"] == 1
    assert report["empty translations left out"] == 46 + 1
    assert report["repeated texts left out"] == 1  # a translation that is another text
    source = {row[side]: row["en"] for row in rows[:70] for side in ("en", "de", "fr") if row[side]} | {
        "other": "other"
    }
    for part in (train, held_out):
        assert part.sources == [source[text] for text in part.texts]
    assert held_out.sources is not None
    assert train.sources is not None
    assert set(held_out.sources).isdisjoint(train.sources), "a text and its translations are on one side"
    task = make(data=data, prompts={"document": "of "}, teacher_prompts={"document": "the "})
    batch = task.batch("train", np.arange(12), np.zeros(12, int))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def encoded(texts: list[str], prompt: str) -> Any:
        prompted = [prompt + text for text in texts]
        return tokenizer(prompted, truncation=True, max_length=24, padding=True, return_tensors="pt")["input_ids"]

    assert batch.input_ids.equal(encoded(train.texts[:12], "of "))
    assert batch.teacher is not None
    assert batch.teacher.input_ids.equal(encoded(train.sources[:12], "the "))
    assert batch.units is not None
    assert batch.teacher.units is not None
    for view in (batch, batch.teacher):  # a unit is a whole text
        assert view.units is not None
        states = torch.arange(float(view.num_tokens))[:, None]
        means = [own.mean() for own in states.split(view.lengths.tolist())]
        torch.testing.assert_close(view.units.means(states)[:, 0], torch.stack(means))
    assert task.texts("train", np.arange(12)) == train.sources[:12]


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


GROUPS = [
    {"q": "one", "p": "document 1", "n": ["a", "b", "c"], "s": [9.5, 1, 2, 3]},
    {"q": "one", "p": "document 2", "n": ["", "document 2", "d", "one", "e"], "s": [8, 0, 0, 4, 0, 5]},
    {"q": "two", "p": "document 1", "n": ["a", "b"], "s": [7, 6, 5]},
    {"q": "two", "p": "document 1", "n": ["a", "b"], "s": [7, 6, 5]},
    {"q": "three", "p": "", "n": ["a", "b"], "s": [1, 2, 3]},
    {"q": "three", "p": "document 3", "n": ["a"], "s": [1, 2]},
]
KEYS = {"query": "q", "positive": "p", "negatives": "n", "num_negatives": 2, "scores": "s"}


@pytest.fixture
def groups_file(tmp_path: Path) -> str:
    (tmp_path / "groups.jsonl").write_text("\n".join(map(json.dumps, GROUPS)), encoding="utf-8")
    return str(tmp_path / "groups.jsonl")


def test_groups_without_documents_or_negatives_are_left_out_and_counted(groups_file: str) -> None:
    report: Counter[str] = Counter()
    train, held_out = read_texts(TextData.model_validate({"train": groups_file, **KEYS}), report)
    assert train.texts == [
        *("one", "document 1", "a", "b"),
        *("one", "document 2", "d", "e"),
        *("two", "document 1", "a", "b"),
    ]
    assert train.scores is not None
    assert train.scores.tolist() == [[9.5, 1, 2], [8, 4, 5], [7, 6, 5]]
    assert len(held_out) == 0
    assert {what: count for what, count in report.items() if count} == {
        "groups without a query or a positive document left out": 1,
        "negatives left out that are empty, the query or the positive document": 3,
        "negatives left out beyond the first of a group (task.data.num_negatives)": 1,
        "groups with too few negatives left out": 1,
        "repeated groups left out": 1,
    }


def test_groups_that_teach_nothing_or_contradict_others_are_counted(tmp_path: Path) -> None:
    groups = [
        {"q": "a", "p": "a", "n": ["x"], "s": [1, 2]},
        {"q": "b", "p": "c", "n": ["x", "x", "y", "z"], "s": [1, 2, 3, 4, 5]},
        {"q": "b", "p": "c", "n": ["x"], "s": [9, 2]},
        {"q": "d", "p": "e", "n": None, "s": [1]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, groups)), encoding="utf-8")
    data = {"train": str(tmp_path / "a.jsonl"), "query": "q", "positive": "p", "negatives": "n", "scores": "s"}
    report: Counter[str] = Counter()
    train, _ = read_texts(TextData.model_validate(data), report)
    assert train.texts == ["b", "c", "x"]
    assert train.scores is not None
    assert train.scores.tolist() == [[1, 2]]
    assert {what: count for what, count in report.items() if count} == {
        "groups left out whose positive document is the query": 1,
        "repeated negatives of a group left out": 1,
        "negatives left out beyond the first of a group (task.data.num_negatives)": 2,
        "groups with too few negatives left out": 1,
        "groups left out that repeat the texts of another one with other scores": 1,
    }


def test_values_that_are_no_texts_or_scores_are_refused(tmp_path: Path) -> None:
    def refusal(name: str, content: str, **keys: Any) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError) as refused:
            read_texts(TextData.model_validate({"train": str(tmp_path / name)} | keys), Counter())
        return str(refused.value)

    found = refusal("a.jsonl", '{"text": NaN}\n{"text": true}\n{"text": -Infinity}\n{"text": 1.5}\n')
    assert "3 records cannot be used" in found
    for place in ("line 1 has no text under `text` (found nan)", "line 2", "(found True)", "line 3", "(found -inf)"):
        assert place in found
    assert "line 1, the header, names the column `text` twice" in refusal("b.csv", "text,text\na,b\n")
    pairs = {"query": "q", "positive": "p", "scores": "s"}
    for score in ("1e39", "9" * 400, "true"):
        found = refusal("c.jsonl", f'{{"q": "a", "p": "b", "s": [{score}]}}\n', **pairs)
        assert "line 1 has no list of finite numbers under `s`" in found
    (tmp_path / "d.txt").write_text("a\n", encoding="utf-8")
    data = TextData.model_validate({"train": str(tmp_path / "d.txt"), "held_out": str(tmp_path / "absent.txt")})
    with pytest.raises(DataError, match=r"task\.data\.held_out"):
        read_texts(data, Counter())
    with pytest.raises(ValueError, match="`held_out` is empty"):
        TextData.model_validate({"train": "x", "held_out": ""})


def test_stray_quotes_in_csv_files_are_refused_with_the_line_of_their_row(tmp_path: Path) -> None:
    def lines(**changed: str) -> str:
        return "\n".join(["id,text", *(changed.get(f"row{row}", f"{row},text {row}") for row in range(40))]) + "\n"

    path = tmp_path / "a.csv"
    for content, message in (
        (lines(row5='5,"text'), "line 7: a quote in this row is never closed; the file ends in line 41"),
        (lines(row5='5,"text', row20='20,text"'), "line 7: a quote in this row merges it with the rows after it"),
        (lines(row5='5,"text" 5'), "line 7: a quote in this row is closed within a value"),
        ("id;text\n1;a\n", "line 1, the header, is separated by semicolons"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError) as refused:
            read_texts(TextData.model_validate({"train": str(path)}), Counter())
        assert f"a.csv: task.data.train: {message}" in str(refused.value)
        assert "`quoting: none`" not in str(refused.value), "the task has no such key"
        assert refused.value.exit_code == 2
    path.write_text(lines(row5='5,"two, or\nmore lines"'), encoding="utf-8")
    report: Counter[str] = Counter()
    texts = read_texts(TextData.model_validate({"train": str(path)}), report)[0].texts
    assert len(texts) == 40
    assert report[f"records with values of several lines in {path} (the first: line 7)"] == 1


def test_queries_of_held_out_groups_are_not_trained_on(groups_file: str, tmp_path: Path) -> None:
    (tmp_path / "held.csv").write_text("q,p,n1,n2\none,document 9,x,y\n", encoding="utf-8")
    (tmp_path / "train.csv").write_text("q,p,n1,n2\none,document 1,x,y\ntwo,document 1,x,y\n", encoding="utf-8")
    data = {"train": str(tmp_path / "train.csv"), "held_out": str(tmp_path / "held.csv")}
    columns = {"query": "q", "positive": "p", "negatives": ["n1", "n2"]}
    train, held_out = read_texts(TextData.model_validate(data | columns), Counter())
    assert train.texts == ["two", "document 1", "x", "y"]
    assert held_out.texts == ["one", "document 9", "x", "y"]
    pairs = {"query": "q", "positive": "p"}
    assert read_texts(TextData.model_validate(data | pairs), Counter())[0].texts == ["two", "document 1"]


def test_batches_of_groups_have_all_texts_behind_their_prompts(
    make: Callable[..., Embeddings], groups_file: str, tokenizer_folder: Path
) -> None:
    data = {"train": groups_file, "held_out": 0.0, **KEYS}
    prompts = {"query": "of ", "document": "the "}
    task = make(data=data, prompts=prompts, teacher_prompts=prompts)
    batch = task.draw("train", np.array([2, 0]), np.array([1, 3]))
    texts = [*("two", "document 1", "a", "b"), *("one", "document 1", "a", "b")]
    prompted = [("of " if number % 4 == 0 else "the ") + text for number, text in enumerate(texts)]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = tokenizer(prompted, padding=True, return_tensors="pt")
    assert batch.input_ids.equal(expected["input_ids"])
    lengths = (expected["input_ids"] != tokenizer.pad_token_id).sum(1).reshape(2, 4).amax(1)
    assert task.lengths("train") is None
    earlier = Embeddings.resumed(task.config, 1, Path(), StoredData(earlier_fingerprint(task))).lengths("train")
    assert earlier is not None
    assert earlier[[2, 0]].tolist() == lengths.tolist()
    assert batch.columns["sample_ids"].tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    numbers = batch.columns["group_texts"]
    assert numbers.shape == (8, 4)
    assert numbers[0].tolist()[1:] == numbers[4].tolist()[1:]  # equal texts have equal numbers
    assert numbers[0, 0] != numbers[4, 0]
    assert batch.columns["group_scores"].tolist() == [[7, 6, 5]] * 4 + [[9.5, 1, 2]] * 4
    assert batch.epochs is not None
    assert batch.epochs.tolist() == [1] * 4 + [3] * 4
    assert make(data=data | {"scores": None}).fingerprint != make(data=data).fingerprint


def test_scores_are_those_of_a_search_among_all_documents(
    make: Callable[..., Embeddings], groups_file: str, tmp_path: Path
) -> None:
    task = make(data={"train": groups_file, "held_out": 0.0, **KEYS}, similarity="dot")
    texts = task.parts["train"].texts
    # One component per document, which in a query is its score for the document.
    documents = ["document 1", "document 2", "a", "b", "d", "e"]
    asked = {"one": [1, 5, 0, 2, 0, 0], "two": [3, 0, 4, 5, 0, 0]}
    vectors = np.array([asked.get(text, [float(text == one) for one in documents]) for text in texts])
    scores = task.scores("train", vectors)
    gains = 1 / np.log2(np.arange(2, 12))
    # "one" finds document 2 first and document 1 third; "two" finds document 1 third.
    assert scores["ndcg_at_10"] == pytest.approx(((gains[0] + gains[2]) / (gains[0] + gains[1]) + gains[2]) / 2)
    assert scores["mrr_at_10"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["recall_at_1"] == pytest.approx((1 / 2 + 0) / 2)
    assert scores["recall_at_10"] == 1
    assert task.metric in scores
    assert task.baselines("train")["recall_at_1"] == pytest.approx(1 / 6)
    task.write_predictions(tmp_path, "train", vectors)
    assert parquet.read_table(tmp_path / "train.parquet").column("text").to_pylist() == texts


def test_scores_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    queries, documents = draw.standard_normal((40, 8)), draw.standard_normal((60, 8))
    relevant = [set(draw.choice(60, draw.integers(1, 14), replace=False).tolist()) for _ in range(40)]
    truth = np.array([[number in own for number in range(60)] for own in relevant], dtype=float)
    single = [{min(own)} for own in relevant]
    distances = {
        "dot": queries @ documents.T,
        "cosine": metrics.pairwise.cosine_similarity(queries, documents),
        "euclidean": -metrics.pairwise.euclidean_distances(queries, documents),
        "manhattan": -metrics.pairwise.manhattan_distances(queries, documents),
    }
    for similarity, expected in distances.items():
        found = retrieval_scores(queries, documents, relevant, similarity)
        assert found["ndcg_at_10"] == pytest.approx(metrics.ndcg_score(truth, expected, k=10))
        ranks = np.array([(row > row[min(own)]).sum() + 1 for row, own in zip(expected, relevant, strict=True)])
        found = retrieval_scores(queries, documents, single, similarity)
        assert found["mrr_at_10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean())
        for depth in (1, 10):
            top = metrics.top_k_accuracy_score([min(own) for own in relevant], expected, k=depth, labels=np.arange(60))
            assert found[f"recall_at_{depth}"] == pytest.approx(top)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_equal_vectors_earn_nothing(similarity: str) -> None:
    queries = np.random.default_rng(1).standard_normal((30, 16))
    documents = np.repeat(queries, 11, axis=0)  # the right one first, and ten that are equal
    relevant = [{11 * number} for number in range(30)]
    assert set(retrieval_scores(queries, documents, relevant, similarity).values()) == {0.0}
    kept = [number for number in range(330) if number % 11 < 2]
    found = retrieval_scores(queries, documents[kept], [{2 * number} for number in range(30)], similarity)
    if similarity != "dot":  # a longer vector may have a larger product than the query itself
        assert found["mrr_at_10"] == 1 / 2
    assert found["recall_at_1"] == 0


def test_scores_of_vectors_that_are_not_finite_are_refused() -> None:
    vectors = np.ones((5, 4))
    vectors[2, 1] = np.nan
    with pytest.raises(DataError, match=r"the embeddings of 1 of 5 documents are not finite"):
        retrieval_scores(np.ones((1, 4)), vectors, [{0}])


def test_random_scores_are_the_mean_over_all_orders() -> None:
    for size in (4, 25):
        documents = np.eye(size)
        found = [
            retrieval_scores(np.roll(np.arange(size, 0, -1.0), shift)[None], documents, [{0}], "dot")
            for shift in range(size)
        ]
        for name, value in random_scores(size).items():
            assert value == pytest.approx(np.mean([scores[name] for scores in found]))


def test_mistakes_of_groups_are_named(make: Callable[..., Embeddings], groups_file: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(
        '{"q": "a", "p": "b", "n": "c", "s": [1]}\n{"q": "a", "p": "b", "n": ["c"], "s": [1, NaN]}\n'
        '{"q": "a", "p": "b", "n": ["c"], "s": [1]}\n',
        encoding="utf-8",
    )
    bad = {"train": str(tmp_path / "bad.jsonl"), **KEYS, "num_negatives": 1}
    with pytest.raises(InputError) as refused:
        make(data=bad)
    for message in ("line 1 has no list under `n` (found str)", "line 2 has no list of finite numbers under `s`"):
        assert message in str(refused.value)
    assert "line 3 has 1 scores for 2 documents" in str(refused.value)
    with pytest.raises(InputError, match=r"no groups to train on; 6 groups with too few|no groups to train on"):
        make(data={"train": groups_file, **KEYS, "num_negatives": 9})
    for keys, message in [
        ({"query": "q"}, "`query` and `positive` must be set together"),
        ({"negatives": "n"}, "`negatives` needs `query` and `positive`"),
        ({"query": "q", "positive": "p", "text": "t"}, "`text` and `query` are mutually exclusive"),
        ({"query": "q", "positive": "p", "translations": "t"}, "`translations` and `query` are mutually exclusive"),
        ({"translations": ["de", "text"]}, "`translations` contains the column of the texts, `text`"),
        (
            {"query": "q", "positive": "p", "negatives": ["n"], "num_negatives": 2},
            r"larger than the number of columns \(1\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            TextData.model_validate({"train": "x"} | keys)
