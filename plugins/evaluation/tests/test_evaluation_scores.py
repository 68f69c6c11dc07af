"""Means, spreads and marks, against arithmetic written out; tables in four formats."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from kdcore_evaluation.probes.similarity import same_neighbours
from kdcore_evaluation.report.table_formats import csv_text, latex, markdown, terminal
from kdcore_evaluation.run.results import PARQUET, ResultRow, read_rows
from kdcore_evaluation.run.scores import Column, Measurement, ScoreTable, make_table, score_table

from kdcore.commands.main import main

ACCURACY = Column("finetune", "sentiment", "", "test", "accuracy", True)
LOSS = Column("masked_lm", "", "", "", "masked_lm_loss", False)


def table_of(groups: dict[str, list[float]], column: Column = ACCURACY) -> ScoreTable:
    values = {
        (name,): [Measurement(column, (seed, 1), value) for seed, value in enumerate(own)]
        for name, own in groups.items()
    }
    return make_table(("method",), values, {}, "seeds", {})


def best_of(table: ScoreTable) -> list[str]:
    return [labels[0] for labels, scores in table.groups.items() for score in scores.values() if score.best]


def test_mean_deviation_and_count_are_the_textbook_ones():
    score = table_of({"a": [0.7, 0.72, 0.77]}).groups["a",][ACCURACY]
    mean = (0.7 + 0.72 + 0.77) / 3
    assert score.mean == pytest.approx(mean)
    assert score.deviation == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in (0.7, 0.72, 0.77)) / 2))
    assert (score.count, score.unit) == (3, "seeds")


def test_the_best_is_marked_only_where_the_difference_exceeds_the_spread():
    assert best_of(table_of({"a": [0.80, 0.82], "b": [0.70, 0.72]})) == ["a"]
    assert best_of(table_of({"a": [0.70, 0.82], "b": [0.70, 0.72]})) == []
    assert best_of(table_of({"a": [0.80, 0.82], "b": [0.70, 0.72], "c": [0.79, 0.83]})) == []
    assert best_of(table_of({"a": [0.9], "b": [0.1]})) == [], "of one repetition no spread is known"
    assert best_of(table_of({"a": [0.8, 0.82]})) == [], "alone nobody is best"
    assert best_of(table_of({"a": [2.0, 2.1], "b": [1.0, 1.1]}, LOSS)) == ["b"], "a loss is better when it is lower"


def test_a_run_counts_once_however_often_it_was_fine_tuned():
    values = [Measurement(ACCURACY, (run, seed), score) for run, seed, score in
              ((1, 1, 0.6), (1, 2, 0.8), (1, 3, 0.7), (2, 1, 0.9))]  # fmt: skip
    score = make_table(("method",), {("a",): values}, {}, "seeds", {}).groups["a",][ACCURACY]
    assert (score.mean, score.count) == (pytest.approx((0.7 + 0.9) / 2), 2)
    alone = make_table(("method",), {("a",): values[:3]}, {}, "seeds", {}).groups["a",][ACCURACY]
    assert (alone.deviation, alone.count, alone.unit) == (pytest.approx(0.1), 3, "fine-tunings")


def chosen_rows(project: Path, model: str, share: float | None = 1.0) -> list[ResultRow]:
    """Test scores at the learning rate that validation prefers, by hand."""
    rows = [
        row
        for row in read_rows(project / "evaluations" / "quick")
        if row.model == model and row.share == share and row.kind == "finetune"
    ]
    means = {
        lr: statistics.fmean(row.value for row in rows if row.learning_rate == lr and row.split == "validation")
        for lr in {row.learning_rate for row in rows}
    }
    best = max(means, key=means.__getitem__)
    return [row for row in rows if row.learning_rate == best and row.split == "test"]


def test_learning_rates_are_chosen_on_validation_and_the_test_split_is_reported(compared_project: Path):
    table = score_table([row for row in read_rows(compared_project / "evaluations" / "quick") if row.share is None])
    for name in ("teacher", "random weights"):
        (column,) = [column for column in table.columns if column.kind == "finetune"]
        expected = [row.value for row in chosen_rows(compared_project, name, None)]
        assert {row.learning_rate for row in chosen_rows(compared_project, name, None)} == {1e-4}
        assert table.references[name,][column].mean == pytest.approx(statistics.fmean(expected))
        assert table.references[name,][column].deviation == pytest.approx(statistics.stdev(expected))
    assert list(table.chance.values()) == [0.42]


def test_several_tasks_get_an_average_and_their_second_parts_columns_of_their_own(compared_project: Path):
    rows = [row for row in read_rows(compared_project / "evaluations" / "quick") if row.model == "teacher"]
    more = [
        ResultRow(**{**vars(row), "task": "mnli", "split": f"{row.split}{suffix}", "value": row.value - 0.2})
        for row in rows
        if row.kind == "finetune"
        for suffix in ("", "_mismatched")
    ]
    table = score_table([*rows, *more])
    titles = {column.title: scores.mean for column, scores in table.references["teacher",].items()}
    assert {"sentiment accuracy", "mnli accuracy", "mnli mismatched accuracy", "average score"} <= titles.keys()
    assert titles["average score"] == pytest.approx((titles["sentiment accuracy"] + titles["mnli accuracy"]) / 2)


def test_both_files_of_results_hold_the_same_rows(compared_project: Path):
    from pyarrow import parquet

    folder = compared_project / "evaluations" / "quick"
    assert parquet.read_table(folder / PARQUET).to_pylist() == [vars(row) for row in read_rows(folder)]


def test_every_format_has_every_number():
    table = table_of({"under_score": [0.80, 0.82], "b|c": [0.70, 0.72]})
    assert "0.810 ± 0.014 (2)*" in terminal(table)
    assert "| **0.810 ± 0.014 (2)** |" in markdown(table)
    assert "b\\|c" in markdown(table)
    assert r"under\_score & \textbf{0.810 $\pm$ 0.014 (2)} \\" in latex(table)
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [(row["method"], float(row["mean"]), row["best"]) for row in rows] == [
        ("under_score", pytest.approx(0.81), "True"),
        ("b|c", pytest.approx(0.71), "False"),
    ]


def test_neighbours_are_those_of_a_plain_count():
    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=(12, 12)) for _ in range(2))
    first, second = first + first.T, second + second.T
    shares = []
    for row in range(12):
        others = [column for column in range(12) if column != row]
        nearest = [set(sorted(others, key=lambda c: -matrix[row, c])[:3]) for matrix in (first, second)]
        shares.append(len(nearest[0] & nearest[1]) / 3)
    assert same_neighbours(first, second, 3) == pytest.approx(np.mean(shares))
    assert same_neighbours(first, first, 3) == 1.0


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["compare", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_groups_by_keys_of_recipes(
    compared_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(compared_project)
    code, out, err = compare(capsys, "runs", "--format", "csv")
    assert code == 0, err
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["column"] == "sentiment accuracy"]
    seeds = {
        method: [statistics.fmean(row.value for row in chosen_rows(compared_project, f"{method}-{seed}"))
                 for seed in (43, 44, 45)]
        for method in ("attention_mse", "hidden_mse", "minilm_v2")
    }  # fmt: skip
    found = {row["method"]: (float(row["mean"]), float(row["standard_deviation"])) for row in rows}
    for method, values in seeds.items():
        assert found[method] == (pytest.approx(statistics.fmean(values)), pytest.approx(statistics.stdev(values)))
    code, out, _ = compare(capsys, "runs", "--by", "training.batch_size,export", "--over", "run", "--format", "csv")
    groups = {(row["training.batch_size"], row["export"]) for row in csv.DictReader(io.StringIO(out))}
    assert {("8", "final"), ("8", "budget-0.25")} <= groups


def test_students_before_training_are_the_first_baselines(
    compared_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import shutil

    from kdcore_evaluation.run.results import write_rows

    shutil.copytree(compared_project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    _, before, _ = compare(capsys, "runs", "--format", "csv")
    folder = Path("evaluations/quick")
    change = {"role": "initial", "export": "initial", "share": 0.0}
    initial = [
        ResultRow(**{**vars(row), **change, "model": f"{row.model} before training", "value": row.value / 2})
        for row in read_rows(folder)
        if row.export == "final"
    ]
    write_rows(folder, [*read_rows(folder), *initial])
    _, after, _ = compare(capsys, "runs", "--format", "csv")
    own = [line for line in after.splitlines() if not line.startswith("before training")]
    assert own == before.splitlines(), "what students and other references reach does not change"
    table = [row for row in csv.DictReader(io.StringIO(after)) if row["column"] == "sentiment accuracy"]
    assert [row["method"] for row in table][3:] == [
        *(f"before training: {method}" for method in ("attention_mse", "hidden_mse", "minilm_v2")),
        "teacher teacher",
        "random weights",
    ]
    means = [
        statistics.fmean(row.value for row in chosen_rows(compared_project, f"hidden_mse-{seed}")) / 2
        for seed in (43, 44, 45)
    ]
    assert float(table[4]["mean"]) == pytest.approx(statistics.fmean(means))
    assert float(table[4]["standard_deviation"]) == pytest.approx(statistics.stdev(means))
    titles = list(score_table(read_rows(folder)).references)
    assert len(titles) == 11
    assert titles[9:] == [("teacher",), ("random weights",)]


def test_what_is_odd_about_a_comparison_is_said(
    compared_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import shutil

    project = tmp_path / "moved"  # results find their runs wherever both are moved to
    shutil.copytree(compared_project, project)
    monkeypatch.chdir(project)
    runs = project / "runs" / "tiny"
    shutil.rmtree(runs / "hidden_mse-43" / "exports")
    changes = {"hidden_mse-44": {"data_fingerprint": "aa" * 32}, "minilm_v2-43": {"teacher_sha256": {"x": "ff"}}}
    for name, change in changes.items():
        path = runs / name / "environment.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (runs / "minilm_v2-44" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    rows = [row for row in read_rows(project / "evaluations" / "quick") if "attention_mse-43" not in (row.run or "")]
    other = [
        ResultRow(**{**vars(row), "labels": "a,b", "device": "another"}) for row in rows if row.model == "minilm_v2-45"
    ]
    from kdcore_evaluation.run.results import write_rows

    write_rows(project / "evaluations" / "quick", [*(row for row in rows if row.model != "minilm_v2-45"), *other[2:]])
    code, _, err = compare(capsys, "runs", "--html", "page.html")
    assert code == 0
    page = (project / "page.html").read_text(encoding="utf-8")
    for words in (
        "tiny/hidden_mse-43 (stopped)",
        "different data",
        "different teachers",
        "not drawn against time: tiny/minilm_v2-44",
        "Not evaluated: tiny/attention_mse-43",
        "different sets of labels: negative,positive; a,b",
        "different machines: a processor; another",
        "Not all fine-tunings are finished",
    ):
        assert words in err, err
        assert words in page, words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: the folder contains no runs"),
        (["runs", "--by", "trainig.batch_size"], "Did you mean `training.batch_size`?"),
        (["runs", "--by", ","], "no key is given"),
        (["runs", "--results", "empty"], "empty: the folder contains no results"),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str],
    words: str,
    compared_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(compared_project)
    (compared_project / "empty").mkdir(exist_ok=True)
    code, _, err = compare(capsys, *arguments)
    assert code == 2
    assert words in err
