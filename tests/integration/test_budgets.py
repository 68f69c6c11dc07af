"""Budgets, markers and validations of real runs, with and without restarts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kdcore
from kdcore.commands.main import main
from kdcore.recipe.loading import load_recipe
from kdcore.tasks.base import StoredData
from kdcore.training.run.run import RunResult
from kdcore.training.run.run_folder import check_resumable, store

MARKERS = [round(0.05 * number, 2) for number in range(1, 20)]
SCHEDULE = [
    "training.budget.steps=12",
    f"checkpoints.export_at={MARKERS}",
    "checkpoints.every=5",
    "validation={every: 4, begin: {share: 0.2, every: 1}, end: {share: 0.2, every: 2}}",
]
VALIDATED = [0, 1, 2, 4, 8, 10, 12]


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if name in row]


def steps_of_exports(run: Path) -> dict[str, str]:
    """The step in each export's model card, by the export's name."""
    cards = sorted((run / "exports").glob("budget-*/README.md"))
    lines = {card.parent.name: card.read_text(encoding="utf-8").splitlines() for card in cards}
    return {name: next(line for line in text if line.startswith("| steps")).split()[3] for name, text in lines.items()}


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, list(overrides))

    return run


def test_every_marker_and_validation_comes_once_with_and_without_restarts(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore.training.loop.trainer import Trainer

    whole = train(*SCHEDULE, "run.id=whole").folder
    assert set(steps_of_exports(whole)) == {f"budget-{marker:g}" for marker in MARKERS}
    assert steps_of_exports(whole)["budget-0.5"] == "6"  # 6 of 12 steps
    assert steps_of_exports(whole)["budget-0.55"] == "7"
    assert [row["step"] for row in rows_of(whole, "held_out/loss")] == VALIDATED

    written: list[Path] = []
    from kdcore.training.run import run as module

    export_student = module.export_student
    monkeypatch.setattr(
        module, "export_student", lambda folder, *rest: (written.append(folder), export_student(folder, *rest))
    )
    step_of = Trainer._train_step

    def stopping(trainer: Trainer, *arguments: Any) -> None:
        step_of(trainer, *arguments)
        trainer.context.shutdown.requested = trainer.step + 1 in (1, 4, 9)

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    results = [train(*SCHEDULE, "run.id=restarted") for _ in range(4)]
    assert [result.finished for result in results] == [False, False, False, True]
    restarted = results[-1].folder
    assert len(written) == len(set(written)) == len(MARKERS) + 2, "the initial and the final student, and the markers"
    assert steps_of_exports(restarted) == steps_of_exports(whole)
    for name in ("held_out/loss", "train/loss", "train/lr"):
        assert [(row["step"], row[name]) for row in rows_of(restarted, name)] == [
            (row["step"], row[name]) for row in rows_of(whole, name)
        ]


def test_an_exit_before_the_end_leaves_schedules_as_they_are(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore.training.loop.trainer import Trainer

    monkeypatch.setattr(Trainer, "_clock", lambda trainer: 3600.0 * trainer.step)  # an hour for each step
    whole = train("training.budget={steps: 20}", "run.id=whole").folder
    early = "training.budget={steps: 20, exit_after_hours: 7}", "run.id=exit"
    result = train(*early)
    assert result.finished
    assert result.export is not None
    rates = [row["train/lr"] for row in rows_of(result.folder, "train/lr")]
    assert len(rates) == 7
    assert rates == [row["train/lr"] for row in rows_of(whole, "train/lr")][:7]
    assert train(*early).held_out == {}, "it is over"


def test_a_budget_of_epochs_reads_each_sample_so_often(train: Callable[..., RunResult]) -> None:
    folder = train("training.budget={steps: null, epochs: 0.5}").folder
    from kdcore.training.run.build import make_plan

    plan = make_plan(kdcore.load_recipe(folder / "recipe.yaml"))
    steps = -(-plan.task.num_samples("train") // 16)
    assert [row["step"] for row in rows_of(folder, "train/loss")] == list(range(1, steps + 1))


def test_no_final_export_where_none_is_wanted(train: Callable[..., RunResult]) -> None:
    result = train("checkpoints.export_at_end=false", "checkpoints.export_at=[0.5]")
    assert result.finished
    assert result.export is None
    assert result.exit_code == 0
    assert {path.name for path in (result.folder / "exports").iterdir()} == {"initial", "budget-0.5"}
    assert train("checkpoints.export_at_end=false", "checkpoints.export_at=[0.5]").finished


def test_the_student_before_training_is_exported_unless_disabled(train: Callable[..., RunResult]) -> None:
    run = train("training.budget.steps=2", "run.id=exported").folder
    only = ["training.budget.steps=1", "optimizer.lr=0", "checkpoints.export_at_start=false", "run.id=unchanged"]
    unchanged = train(*only).folder / "exports"
    assert [path.name for path in unchanged.iterdir()] == ["final"]
    folders = (run / "exports" / "initial", unchanged / "final", run / "exports" / "final")
    initial, expected, final = (load_file(folder / "model.safetensors") for folder in folders)
    assert initial.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in initial.items())
    assert not all(torch.equal(tensor, final[name]) for name, tensor in initial.items())


def test_milestones_are_kept_for_good(train: Callable[..., RunResult]) -> None:
    folder = train("checkpoints={every: 1, keep: 2, keep_at: [0.3, 0.5]}").folder
    names = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert names == [f"step-{step:07d}" for step in (2, 3, 5, 6)]


@pytest.mark.parametrize(("minutes", "gives_up"), [(0.0, True), (60.0, False)])
def test_early_stopping_gives_up_after_its_time(
    minutes: float, gives_up: bool, small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = f"early_stopping={{after_minutes: {minutes}, max_loss: 1.0e-6}}"
    code = main(["train", str(small_recipe), "validation.every=2", "checkpoints.every=1", bound])
    assert code == (3 if gives_up else 0)
    error = capsys.readouterr().err
    assert ("early_stopping.max_loss" in error) is gives_up
    if gives_up:
        run = small_recipe.parent / "runs" / "small" / "1"
        assert not (run / "exports").exists()


def test_patience_finishes_a_run_that_does_not_improve_and_survives_interruptions(
    train: Callable[..., RunResult], small_recipe: Path
) -> None:
    """With a learning rate of 0 no validation improves on that of step 0."""
    from kdcore.training.run.run import train_recipe

    still = ["optimizer.lr=0", "validation.every=2", "checkpoints.every=1", "training.budget.steps=40"]
    still.append("early_stopping.patience=2")
    whole = train(*still, "run.id=whole")
    assert whole.finished
    assert whole.export is not None
    assert [row["step"] for row in rows_of(whole.folder, "held_out/loss")] == [0, 2, 4]
    log = (whole.folder / "train.log").read_text(encoding="utf-8")
    best = rows_of(whole.folder, "held_out/loss")[0]["held_out/loss"]
    assert f"step 4: loss has not improved on {best:.5g} for 2 validations (early_stopping.patience)" in log
    assert log.rstrip().endswith("step 4: finished")
    assert train(*still, "run.id=whole").finished
    assert rows_of(whole.folder, "held_out/loss")[-1]["step"] == 4, "a finished run is not continued"

    parts = load_recipe(small_recipe, [*still, "run.id=parts"])
    for steps in (1, 2, 3):  # 1 and 3 validate at their end, which uses up no patience
        train_recipe(parts, exit_steps=steps)
    assert train_recipe(parts).finished
    assert [row["step"] for row in rows_of(parts.run_folder, "held_out/loss")] == [0, 1, 2, 3, 4]
    assert (parts.run_folder / "train.log").read_text(encoding="utf-8").count("has not improved on") == 1

    longer = train(*still[:-1], "early_stopping.patience=4", "run.id=whole")
    assert longer.finished
    assert [row["step"] for row in rows_of(longer.folder, "held_out/loss")] == [0, 2, 4, 6, 8]


def test_the_validation_at_the_end_of_the_budget_counts(train: Callable[..., RunResult]) -> None:
    """Validations at steps 2 and 3: the second is due because the budget is used up."""
    still = ["optimizer.lr=0", "validation.every=2", "training.budget.steps=3", "early_stopping.patience=2"]
    run = train(*still)
    assert "step 3: loss has not improved on" in (run.folder / "train.log").read_text(encoding="utf-8")


def test_patience_waits_while_the_metric_improves(train: Callable[..., RunResult]) -> None:
    run = train("validation.every=1", "early_stopping={patience: 1, metric: hidden_mse}", "training.budget.steps=5")
    values = [row["held_out/hidden_mse"] for row in rows_of(run.folder, "held_out/loss")]
    assert values == sorted(values, reverse=True)
    assert len(values) == 6
    scheduled = ["losses.hidden_mse.weight=[[0.0, 0.1], [1.0, 1.0]]", "run.id=scheduled"]
    stopping = "early_stopping={patience: 1, metric: hidden_mse}"
    assert train("validation.every=1", stopping, "training.budget.steps=5", *scheduled).finished
    rises = train("validation.every=1", "early_stopping={patience: 1, mode: max}", "run.id=max")
    assert [row["step"] for row in rows_of(rises.folder, "held_out/loss")] == [0, 1]


def test_without_validation_there_are_no_held_out_rows(train: Callable[..., RunResult]) -> None:
    result = train("validation.every=never")
    assert result.held_out == {}
    assert result.export is not None
    assert not rows_of(result.folder, "held_out/loss")


def test_validation_without_held_out_text_is_refused(small_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(small_recipe), "task.data.held_out=0"]) == 2
    error = capsys.readouterr().err
    assert "small.yaml:19: validation: validation is enabled, but `task.data` has no held-out samples" in error
    assert "validation.every: never" in error
    assert not (small_recipe.parent / "runs").exists()


CLOCKS_APART = """
import os, time
if os.environ.get("RANK") == "1":
    real = time.monotonic
    time.monotonic = lambda: real() + 300.0 + (real() - START) * 3
    START = real()
