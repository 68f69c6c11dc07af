"""`kdcore sweep --plan`: runs, hours, and differences that can be detected."""

from __future__ import annotations

import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kdcore_evaluation.report.sweep_plan import DEFAULT_DEVIATION, TEXT_VARIANCE, TaskPlan
from kdcore_evaluation.run.results import read_rows
from kdcore_evaluation.statistics.power import detectable_difference
from scipy import stats

from kdcore.commands.main import main


@pytest.mark.parametrize(("seeds", "alpha"), [(3, 0.05), (6, 0.05), (12, 0.01)])
def test_a_detectable_difference_is_found_with_the_stated_power(seeds: int, alpha: float) -> None:
    deviation = 0.014
    difference = detectable_difference([(deviation**2 / seeds, seeds - 1)], alpha=alpha)
    draw = np.random.default_rng(4)
    simulated = draw.normal(difference, deviation, (20_000, seeds))
    found = (stats.ttest_1samp(simulated, 0.0, axis=1).pvalue < alpha).mean()
    print(f"{seeds} seeds at {alpha}: {difference:.4f} is found in {found:.3f}")
    assert found == pytest.approx(0.8, abs=0.01)


def test_many_texts_and_seeds_approach_the_normal_distribution() -> None:
    plan = TaskPlan("x", 100_000, 0.01, "stated")
    error = math.sqrt(2 * 0.01**2 / 500 + TEXT_VARIANCE / 100_000)
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error
    assert plan.detectable(500, 1) == pytest.approx(expected, rel=0.01)
    assert plan.detectable(500, 10) == pytest.approx((stats.norm.ppf(0.9975) + stats.norm.ppf(0.8)) * error, rel=0.01)
    assert plan.detectable(3, 1) > plan.detectable(5, 1) > plan.detectable(20, 1)
    assert TaskPlan("x", 100, 0.01, "stated").detectable(5, 1) > plan.detectable(5, 1)


def test_texts_do_not_enter_the_error_of_a_correlation() -> None:
    plan = TaskPlan("x", 1000, 0.01, "stated", by_text=False)
    assert plan.detectable(5, 3) == pytest.approx(detectable_difference([(2 * 0.01**2 / 5, 4)], alpha=0.05 / 3))


