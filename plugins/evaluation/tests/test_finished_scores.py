"""Tables of finished classification and tagging runs, from predictions alone, against independent computations."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow
import pytest
from kdcore_evaluation.report.score_rows import ScoreRows
from kdcore_evaluation.run.evaluated_models import find_models
from kdcore_evaluation.run.finished_scores import predictions_in
from kdcore_evaluation.run.item_scores import StoredPredictions, ratio_values
from kdcore_supervised import LabelledData
from pyarrow import parquet
from safetensors.numpy import save_file
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from kdcore.commands.main import main

CLASSES = ("negative", "neutral", "positive")
TEXTS = 200

Predict = Callable[[np.random.Generator, Sequence[Any]], list[Any]]


def write_run(folder: Path, task: str, teacher: str, losses: str, seed: int, width: int, parts: dict[str, Any]) -> None:
    """Write the files of a finished run: recipe, export and predictions."""
    export = folder / "exports" / "best"
    export.mkdir(parents=True)
    recipe = f"run: {{name: {folder.parent.name}, id: '{folder.name}'}}\nseed: {seed}\n{teacher}student: {{}}\n"
    recipe += f"{task}\nlosses: {losses}\ntraining: {{budget: {{steps: 9}}, batch_size: 8}}\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"data_fingerprint": "da" * 32}), encoding="utf-8")
    (export / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": width}), encoding="utf-8")
    save_file({"weight": np.zeros((10, width), np.float32)}, export / "model.safetensors")
    predictions = folder / "predictions"
    predictions.mkdir()
    (predictions / "scores.json").write_text(json.dumps({"export": "exports/best", "scores": {}}), encoding="utf-8")
    for name, columns in parts.items():
        parquet.write_table(pyarrow.table(columns), predictions / f"{name}.parquet")


def classified(labels: Sequence[str], right: float, seed: int) -> dict[str, Any]:
    """Return predictions, a fraction of which is right; some texts are harder than others."""
    draw, easy = np.random.default_rng(seed), np.random.default_rng(0).random(len(labels))
    predicted = [
        label if draw.random() < right + 0.3 * (easy[index] - 0.5) else CLASSES[draw.integers(3)]
        for index, label in enumerate(labels)
    ]
    outputs = [[float(name == own) for name in CLASSES] for own in predicted]
    return {
        "id": [str(one) for one in range(len(labels))],
        "label": labels,
        "prediction": predicted,
        "outputs": outputs,
    }


DATA = "{train: x.csv, text: t, label: l, labels: [negative, neutral, positive]}"
TASK = f"task: {{name: sequence_classification, data: {DATA}}}"


@pytest.fixture
def classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher, three seeds of its student, and two seeds of the same student without teacher."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(5)
    labels = [CLASSES[one] for one in draw.choice(3, TEXTS, p=[0.2, 0.5, 0.3])]
    runs = tmp_path / "runs"
    parts = {"test": classified(labels, 0.85, 1), "validation": classified(labels[:50], 0.85, 2)}
    write_run(runs / "teacher" / "1", TASK, "", "{classification: {}}", 1, 100, parts)
    for seed in (1, 2, 3):
        parts = {"test": classified(labels, 0.75, 10 + seed), "validation": classified(labels[:50], 0.8, 20 + seed)}
        teacher = f"teacher: {{path: {runs / 'teacher' / '1' / 'exports' / 'best'}}}\n"
        losses = "{soft_targets: {positions: classes}, classification: {}}"
        write_run(runs / "kd" / str(seed), TASK, teacher, losses, seed, 25, parts)
        if seed < 3:
            parts = {"test": classified(labels, 0.6, 30 + seed)}
            write_run(runs / "plain" / str(seed), TASK, "", "{classification: {}}", seed, 25, parts)
    return runs


def accuracy(run: Path, part: str = "test") -> float:
    table = parquet.read_table(run / "predictions" / f"{part}.parquet").to_pydict()
    return float(accuracy_score(table["label"], table["prediction"]))


def right(run: Path) -> np.ndarray:
    table = parquet.read_table(run / "predictions" / "test.parquet").to_pydict()
    return np.array([float(one == other) for one, other in zip(table["label"], table["prediction"], strict=True)])


def test_finished_classifiers_are_compared_without_fine_tuning(
    classifiers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "runs", "--format", "json", "--margin", "20"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    scores = {one["group"][0]: one for one in found["scores"] if one["column"]["title"] == "accuracy (test)"}
    assert list(scores) == [
        "soft_targets + classification",
        "teacher teacher/1",
        "without teacher: classification",
        "majority class",
    ]
    students = [classifiers / "kd" / str(seed) for seed in (1, 2, 3)]
    assert scores["soft_targets + classification"]["mean"] == pytest.approx(
        np.mean([accuracy(run) for run in students])
    )
    assert scores["soft_targets + classification"]["runs"] == "3 seeds"
    assert scores["teacher teacher/1"]["mean"] == pytest.approx(accuracy(classifiers / "teacher" / "1"))
    plain = [classifiers / "plain" / str(seed) for seed in (1, 2)]
    assert scores["without teacher: classification"]["mean"] == pytest.approx(np.mean([accuracy(run) for run in plain]))
    labels = parquet.read_table(students[0] / "predictions" / "test.parquet").column("label").to_pylist()
    assert scores["majority class"]["mean"] == max(labels.count(name) for name in CLASSES) / TEXTS
    sizes = {one["group"][0]: one["mean"] for one in found["scores"] if one["column"]["metric"] == "relative_size"}
    assert sizes["soft_targets + classification"] == 0.25
    assert sizes["teacher teacher/1"] == 1.0
    differences = {one["second"][0]: one for one in found["differences"]}
    assert list(differences) == ["without teacher: classification", "teacher teacher/1"]
    one = differences["without teacher: classification"]
    table = np.array([right(run) for run in students[:2]]) - np.array([right(run) for run in plain])
    assert one["difference"] == pytest.approx(table.mean())
    assert one["over"] == "2 paired seeds, 200 texts"
    teacher = differences["teacher teacher/1"]
    assert teacher["over"] == "3 seeds and 1 model, 200 texts"
    assert teacher["p_within"] < 0.025
    assert "predicted different texts" not in captured.err


def test_a_single_run_without_teacher_has_a_seed_of_its_own(
    classifiers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(classifiers / "plain" / "2")
    assert main(["compare", "runs", "--format", "json"]) == 0
    found = {one["second"][0]: one for one in json.loads(capsys.readouterr().out)["differences"]}
    one = found["without teacher: classification"]
    assert one["over"] == "3 seeds and 1 seed, 200 texts"
    students = np.array([right(classifiers / "kd" / str(seed)) for seed in (1, 2, 3)])
    of_texts = students.mean(0) - right(classifiers / "plain" / "1")
    of_seeds = students.mean(1).var(ddof=1) * (1 + 1 / 3)
    rest = students - students.mean(0) - students.mean(1, keepdims=True) + students.mean()
    shared = (rest**2).sum() / (2 * (TEXTS - 1)) * (1 + 1 / 3) / TEXTS
    own_texts = max(of_texts.var(ddof=1) / TEXTS - shared, 0)
    variance = of_seeds + own_texts
    freedom = variance / (of_seeds / 2 + own_texts / (TEXTS - 1))
    expected = stats.t.interval(0.95, freedom, of_texts.mean(), np.sqrt(variance))
    assert one["interval"] == pytest.approx(expected)
    assert found["teacher teacher/1"]["over"] == "3 seeds and 1 model, 200 texts", "the teacher does not vary"


def test_one_run_is_compared_by_its_texts(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher's run is found by its export, without being named."""
    assert main(["compare", "runs/kd/1", "--by", "run", "--format", "json"]) == 0
    captured = capsys.readouterr()
    (difference,) = json.loads(captured.out)["differences"]
    own = right(classifiers / "kd" / "1") - right(classifiers / "teacher" / "1")
    assert difference["second"] == ["teacher teacher/1"]
    assert difference["difference"] == pytest.approx(own.mean())
    low, high = difference["interval"]
    error = own.std(ddof=1) / np.sqrt(TEXTS)
    expected = stats.t.interval(0.95, TEXTS - 1, own.mean(), error)
    assert (low, high) == pytest.approx(expected, abs=0.15 * error), (
        "a bootstrap-t of this many texts is nearly Student's"
    )
    assert "No run trains the same student without a teacher" in captured.err
    assert "kdcore evaluate" not in captured.err, "nothing has to be fine-tuned"