"""


@pytest.mark.processes
def test_processes_whose_clocks_differ_by_minutes_stop_at_the_same_step(small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCKS_APART, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    budget = ["training.budget={steps: 100000, hours: 0.0006}", "validation.every={minutes: 0.01}"]
    budget += ["checkpoints.export_at=[0.3, 0.6]", "scheduler={name: linear, over: time}"]
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *budget, "--processes", "2"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small" / "1"
    assert {path.name for path in (run / "exports").iterdir()} == {"initial", "budget-0.3", "budget-0.6", "final"}
    assert rows_of(run, "train/loss")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ("{steps: 6}", "{steps: 6, exit_after_hours: 1}", None),
        ("{epochs: 1}", "{epochs: 2}", None),
        (
            "{epochs: 1}",
            "{epochs: 0.5}",
            "training.budget.epochs: the budget of a run may only grow (found 0.5, was 1.0)",
        ),
        ("{steps: 6}", "{steps: 5}", "training.budget.steps: the budget of a run may only grow (found 5, was 6)"),
        (
            "{steps: 6}",
            "{steps: 6, hours: 1}",
            "training.budget.hours: the budget of a run may only grow (found 1.0, was None)",
        ),
    ],
)
def test_the_budget_of_a_started_run_may_only_grow(
    small_recipe: Path, tmp_path: Path, before: str, now: str, message: str | None
) -> None:
    no_steps = "training.budget.steps=null"
    first, second = (
        kdcore.load_recipe(small_recipe, [no_steps, f"training.budget={budget}"]) for budget in (before, now)
    )
    store(tmp_path / "run", first, StoredData("data"), {})
    if message is None:
        check_resumable(tmp_path / "run", second, "data")
        return
    with pytest.raises(kdcore.RecipeError) as caught:
        check_resumable(tmp_path / "run", second, "data")
    assert message in str(caught.value)
