"""The task sequence_classification: its batches, scores and predictions."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kdcore_supervised.metrics import constant_scores, metrics_of
from kdcore_supervised.sequence_classification import SequenceClassification
from kdcore_testing import check_task
from pyarrow import parquet
from transformers import AutoTokenizer

from kdcore import DataError, InputError

WORDS = ["the", "teacher", "of", "student", "and"]


def rows(count: int, columns: int = 1) -> list[list[str]]:
    draw = np.random.default_rng(3)
    return [
        [" ".join(draw.choice(WORDS, draw.integers(1, 36))) + f" {number}" for _ in range(columns)]
        + [str(draw.integers(0, 2))]
        for number in range(count)
    ]


def write(path: Path, header: str, content: list[list[str]]) -> str:
    path.write_text("\n".join([header, *(",".join(row) for row in content)]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def make(tmp_path: Path, tokenizer_folder: Path) -> Any:
    """Make a task over 60 texts, or pairs: `make(**data keys)`."""

    def task(columns: int = 1, metric: str | None = None, **keys: Any) -> SequenceClassification:
        names = [f"t{number}" for number in range(columns)]
        path = write(tmp_path / f"all{columns}.csv", ",".join([*names, "label"]), rows(60, columns))
        data = {"train": path, "split": {"validation": 0.3, "test": 0.2}, "text": names, "label": "label"}
        data |= {"labels": ["0", "1"], "tokenizer": str(tokenizer_folder), "max_length": 24} | keys
        data = {key: value for key, value in data.items() if value is not None}
        config = SequenceClassification.Config.model_validate({"data": data, "metric": metric})
        return SequenceClassification(config, 1, tmp_path)

    return task


@pytest.mark.parametrize("columns", [1, 2])
def test_batches_are_what_the_tokenizer_says(columns: int, make: Any, tokenizer_folder: Path) -> None:
    task = make(columns)
    held = task._splits["train"]
    total = task.num_samples("train")
    batch = task.batch("train", np.arange(total), np.zeros(total, dtype=np.int64))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = held.parts[0].texts
    expected = tokenizer(*texts, truncation=True, max_length=24, padding=True, return_tensors="pt")
    assert batch.input_ids.equal(expected["input_ids"])
    assert batch.attention_mask.equal(expected["attention_mask"].bool())
    assert (batch.token_types is None) == (columns == 1)
    if columns == 2:
        assert batch.token_types.equal(expected["token_type_ids"])
    assert batch.columns["labels"].tolist() == held.labels.tolist()
    assert held.tokens.cut == sum(len(ids) > 24 for ids in tokenizer(*texts)["input_ids"]) > 0


@pytest.mark.parametrize("columns", [1, 2])
def test_it_does_what_every_task_must_do(columns: int, make: Any, tmp_path: Path) -> None:
    config = make(columns).config.model_dump(exclude_none=True)
    check_task("sequence_classification", config, cache=tmp_path)
    numbers = config["data"] | {"regression": True}
    del numbers["labels"]
    check_task("sequence_classification", {"data": numbers}, cache=tmp_path)


def test_the_fingerprint_is_of_what_is_trained_on(make: Any) -> None:
    same = make().fingerprint
    assert make(metric="f1").fingerprint == same
    assert make(max_length=16).fingerprint != same
    assert make(labels=["1", "0"]).fingerprint != same
    assert make(split={"validation": 0.2}).fingerprint != same


def test_a_tokenizer_that_leaves_ids_out_needs_as_many_embeddings_as_its_highest_id(
    make: Any, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "gaps")
    content = json.loads((tmp_path / "gaps/tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    size = len(vocabulary)
    vocabulary[max(vocabulary, key=vocabulary.get)] = size + 9
    (tmp_path / "gaps/tokenizer.json").write_text(json.dumps(content))
    student: Any = SimpleNamespace(info=SimpleNamespace(vocab_size=size, max_length=512), source=None)
    with pytest.raises(DataError, match=rf"the student's \(found {size + 10} tokens, expected at most {size}\)"):
        make(tokenizer=str(tmp_path / "gaps")).check(student, None)


def test_very_long_texts_are_cut_counted_and_told_once(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = write(tmp_path / "long.csv", "t0,label", [["the " * 10_000, "1"], ["of", "0"], ["and of " * 5_000, "0"]])
    with caplog.at_level(logging.INFO, "kdcore"):
        task = make(train=long, split=None)
    assert task.lengths("train").tolist() == [24, 3, 24]
    messages = [record.getMessage() for record in caplog.records if "truncated" in record.getMessage()]
    assert messages == ["labelled texts: 2 are longer than 24 tokens (task.data.max_length) and were truncated"]


def test_texts_and_ids_of_validation_that_are_trained_on_are_told(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write(tmp_path / "train.csv", "t0,label,name", [["one", "1", "x"], ["two", "0", "y"]])
    held = write(tmp_path / "held.csv", "t0,label,name", [["two", "1", "x"], ["three", "0", "y"], ["two", "0", "z"]])
    with caplog.at_level(logging.WARNING, "kdcore"):
        make(train=train, validation=held, split=None, id="name")
    messages = [record.getMessage() for record in caplog.records if " also in " in record.getMessage()]
    assert messages == [
        "2 texts of `validation` are also in `train`, such as 'two'",
        "2 ids of `validation` are also in `train`",
    ]


def test_problems_of_the_texts_are_reported_at_the_start(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write(tmp_path / "train.csv", "t0,label", [*[["the of", "1"]] * 30, [" the of", "0"], ["and", "0"]])
    held = write(tmp_path / "held.csv", "t0,label", [["龘龘 the", "1"], ["靐 of", "1"]])
    with caplog.at_level(logging.WARNING, "kdcore"):
        make(train=train, validation=held, split=None)
    messages = [record.getMessage().removeprefix("labelled texts: ") for record in caplog.records]
    assert messages == [
        "train: 30 of 32 texts repeat another one",
        "train: number of texts that occur with different labels: 1",
        "validation: only 2 texts: results on so few are hardly reproducible",
        "validation: all texts have the label '1'",
        "validation: 37.5% of the characters are unknown to the tokenizer; was it trained on such text?",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "kdcore"):
        make(labels=["0", "1", "2", "3"])
    messages = [record.getMessage() for record in caplog.records]
    assert "labelled texts: train: no text has the label 2, 3" in messages


def test_predictions_are_stored_with_ids_labels_and_outputs(make: Any, tmp_path: Path) -> None:
    task = make(labels=["1", "0"])
    outputs = np.random.default_rng(0).standard_normal((task.num_samples("held_out"), 2)).astype(np.float32)
    task.write_predictions(tmp_path, "held_out", outputs)
    table = parquet.read_table(tmp_path / "validation.parquet").to_pydict()
    part = task._splits["held_out"].parts[0]
    assert table["id"] == part.ids
    assert table["label"] == [["1", "0"][label] for label in part.labels]
    assert table["prediction"] == [["1", "0"][int(row[1] > row[0])] for row in outputs]
    np.testing.assert_array_equal(np.array(table["outputs"], dtype=np.float32), outputs)


def glue_folder(folder: Path, task: str, train: str, test: str) -> SequenceClassification.Config:
    (folder / task).mkdir()
    for name, text in (("train.tsv", train), ("dev.tsv", train), ("test.tsv", test)):
        (folder / task / name).write_text(text, encoding="utf-8")
    short = {"RTE": "rte", "CoLA": "cola", "STS-B": "stsb"}[task]
    data = {"glue": {"folder": str(folder), "task": short}}
    return SequenceClassification.Config.model_validate({"data": data})


@pytest.mark.parametrize(
    ("name", "train", "test", "outputs", "expected"),
    [
        (
            "RTE",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
            "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n",
            [[0.0, 1.0], [2.0, 1.0]],
            "0\tnot_entailment\n1\tentailment\n",
        ),
        ("CoLA", "x\t1\t\ta\n", "index\tsentence\n5\ta\n7\tb\n", [[0.0, 1.0], [2.0, 1.0]], "5\t1\n7\t0\n"),
        (
            "STS-B",
            "index\tsentence1\tsentence2\tscore\n0\ta\tb\t2.5\n",
            "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n",
            [[-0.5], [3.14159]],
            "0\t0.000\n1\t3.142\n",
        ),
    ],
)
def test_predictions_of_glues_tests_are_a_submission(
    name: str, train: str, test: str, outputs: Any, expected: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    config = glue_folder(tmp_path, name, train, test)
    data = config.data.model_copy(update={"tokenizer": str(tokenizer_folder)})
    task = SequenceClassification(config.model_copy(update={"data": data}), 1, tmp_path)
    task.write_predictions(tmp_path, "test", np.array(outputs, dtype=np.float32))
    assert (tmp_path / f"{name}.tsv").read_text(encoding="utf-8") == "index\tprediction\n" + expected
    with pytest.raises(DataError, match=r"the split `test` has no labels, so predictions cannot be scored"):
        task.scores("test", np.array(outputs))


def test_metrics_are_their_definitions() -> None:
    draw = np.random.default_rng(1)
    labels, outputs = draw.integers(0, 2, 500), draw.standard_normal((500, 2)).astype(np.float32)
    found, predicted = metrics_of(outputs, labels), outputs.argmax(1)
    both, either = ((labels & predicted) == 1).sum(), labels.sum() + predicted.sum()
    assert found["accuracy"] == pytest.approx((labels == predicted).mean())
    assert found["f1"] == pytest.approx(2 * both / either)
    assert found["matthews"] == pytest.approx(np.corrcoef(labels, predicted)[0, 1])
    targets = labels + draw.standard_normal(500).astype(np.float32)
    found = metrics_of(outputs[:, :1], targets)
    ranks = [np.argsort(np.argsort(values)) for values in (outputs[:, 0], targets)]
    assert found["pearson"] == pytest.approx(np.corrcoef(outputs[:, 0], targets)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_f1_of_three_classes_is_the_mean_and_what_is_undefined_is_0() -> None:
    labels = np.array([0, 1, 2, 2])
    assert metrics_of(np.eye(3)[[0, 2, 2, 2]], labels)["f1"] == pytest.approx((1 + 0 + 0.8) / 3)
    assert metrics_of(np.eye(2)[[0, 0]], np.array([0, 0]))["f1"] == 0.0
    assert metrics_of(np.ones((4, 1)), np.arange(4.0)) == {"pearson": 0.0, "spearman": 0.0}
    assert metrics_of(np.ones((4, 2)), np.array([0, 1, 0, 1]))["matthews"] == 0.0


def test_macro_f1_is_that_of_scikit_learn_also_if_classes_are_absent() -> None:
    from sklearn.metrics import f1_score

    labels = np.array([0, 2, 0, 2])
    assert metrics_of(np.eye(3)[labels], labels)["f1"] == f1_score(labels, labels, average="macro") == 1.0
    draw = np.random.default_rng(8)
    for present in ([0], [0, 3], [1, 2], [0, 1, 3]):
        labels, outputs = draw.choice(present, 40), draw.standard_normal((40, 4))
        outputs[:, 2] -= 9  # never predicted
        expected = f1_score(labels, outputs.argmax(1), average="macro", zero_division=0.0)
        assert metrics_of(outputs, labels)["f1"] == expected


def test_scores_of_lists_of_classes_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(5)
    labels = (draw.random((300, 4)) < [0.6, 0.3, 0.1, 0.0]).astype(np.float32)
    outputs = draw.standard_normal((300, 4)).astype(np.float32) + 2 * labels - 1
    found = metrics_of(outputs, labels)
    assert found["f1_micro"] == pytest.approx(f1_score(labels, outputs > 0, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, outputs > 0, average="macro", zero_division=0.0))
    assert 0.5 < found["f1_macro"] < found["f1_micro"] < 1


def test_constant_predictions_score_no_better_than_the_baselines() -> None:
    draw = np.random.default_rng(6)
    labels = (draw.random((200, 4)) < [0.5, 0.4, 0.2, 0.05]).astype(np.float32)
    scores = [metrics_of(np.tile(np.array(chosen), (200, 1)) - 0.5, labels) for chosen in product([0.0, 1.0], repeat=4)]
    best = constant_scores(labels)
    for name in ("f1_micro", "f1_macro"):
        assert best[name] == pytest.approx(max(one[name] for one in scores))
    assert constant_scores(np.array([0, 1, 1])) == {"accuracy": pytest.approx(2 / 3)}
    assert constant_scores(np.array([0.5, 1.5], dtype=np.float32)) == {}


def test_a_metric_that_does_not_fit_is_refused(make: Any) -> None:
    for metric, keys in (("pearson", {}), ("accuracy", {"labels": None, "regression": True})):
        with pytest.raises(ValueError, match=rf"`metric: {metric}` cannot be used with"):
            make(metric=metric, **keys)


def test_the_missing_extra_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match=r"sklearn(?s:.)*pip install kdcore-supervised"):
        make()