def test_one_seed_leaves_the_texts_and_the_sizes_of_the_shipped_suite_are_those_of_the_plan() -> None:
    def difference(texts: int) -> float:
        return TaskPlan("x", texts, 0.01, "stated").detectable(1, 1)

    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(TEXT_VARIANCE / 10_000)
    assert difference(10_000) == pytest.approx(normal, rel=1e-3)
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| (0\.\d+) \|$", page, re.M)
    assert len(rows) >= 4
    for texts, shown in rows:
        assert f"{difference(int(texts.replace(',', ''))):.3f}" == shown


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mood_suite: Callable[[Path, str], None]) -> Path:
    """A sweep of two methods and three seeds, with a suite on 80 texts."""
    monkeypatch.chdir(tmp_path)
    write_mood_suite(tmp_path, "seeds: [1, 2]\n")
    for name in ("hidden_mse", "minilm_v2"):
        recipe = "run: {name: tiny}\nteacher: {path: teacher}\nstudent: {}\ntask: {name: masked_lm, data: data}\n"
        recipe += f"losses: {{{name}: {{layers: last}}}}\ntraining: {{budget: {{steps: 100}}, batch_size: 8}}\n"
        (tmp_path / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    sweep = "recipes: [hidden_mse.yaml, minilm_v2.yaml]\naxes: {seed: [43, 44, 45]}\nsuite: suite.yaml\n"
    (tmp_path / "sweep.yaml").write_text(sweep, encoding="utf-8")
    return tmp_path


def test_a_plan_trains_nothing_and_uses_documented_defaults(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(planned.rglob("*"))
    assert main(["sweep", "sweep.yaml", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert sorted(planned.rglob("*")) == before
    assert "6 runs: 2 groups x 3 values of seed; 0 are finished" in printed
    assert "6 runs; no earlier run of the same kind shows how long they take" in printed
    assert "fine-tunings: 2 of each student, 12 in all; no earlier fine-tuning shows how long they take" in printed
    row = next(line for line in printed.splitlines() if line.startswith("mood accuracy"))
    count = int(row.split()[2])
    expected = TaskPlan("", count, DEFAULT_DEVIATION, "").detectable(3, 1)
    assert f"{DEFAULT_DEVIATION:.4f} (default)" in row
    assert f"{expected:.4f}" in row
    assert main(["sweep", "sweep.yaml", "--plan", "--deviation", "0.05"]) == 0
    assert "0.0500 (stated)" in capsys.readouterr().out
    assert main(["sweep", "sweep.yaml", "--plan", "training.budget={hours: 2}"]) == 0
    assert "6 runs take about 12.0 hours" in capsys.readouterr().out


def test_a_plan_counts_the_differences_of_the_comparison(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks and their average, two linear probes and three scores of agreement; teachers have no agreement."""
    suite = (planned / "suite.yaml").read_text(encoding="utf-8")
    task = re.search(r"  mood:\n(?:    .*\n)+", suite)
    assert task is not None
    other = task[0].replace("  mood:", "  other:") + "    metric: matthews\n"
    more = "references: [initial, teacher, random]\nprobes: {linear: {}, agreement: {data: data}}\n"
    (planned / "suite.yaml").write_text(suite.replace(task[0], task[0] + other) + more, encoding="utf-8")
    assert main(["sweep", "sweep.yaml", "--plan"]) == 0
    printed = capsys.readouterr().out
    family = 1 * 8 + 2 * 8 + 2 * 5
    assert f"(after correction for up to {family} differences)" in printed
    assert "1 pair of groups x 8 scores" in printed
    assert "2 pairs of a group and its students before training x 8 scores" in printed
    assert "2 pairs of a group and a teacher x 5 scores" in printed
    rows = {line.split()[0]: line for line in printed.splitlines() if line.startswith(("mood ", "other "))}
    count = int(rows["mood"].split()[2])
    for name, by_text in (("mood", True), ("other", False)):
        plan = TaskPlan("", count, DEFAULT_DEVIATION, "", by_text)
        assert f"{plan.detectable(3, 1):.4f} ({plan.detectable(3, family):.4f})" in rows[name]


def test_earlier_results_give_deviations_and_hours(
    planned: Path, compared_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compared_project / "runs", planned / "runs")
    shutil.copytree(compared_project / "evaluations", planned / "evaluations")
    suite = (planned / "suite.yaml").read_text(encoding="utf-8").replace("  mood:\n", "  sentiment:\n")
    (planned / "suite.yaml").write_text(suite, encoding="utf-8")
    for folder in (planned / "runs" / "tiny").iterdir():
        (folder / "exports" / "final" / "config.json").write_text("{}", encoding="utf-8")
    assert main(["sweep", "sweep.yaml", "--plan"]) == 0
    printed = capsys.readouterr().out
    rows = [row for row in read_rows(planned / "evaluations" / "quick") if row.kind == "finetune"]
    spreads = []
    for method in ("attention_mse", "hidden_mse", "minilm_v2"):
        means = [
            statistics.fmean(
                row.value
                for row in rows
                if (row.model, row.learning_rate, row.split) == (f"{method}-{seed}", 1e-4, "test") and row.share == 1
            )
            for seed in (43, 44, 45)
        ]
        spreads.append(statistics.variance(means))
    assert f"{math.sqrt(statistics.fmean(spreads)):.4f} (earlier results)" in printed
    assert re.search(r"12 in all; about 0\.0 hours, one at a time", printed)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_deviation_is_a_positive_number(planned: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert main(["sweep", "sweep.yaml", "--plan", f"--deviation={value}"]) == 2
    assert "--deviation: must be a positive number" in capsys.readouterr().err
