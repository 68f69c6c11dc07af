"""Losses that are active for a part of the budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcore
from kdcore.losses.base import LossConfig
from kdcore.losses.masked_lm import MaskedLMLoss
from kdcore.training.run.run import RunResult

TWO_STAGES = ["losses.masked_lm={active: [0.0, 0.5]}", "losses.hidden_mse.active=[0.5, 1.0]"]


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, list(overrides))

    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "train/loss" in row]


def config(**keys: Any) -> LossConfig:
    return LossConfig(name="hidden_mse", label="hidden_mse", **keys)


def test_a_loss_is_active_from_its_first_fraction_up_to_its_last() -> None:
    half = config(weight=2.0, active=(0.25, 0.5))
    assert [half.weight_at(fraction) for fraction in (0.0, 0.25, 0.4999, 0.5, 1.0)] == [0, 2, 2, 0, 0]
    assert config(active=(0.5, 1.0)).weight_at(1.0) == 1.0, "the validation after the last step"


def test_a_weight_moves_linearly_between_its_points() -> None:
    moving = config(weight=[(0.2, 1.0), (0.6, 3.0)])
    np.testing.assert_allclose([moving.weight_at(f) for f in (0.0, 0.2, 0.3, 0.6, 0.9)], [1, 1, 1.5, 3, 3])


@pytest.mark.parametrize("keys", [{"active": (0.5, 0.5)}, {"active": (0.0, 1.5)}, {"weight": [(0.5, 1.0), (0.2, 1.0)]}])
def test_schedules_that_make_no_sense_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"active|strictly increasing|less than or equal"):
        config(**keys)


def test_each_step_has_the_losses_of_its_stage(train: Callable[..., RunResult]) -> None:
    rows = rows_of(train(*TWO_STAGES).folder)
    for row in rows:
        names = {name for name in row if name in ("train/masked_lm", "train/hidden_mse")}
        assert names == {"train/masked_lm" if row["step"] <= 3 else "train/hidden_mse"}
        assert row["train/loss"] == pytest.approx(row[names.pop()])


def test_a_row_over_both_stages_averages_each_term_over_all_that_it_counts(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore.training.loop.trainer import Trainer

    counted = []
    original = Trainer._agree

    def recorded(trainer: Trainer, *arguments: Any) -> Any:
        answer = original(trainer, *arguments)
        counted.append({str(term): count for term, count in answer[0].items()})
        return answer

    monkeypatch.setattr(Trainer, "_agree", recorded)
    single = rows_of(train(*TWO_STAGES, "run.id=single").folder)
    steps = counted[: len(single)]
    (row,) = rows_of(train(*TWO_STAGES, "run.id=both", "logging.every=6").folder)
    averages = {}
    for name, part in (("masked_lm", slice(3)), ("hidden_mse", slice(3, None))):
        weights = [counts[name] for counts in steps[part]]
        averages[name] = np.average([one[f"train/{name}"] for one in single[part]], weights=weights)
        assert row[f"train/{name}"] == pytest.approx(averages[name])
    assert len({counts["masked_lm"] for counts in steps[:3]}) > 1, "equal counts would not show a difference"
    assert row["train/loss"] == pytest.approx(np.mean(list(averages.values())))


def test_the_weight_of_the_moment_is_what_trains(train: Callable[..., RunResult]) -> None:
    rows = rows_of(train("losses.hidden_mse.weight=[[0.0, 1.0], [1.0, 3.0]]", "optimizer.lr=0.0").folder)
    for row in rows:
        weight = 1 + 2 * (row["step"] - 1) / 6
        assert row["train/loss"] == pytest.approx(weight * row["train/hidden_mse"])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_what_no_active_loss_reaches_stays_bit_for_bit_and_moves_later(
    train: Callable[..., RunResult], stage: int
) -> None:
    """The head is reached by masked_lm alone; AdamW's momentum and decay would carry it on after half-way."""
    from kdcore.training.checkpoint.format import checkpoint_folder
    from kdcore.training.engine.engine import float32_student_of

    common = ["checkpoints={every: 1, keep: 10}", "optimizer.weight_decay=0.5", f"training.zero_stage={stage}"]
    first = train(*TWO_STAGES, *common, "run.id=first").folder
    heads = [head_of(float32_student_of(checkpoint_folder(first, step), stage)) for step in (1, 3, 4, 6)]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])
    assert torch.equal(heads[1], heads[3])
    reversed_ = ["losses.masked_lm={active: [0.5, 1.0]}", "losses.hidden_mse.active=[0.0, 0.5]"]
    second = train(*reversed_, *common, "run.id=second").folder
    heads = [head_of(float32_student_of(checkpoint_folder(second, step), stage)) for step in (1, 3, 4)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])


def head_of(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    (head,) = [tensor for name, tensor in weights.items() if name.endswith("cls.predictions.transform.dense.weight")]
    return head


def test_the_teacher_runs_only_while_a_loss_reads_it(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcore.training.engine.teachers import FrozenTeachers

    asked = []
    original = FrozenTeachers.__call__

    def recorded(self: FrozenTeachers, batch: kdcore.Batch, requests: dict[str, kdcore.SignalRequest]) -> Any:
        answers = original(self, batch, requests)
        asked.append(bool(answers))
        return answers

    monkeypatch.setattr(FrozenTeachers, "__call__", recorded)
    train(*TWO_STAGES, "task.data.held_out=0", "validation.every=never")
    assert asked[-6:] == [False] * 3 + [True] * 3


def test_a_part_of_the_budget_without_any_loss_is_refused(train: Callable[..., RunResult], tmp_path: Path) -> None:
    with pytest.raises(kdcore.RecipeError, match=r"no loss is active between the fractions 0\.25 and 0\.5"):
        train("losses.masked_lm={active: [0.0, 0.25]}", "losses.hidden_mse.active=[0.5, 1.0]")
    assert not (tmp_path / "runs").exists()


def test_a_loss_of_weight_zero_is_never_computed(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(MaskedLMLoss, "forward", must_not_run)
    rows = rows_of(train("losses.masked_lm={weight: 0.0}").folder)
    assert "train/masked_lm" not in rows[0]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_late_losss_first_update_is_as_long_as_any_optimizers_first(
    train: Callable[..., RunResult], stage: int
) -> None:
    """Adam's first update is lr * g / |g|. With a step count that ran on meanwhile it would be another length."""
    from kdcore.training.checkpoint.format import checkpoint_folder
    from kdcore.training.engine.engine import float32_student_of

    late = ["losses.masked_lm={active: [0.5, 1.0]}", "losses.hidden_mse.active=[0.0, 0.5]"]
    common = ["checkpoints={every: 1, keep: 30}", "optimizer={weight_decay: 0.0, eps: 1e-12}", "scheduler.warmup=0.0"]
    folder = train(*late, *common, f"training.zero_stage={stage}", "training.budget.steps=20").folder
    before, after = (head_of(float32_student_of(checkpoint_folder(folder, step), stage)) for step in (10, 11))
    (lr,) = [row["train/lr"] for row in rows_of(folder) if row["step"] == 11]
    assert (after - before).abs().median().item() == pytest.approx(lr, rel=1e-2)