def test_the_summary_shows_scores_with_intervals_beside_teacher_and_majority(classifiers: Path) -> None:
    run: Any = SimpleNamespace(folder=classifiers / "kd" / "1", arguments=None)
    rows = ScoreRows().rows(run)
    assert list(rows) == ["accuracy (test)"]
    number = r"(\d\.\d{3})"
    of_texts = rf"{number} \[{number}, {number}\] \({TEXTS} texts\)"
    found = re.fullmatch(f"{of_texts}; teacher: {of_texts}; majority class: {number}", rows["accuracy (test)"])
    assert found is not None, rows
    values = [float(one) for one in found.groups()]
    for at, folder in ((0, "kd"), (3, "teacher")):
        own = right(classifiers / folder / "1")
        error = stats.sem(own)
        drawn = own[np.random.default_rng(9).integers(0, TEXTS, (4000, TEXTS))]
        errors = (drawn.mean(1) - own.mean()) / stats.sem(drawn, axis=1)
        expected = own.mean() - np.quantile(errors, [0.975, 0.025]) * error
        assert values[at] == pytest.approx(own.mean(), abs=6e-4)
        assert values[at + 1 : at + 3] == pytest.approx(expected, abs=0.2 * error)
    labels = parquet.read_table(run.folder / "predictions" / "test.parquet").column("label").to_pylist()
    assert values[6] == pytest.approx(max(labels.count(name) for name in CLASSES) / TEXTS, abs=6e-4)

    shutil.rmtree(run.folder / "predictions")
    assert ScoreRows().rows(run) == {}


