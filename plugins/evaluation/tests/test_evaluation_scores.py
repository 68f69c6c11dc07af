"""Means, intervals and differences, against SciPy and plain arithmetic; tables in five formats."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kdcore_evaluation.probes.similarity import same_neighbours
from kdcore_evaluation.report.table_formats import (
    csv_text,
    json_text,
    latex,
    markdown,
    shown_differences,
    terminal,
)
from kdcore_evaluation.run.differences import differences
from kdcore_evaluation.run.results import PARQUET, ResultRow, read_rows, write_rows
from kdcore_evaluation.run.scores import Column, Measurement, ScoreTable, make_table, score_table
from scipy import stats

from kdcore.commands.main import main

ACCURACY = Column("finetune", "sentiment", "", "test", "accuracy", True)
LOSS = Column("masked_lm", "", "", "", "masked_lm_loss", False)


def table_of(groups: dict[str, list[float]], column: Column = ACCURACY) -> ScoreTable:
    values = {
        (name,): [Measurement(column, (seed, 1), value) for seed, value in enumerate(own)]
        for name, own in groups.items()
    }
    return make_table(("method",), values, {}, "seeds", {})


def test_mean_deviation_and_count_are_the_textbook_ones():
    score = table_of({"a": [0.7, 0.72, 0.77]}).groups["a",][ACCURACY]
    mean = (0.7 + 0.72 + 0.77) / 3
    assert score.mean == pytest.approx(mean)
    assert score.deviation == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in (0.7, 0.72, 0.77)) / 2))
    assert (score.count, score.unit) == (3, "seeds")
    error = 4.302652729911275 * score.deviation / math.sqrt(3)  # the quantile 0.975 of Student's t with 2 degrees
    assert score.interval == pytest.approx((mean - error, mean + error))


def test_one_repetition_and_equal_ones_have_no_interval():
    assert table_of({"a": [0.7]}).groups["a",][ACCURACY].interval is None
    assert table_of({"a": [0.7, 0.7]}).groups["a",][ACCURACY].interval is None
    damaged = table_of({"a": [0.7, 1e300]}).groups["a",][ACCURACY]
    assert math.isnan(damaged.mean)
    assert (damaged.interval, damaged.deviation) == (None, None)


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


def test_size_and_speed_are_relative_to_the_teacher_on_one_machine(
    compared_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(compared_project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    results = Path("evaluations") / "quick"
    rows = [row for row in read_rows(results) if row.kind == "cost" and row.share in (None, 1.0)]

    def relative(metric: str) -> dict[str, float]:
        assert main(["compare", "runs", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)["scores"]
        return {one["group"][0]: one["mean"] for one in found if one["column"]["metric"] == metric}

    for metric, name in (("parameters", "relative_size"), ("sequences_per_second", "relative_speed")):
        values = {row.model: row.value for row in rows if row.metric == metric}
        means = {
            method: statistics.fmean(values[f"{method}-{seed}"] for seed in (43, 44, 45)) / values["teacher"]
            for method in ("hidden_mse", "attention_mse", "minilm_v2")
        }
        expected = {**means, "teacher teacher": 1.0, "random weights": values["random weights"] / values["teacher"]}
        assert relative(name) == pytest.approx(expected)
    assert main(["compare", "runs"]) == 0
    assert "1.00x" in capsys.readouterr().out
    others = [replace(row, device="another") if row.model == "hidden_mse-43" else row for row in read_rows(results)]
    write_rows(results, others)
    assert relative("relative_speed") == {}
    assert relative("relative_size")["teacher teacher"] == 1


def test_both_files_of_results_hold_the_same_rows(compared_project: Path):
    from pyarrow import parquet

    folder = compared_project / "evaluations" / "quick"
    assert parquet.read_table(folder / PARQUET).to_pylist() == [vars(row) for row in read_rows(folder)]


def compared(scores: dict[str, list[float]], margin: float | None = None) -> ScoreTable:
    table = table_of(scores)
    groups = {
        (name,): [Measurement(ACCURACY, (seed, 1), value) for seed, value in enumerate(own)]
        for name, own in scores.items()
    }
    teacher = [Measurement(ACCURACY, (0, 1), 0.81)]
    names = [("teacher",)]
    against = dict.fromkeys(groups, names)
    table.differences = differences(groups, {names[0]: teacher}, against, names, "seeds", margin)
    return table


SCORES = {"a": [0.80, 0.82, 0.83], "b": [0.70, 0.73, 0.71], "c": [0.79, 0.80, 0.84, 0.82]}


def test_differences_are_paired_by_seed_and_tested_as_by_scipy():
    found = {(one.first[0], one.second[0]): one for one in compared(SCORES).differences}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "teacher"), ("b", "teacher"), ("c", "teacher")]
    expected = {}
    for first, second in itertools.combinations("abc", 2):
        expected[first, second] = stats.ttest_rel(SCORES[first][:3], SCORES[second][:3])
    for name in "abc":
        expected[name, "teacher"] = stats.ttest_1samp(SCORES[name], 0.81)
    ranked = sorted(expected, key=lambda pair: expected[pair].pvalue)
    adjusted = list(itertools.accumulate((min(1, (6 - rank) * expected[pair].pvalue)
                                          for rank, pair in enumerate(ranked)), max))  # fmt: skip
    for pair, p_value in zip(ranked, adjusted, strict=True):
        interval = expected[pair].confidence_interval(0.95)
        shift = 0.81 if pair[1] == "teacher" else 0.0
        assert found[pair].interval == pytest.approx((interval.low - shift, interval.high - shift))
        assert found[pair].p_value == pytest.approx(p_value)
    assert found["a", "c"].over == "3 paired seeds"
    assert found["c", "teacher"].over == "4 seeds and 1 fine-tuning"


def test_fine_tunings_of_a_single_run_do_not_replace_its_seeds():
    single = [Measurement(ACCURACY, (1, seed), score) for seed, score in ((1, 0.74), (2, 0.75), (3, 0.76))]
    scores = [0.70, 0.73, 0.71]
    several = [Measurement(ACCURACY, (seed, 1), value) for seed, value in enumerate(scores, 2)]
    groups = {("single",): single, ("several",): several}
    (found,) = differences(groups, {}, dict.fromkeys(groups, ()), (), "seeds")
    expected = stats.t.interval(0.95, 2, 0.75 - np.mean(scores), np.std(scores, ddof=1) * math.sqrt(1 + 1 / 3))
    assert found.interval == pytest.approx(expected)
    assert found.over == "1 seed and 3 seeds"


def test_equal_differences_have_no_p_value_and_do_not_relax_holm():
    scores = {"a": [0.71, 0.74], "b": [0.68, 0.71], "c": [0.60, 0.64]}
    found = {(one.first[0], one.second[0]): one for one in compared(scores, margin=3).differences}
    assert ("a", "b") not in found
    assert len(found) == 5
    p_values = [stats.ttest_1samp(own, 0.81).pvalue for own in scores.values()]
    p_values += [stats.ttest_rel(scores[name], scores["c"]).pvalue for name in "ab"]
    assert min(one.p_value for one in found.values()) == pytest.approx(6 * min(p_values))


def test_a_margin_is_a_one_sided_test_against_the_teacher():
    found = {one.first[0]: one for one in compared(SCORES, margin=3).differences if one.second == ("teacher",)}
    p_values = {name: stats.ttest_1samp(SCORES[name], 0.81 - 0.03, alternative="greater").pvalue for name in SCORES}
    (lowest, *_), ranked = sorted(p_values), sorted(p_values, key=p_values.__getitem__)
    assert found[ranked[0]].p_within == pytest.approx(3 * p_values[ranked[0]])
    assert found[lowest].p_within is not None
    assert {one.p_within for one in compared(SCORES, margin=3).differences if one.second != ("teacher",)} == {None}
    printed = terminal(compared(SCORES, margin=10))
    assert "within the margin" in printed
    assert re.search(r"^a +teacher .* shown \(p 0\.0", printed, re.M)
    assert re.search(r"^b +teacher .* not shown \(p 0\.", printed, re.M)


def test_of_many_groups_those_beside_the_highest_mean_are_shown():
    many = compared({name: [number + 0.1, number * 1.1 + 0.2] for number, name in enumerate("abcde")})
    assert len(many.differences) == 10 + 5
    assert {"e"} <= {name for one in shown_differences(many) for name in (*one.first, *one.second)}
    assert all("e" in (*one.first, *one.second) for one in shown_differences(many))


def test_every_format_has_every_number():
    table = compared({"under_score": [0.80, 0.82], "b|c": [0.70, 0.71]})
    table.favoured = {(("b|c",), ACCURACY): ("hidden_mse",)}
    low, high = stats.t.interval(0.95, 1, 0.81, 0.01)
    cell = f"0.810 [{low:.3f}, {high:.3f}] (2 seeds)"
    assert cell in terminal(table)
    assert f"| {cell} |" in markdown(table)
    assert "b\\|c" in markdown(table)
    assert rf"under\_score & {cell} \\" in latex(table)
    test = stats.ttest_rel([0.80, 0.82], [0.70, 0.71])
    interval = test.confidence_interval(0.95)
    difference = f"+0.105 [{interval.low:+.3f}, {interval.high:+.3f}]"
    for text in (terminal(table), markdown(table)):
        assert difference in text
        assert "2 paired seeds" in text
        assert "† sentiment accuracy: by construction in favour of hidden_mse" in text
        assert "sentiment accuracy †" in text, "the difference is marked, for only one of both is favoured"
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [(row["method"], row["minus"], float(row["mean"]), float(row["low"])) for row in rows[:3:2]] == [
        ("under_score", "", pytest.approx(0.81), pytest.approx(low)),
        ("under_score", "b|c", pytest.approx(0.105), pytest.approx(interval.low)),
    ]
    stored = json.loads(json_text(table))
    assert stored["differences"][0]["interval"] == pytest.approx([interval.low, interval.high])
    assert [(one["group"], one["mean"]) for one in stored["scores"]] == [
        (["under_score"], pytest.approx(0.81)),
        (["b|c"], pytest.approx(0.705)),
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
    assert same_neighbours(first, second, 3) == pytest.approx(np.array(shares))
    assert (same_neighbours(first, first, 3) == 1.0).all()


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
    rows = [row for row in rows if row["standard_deviation"]]
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


def test_runs_that_were_not_evaluated_are_compared_by_their_losses(
    compared_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)  # no evaluations here
    code, out, err = compare(capsys, str(compared_project / "runs"))
    assert code == 0
    assert "None of these runs was evaluated" in err
    header, _, *lines = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert header == ["method", "held-out loss", "before training", "now", "constant prediction", "explained"]
    shown = {tuple(cells[:2]): cells[2:] for cells in lines}
    for method in ("attention_mse", "hidden_mse", "minilm_v2"):
        histories = []
        for seed in (43, 44, 45):
            metrics = (compared_project / "runs" / "tiny" / f"{method}-{seed}" / "metrics.jsonl").read_text()
            rows = [json.loads(line) for line in metrics.splitlines()]
            histories.append([row["held_out/loss"] for row in rows if "held_out/loss" in row])
        for place, cell in zip((0, -1), shown[method, "loss"], strict=False):
            values = [history[place] for history in histories]
            assert float(cell.split()[0]) == pytest.approx(statistics.fmean(values), rel=1e-3)
            assert cell.endswith("(3 seeds)")


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
    before, after = ([row for row in csv.DictReader(io.StringIO(text))] for text in (before, after))
    scores = [[row for row in rows if not row["minus"]] for rows in (before, after)]
    own = [row for row in scores[1] if not row["method"].startswith("before training")]
    assert own == scores[0], "what students and other references reach does not change"
    table = [row for row in scores[1] if row["column"] == "sentiment accuracy"]
    assert [row["method"] for row in table][3:] == [
        "teacher teacher",
        *(f"before training: {method}" for method in ("attention_mse", "hidden_mse", "minilm_v2")),
        "random weights",
    ]
    means = [
        statistics.fmean(row.value for row in chosen_rows(compared_project, f"hidden_mse-{seed}")) / 2
        for seed in (43, 44, 45)
    ]
    assert float(table[5]["mean"]) == pytest.approx(statistics.fmean(means))
    assert float(table[5]["standard_deviation"]) == pytest.approx(statistics.stdev(means))
    gained = {row["method"]: row for row in after if row["minus"].startswith("before training")}
    assert [row["minus"] for row in gained.values()] == [f"before training: {method}" for method in gained]
    assert set(gained) == {"attention_mse", "hidden_mse", "minilm_v2"}
    test = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert float(gained["hidden_mse"]["low"]) == pytest.approx(test.low), "the student is twice as good"
    assert gained["hidden_mse"]["over"] == "3 paired seeds"
    titles = list(score_table(read_rows(folder)).references)
    assert len(titles) == 11
    assert (titles[0], titles[10]) == (("teacher",), ("random weights",))


def test_the_command_tests_a_margin(
    compared_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(compared_project)
    code, out, err = compare(capsys, "runs", "--margin", "5", "--format", "json")
    assert code == 0, err
    found = {tuple(one["first"] + one["second"]): one["p_within"] for one in json.loads(out)["differences"]}
    teacher = [row.value for row in chosen_rows(compared_project, "teacher", None)]
    p_values = {}
    for method in ("attention_mse", "hidden_mse", "minilm_v2"):
        runs = [statistics.fmean(row.value for row in chosen_rows(compared_project, f"{method}-{seed}"))
                for seed in (43, 44, 45)]  # fmt: skip
        p_values[method] = stats.ttest_ind(
            [score + 0.05 for score in runs], teacher, equal_var=False, alternative="greater"
        ).pvalue
    lowest = min(p_values, key=p_values.__getitem__)
    assert found[lowest, "teacher teacher"] == pytest.approx(3 * p_values[lowest])
    assert found["hidden_mse", "minilm_v2"] is None
    code, _, err = compare(capsys, "runs/tiny/hidden_mse-43", "--margin", "5", "--results", "evaluations")
    assert code == 0
    code, _, err = compare(capsys, "runs", "--margin", "0")
    assert code == 2
    assert "--margin: must be a positive number (found 0)" in err


def test_a_margin_needs_a_teacher(
    compared_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    code, _, err = compare(capsys, str(compared_project / "runs"), "--margin", "5")
    assert code == 2
    assert "--margin: the results contain no teacher to compare with" in err


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