def test_the_table_shows_texts_seeds_and_baselines(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs", "--html", "page.html"]) == 0
    printed = capsys.readouterr().out
    header, _, student, *_ = printed.splitlines()
    assert header.split("  ")[0] == "method"
    assert "accuracy (test)" in header
    assert "(3 seeds, 200 texts)" in student
    assert "25%" in student
    assert "majority class" in (classifiers.parent / "page.html").read_text(encoding="utf-8")


def test_a_score_that_is_not_above_the_majority_is_shown_beside_it(
    classifiers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = classifiers / "kd" / "1"
    row = {"step": 9, "held_out/loss": 1.0, "held_out/accuracy": 0.25, "finding/accuracy": 1}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    labels = parquet.read_table(run / "predictions" / "validation.parquet").column("label").to_pylist()
    majority = max(labels.count(name) for name in CLASSES) / len(labels)
    assert main(["compare", "runs", "--html", "page.html"]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert warning.endswith(f"held-out accuracy 0.25 (majority class: {majority:.5g})")
    page = (classifiers.parent / "page.html").read_text(encoding="utf-8")
    (shown,) = re.findall(r'<section class="warning".*?</section>', page, re.DOTALL)
    cells = [re.sub("<.*?>", "", one) for one in re.findall(r"<td.*?</td>", shown)]
    assert cells == ["held-out accuracy", "0.25", f"{majority:.5g} (majority class)"]


def test_other_texts_of_the_teacher_are_not_used(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = classifiers / "teacher" / "1" / "predictions" / "test.parquet"
    parquet.write_table(parquet.read_table(path).slice(0, 100), path)
    assert main(["compare", "runs/kd", "--format", "json"]) == 0
    assert "teacher teacher/1" not in capsys.readouterr().out
    assert main(["compare", "runs", "--format", "json"]) == 0
    assert "These runs predicted different texts" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["scores", "table", "labels"])
def test_damaged_predictions_are_left_out(classifiers: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    folder = classifiers / "kd" / "1" / "predictions"
    if damage == "scores":
        (folder / "scores.json").write_text("[", encoding="utf-8")
    elif damage == "table":
        (folder / "test.parquet").write_bytes(b"PAR1")
    else:
        table = parquet.read_table(folder / "test.parquet")
        parquet.write_table(table.set_column(1, "label", pyarrow.array(["other"] * TEXTS)), folder / "test.parquet")
    assert main(["compare", "runs/kd", "--format", "json"]) == 0
    scores = [one for one in json.loads(capsys.readouterr().out)["scores"] if one["column"]["kind"] == "predictions"]
    assert scores[0]["count"] == 2


TAGS = ("O", "B-per", "I-per", "B-loc", "I-loc")


def tagged(seed: int, right_fraction: float) -> dict[str, Any]:
    draw, texts = np.random.default_rng(seed), np.random.default_rng(0)
    labels = [[TAGS[one] for one in texts.choice(5, 8, p=[0.6, 0.15, 0.1, 0.1, 0.05])] for _ in range(120)]
    predicted = [[tag if draw.random() < right_fraction else TAGS[draw.integers(5)] for tag in own] for own in labels]
    return {"id": [str(one) for one in range(120)], "label": labels, "prediction": predicted}


def test_finished_taggers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seqeval.metrics import f1_score as f1_of_spans

    monkeypatch.chdir(tmp_path)
    task = "task: {name: token_classification, data: {train: x.conll, labels: [per, loc]}}"
    runs = tmp_path / "runs"
    write_run(runs / "teacher" / "1", task, "", "{classification: {}}", 1, 50, {"test": tagged(1, 0.9)})
    teacher = f"teacher: {{path: {runs / 'teacher' / '1' / 'exports' / 'best'}}}\n"
    for seed in (1, 2):
        parts = {"test": tagged(1 + seed, 0.7)}
        write_run(runs / "kd" / str(seed), task, teacher, "{soft_targets: {positions: classes}}", seed, 25, parts)
    assert main(["compare", "runs", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = {one["group"][0]: one for one in found["scores"] if one["column"]["title"] == "f1 (test)"}
    expected = [f1_of_spans(*(tagged(seed, 0.7)[side] for side in ("label", "prediction"))) for seed in (2, 3)]
    assert scores["soft_targets"]["mean"] == pytest.approx(np.mean(expected))
    own = f1_of_spans(*(tagged(1, 0.9)[side] for side in ("label", "prediction")))
    assert scores["teacher teacher/1"]["mean"] == pytest.approx(own)
    assert scores["no spans"]["mean"] == 0.0
    sizes = {one["group"][0]: one["mean"] for one in found["scores"] if one["column"]["metric"] == "relative_size"}
    assert sizes == {"soft_targets": 0.5, "teacher teacher/1": 1.0}
    (difference,) = found["differences"]
    assert difference["over"] == "2 seeds and 1 model, 120 texts"
    assert difference["difference"] == pytest.approx(np.mean(expected) - own)
    # The influence of each text on F1 by leaving it out; seeds and texts as crossed random effects.
    teacher_texts, *of_seeds = (influences(f1_of_spans, tagged(*made)) for made in ((1, 0.9), (2, 0.7), (3, 0.7)))
    table = np.stack(of_seeds) - teacher_texts
    shared = ((table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()) ** 2).sum() / 119 / 240
    seeds, texts = np.var(expected, ddof=1) / 2, max(table.mean(0).var(ddof=1) / 120 - shared, 0.0)
    error, freedom = math.sqrt(seeds + texts), (seeds + texts) / (seeds + texts / 119)
    low, high = stats.t.interval(0.95, freedom, np.mean(expected) - own, error)
    assert difference["interval"] == pytest.approx((low, high), abs=0.04 * (high - low))


def influences(score: Callable[[list[Any], list[Any]], float], table: dict[str, Any]) -> np.ndarray:
    whole, count = score(table["label"], table["prediction"]), len(table["label"])
    return whole + (count - 1) * (whole - jackknife(score, table["label"], table["prediction"]))


def jackknife(score: Callable[[list[Any], list[Any]], float], labels: list[Any], predicted: list[Any]) -> np.ndarray:
    """Scores without each text in turn."""
    return np.array(
        [
            score(labels[:index] + labels[index + 1 :], predicted[:index] + predicted[index + 1 :])
            for index in range(len(labels))
        ]
    )


@pytest.mark.parametrize("metric", ["accuracy", "f1", "spans"])
def test_values_of_texts_are_their_influence_on_the_score(tmp_path: Path, metric: str) -> None:
    """Leaving a text out changes the score by its value, up to the curvature."""
    from seqeval.metrics import f1_score as f1_of_spans

    table = tagged(3, 0.8) if metric == "spans" else classified([CLASSES[one % 3] for one in range(90)], 0.7, 3)
    table.pop("outputs", None)
    parquet.write_table(pyarrow.table(table), tmp_path / "test.parquet")
    scores: dict[str, Callable[[list[Any], list[Any]], float]] = {
        "accuracy": lambda true, own: float(accuracy_score(true, own)),
        "f1": lambda true, own: float(f1_score(true, own, average="macro")),
        "spans": lambda true, own: float(f1_of_spans(true, own)),
    }
    whole = scores[metric](table["label"], table["prediction"])
    classes = (*CLASSES, "a class that does not occur")
    stored = StoredPredictions(tmp_path / "test.parquet", classes, metric == "spans")
    found = stored.item_scores("f1" if metric == "spans" else metric, whole)
    assert found is not None
    count = len(table["label"])
    assert found.values.mean() == pytest.approx(whole)
    without = jackknife(scores[metric], table["label"], table["prediction"])
    assert found.values - whole == pytest.approx((whole - without) * (count - 1), abs=0.1)
    assert found.values.std() == pytest.approx(((whole - without) * (count - 1)).std(), rel=0.03)
    assert stored.item_scores("matthews", whole) is None
    assert stored.item_scores("accuracy", whole + 0.01) is None, "a file of another score is not used"


@pytest.mark.parametrize("several", [False, True])
def test_labels_of_either_normal_form_are_equal(tmp_path: Path, several: bool) -> None:
    """Runs of version 0.1 stored the classes as spelled in their recipes."""
    classes = ["précis", "fâché"]
    data = {"train": "t.jsonl", "text": "t", "label": "l", "labels": [normalize("NFD", one) for one in classes]}
    labelled = LabelledData.model_validate({**data, "multi_label": several})
    found = []
    for form in ("NFC", "NFD"):
        run = tmp_path / form
        names = [normalize(form, one) for one in [*classes, *classes[:1] * 2]]
        column = [[name] for name in names] if several else names
        outputs = [[1.0, -1.0]] * 4
        predicted = [names[:1]] * 4 if several else names[:1] * 4
        columns = {"id": list("abcd"), "label": column, "prediction": predicted, "outputs": outputs}
        write_run(run, "", "", "", 0, 2, {"test": columns})
        predictions = predictions_in(run, labelled, "f1_micro" if several else "accuracy")
        assert predictions is not None
        measured, *_ = predictions.measurements("x")
        assert measured.value == predictions.constant()[1][0].value == 0.75
        stored = StoredPredictions(run / "predictions" / "test.parquet", labelled.classes, spans=False)
        scores = stored.item_scores(predictions.metric, 0.75)
        assert scores is not None
        found.append((predictions.texts, scores.texts, scores.values.mean()))
    assert found[0] == found[1]


def test_the_classes_of_a_model_are_in_normal_form(tmp_path: Path) -> None:
    content = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "e\u0301", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (model, *_) = find_models([str(tmp_path)], None, (), print)
    assert model.classes() == ("\u00e9", "b")


def test_a_ratio_without_a_whole_is_zero() -> None:
    values = ratio_values(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert values.mean() == pytest.approx(0.25)


def test_trials_of_evaluations_are_compared_by_their_texts(compared_project: Path, tmp_path: Path) -> None:
    """Measurements of result rows find the predictions of their trials."""
    from kdcore_evaluation.run.results import ResultRow, read_rows
    from kdcore_evaluation.run.scores import measurements, sample_of

    rows = [row for row in read_rows(compared_project / "evaluations" / "quick") if row.model == "hidden_mse-43"]
    changed, folders = [], {}
    for number, row in enumerate(row for row in rows if row.kind == "finetune"):
        table = classified([CLASSES[one % 2] for one in range(60)], 0.7, number)
        score = float(accuracy_score(table["label"], table["prediction"]))
        one = ResultRow(**{**vars(row), "value": score, "labels": "negative,neutral"})
        path = tmp_path / "cells" / row.cell / "predictions" / f"{row.split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), path)
        changed.append(one)
        folders[one] = tmp_path
    found = sample_of(measurements(changed, 43, folders))
    assert found.values.shape == (2, 60)
    assert found.values.mean() == pytest.approx(np.mean([one.value for one in measurements(changed, 43)]))
    assert sample_of(measurements(changed, 43)).values.shape == (2, 1), "scores alone"
