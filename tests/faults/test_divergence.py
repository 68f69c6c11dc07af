"""Failed training names the step and the samples, and keeps the last good checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kdcore
from kdcore.training.engine import engine
from kdcore.training.loop.sampling import SampleOrder
from kdcore.training.run import run
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import RunResult

RUN = Path("runs", "small", "1")


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def train_here(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, list(overrides))

    return train_here


def fails(train: Callable[..., RunResult], *overrides: str) -> str:
    with pytest.raises(kdcore.TrainingError) as caught:
        train(*overrides)
    assert caught.value.exit_code == 3
    return str(caught.value)


def checkpoints(folder: Path) -> dict[str, str]:
    """A digest of each checkpoint's files."""
    digests = {}
    for checkpoint in sorted((folder / RUN / "checkpoints").glob("step-*")):
        content = hashlib.sha256()
        for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            content.update(file.relative_to(checkpoint).as_posix().encode() + file.read_bytes())
        digests[checkpoint.name] = content.hexdigest()
    return digests


def losses_of(result: RunResult) -> list[float]:
    rows = map(json.loads, (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def samples_of_step(recipe: Path, overrides: list[str], step: int) -> np.ndarray:
    """The samples of a 1-based step, in order."""
    task = make_plan(kdcore.load_recipe(recipe, overrides)).task
    samples, _ = SampleOrder(task.num_samples("train"), 3).take(8 * (step - 1), 8)
    return samples


def test_a_loss_that_is_not_a_number_is_named_with_step_term_and_samples(train, eventful, small_recipe, tmp_path):
    """It happens in the middle of a window of ten steps, and before the checkpoint that is due after it."""
    overrides = eventful("nan", step=6, micro_batches=2)
    often = ["training.micro_batch_size=4", "logging.every=10", "checkpoints.every=4"]
    message = fails(train, *overrides, *often)
    listed = ", ".join(map(str, samples_of_step(small_recipe, overrides, 6)[:4]))
    assert "at step 8 these values are not finite: loss; first seen in step 6 in eventful, among the samples" in message
    assert f"among the samples {listed}. " in message
    assert f"`kdcore debug batch {RUN} 6`" in message
    good = checkpoints(tmp_path)
    assert list(good) == ["step-0000004"]
    assert "first seen in step 5 in eventful" in fails(train, *eventful("nan", step=1), *often)
    assert checkpoints(tmp_path) == good
    assert [path.name for path in (tmp_path / RUN / "exports").iterdir()] == ["initial"]


def test_with_two_processes_the_one_whose_loss_is_not_a_number_is_named_once(start, eventful, small_recipe, tmp_path):
    overrides = eventful("nan", step=3, rank=1, micro_batches=2)
    running = start(*overrides, "training.micro_batch_size=2", "logging.every=4", processes=2)
    assert running.wait() == 3, running.text
    (error,) = running.errors
    listed = ", ".join(map(str, samples_of_step(small_recipe, overrides, 3)[2:4]))  # process 1 has the second pair
    assert f"first seen in step 3 in eventful on process 1, among the samples {listed}. " in error
    assert [path.name for path in (tmp_path / RUN / "exports").iterdir()] == ["initial"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        # Plain float32: the weights are ruined, and that is found before they are saved.
        (
            ["training.zero_stage=0"],
            "at step 4 these values are not finite: the weights; first seen in step 4 in the gradients",
        ),
        # Where DeepSpeed looks at gradients it would skip such a step without a word.
        (["training.zero_stage=1"], "at step 4 the gradients are not finite, but all losses are"),
        (["training.precision=bf16"], "at step 4 the gradients are not finite, but all losses are"),
    ],
    ids=["fp32", "fp32-zero1", "bf16"],
)
def test_gradients_that_are_not_numbers_are_found_before_the_next_checkpoint(train, eventful, tmp_path, changes, found):
    message = fails(train, *eventful("nan gradient", step=4), *changes, "logging.every=3", "checkpoints.every=2")
    assert found in message
    assert f"`kdcore debug batch {RUN} 4`" in message
    assert list(checkpoints(tmp_path)) == ["step-0000002"]


def test_a_loss_of_inf_lowers_the_scale_to_its_floor_and_then_fails(train, eventful, half_precision, tmp_path, capsys):
    """2^4 may be halved four times: the overflows are in steps 5 to 8, and the one in step 9 cannot be helped."""
    scale = "training.deepspeed={fp16: {initial_scale_power: 4, hysteresis: 1, loss_scale_window: 1000}}"
    message = fails(train, *eventful("inf", step=5), "training.precision=fp16", scale, "checkpoints.every=2")
    assert "at step 9 the loss scale is at its minimum (1) and gradients still overflow" in message
    assert "first seen in step 9 in eventful, among the samples" in message
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert [line.partition(";")[0] for line in warnings] == [
        f"warning: step {step} was skipped: its gradients overflowed" for step in (5, 6, 7, 8)
    ]
    rows = [json.loads(line) for line in (tmp_path / RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["train/loss_scale"] for row in rows if "train/loss_scale" in row] == [16, 16, 16, 16, 8, 4, 2, 1]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4], "skipped steps are in no average"
    # The weights of the checkpoints that were written meanwhile are those of the last step that was not skipped.
    assert list(checkpoints(tmp_path)) == ["step-0000006", "step-0000008"]
    assert [path.name for path in (tmp_path / RUN / "exports").iterdir()] == ["initial"]


def test_a_loss_scale_that_sits_at_its_floor_ends_the_run(train, half_precision):
    message = fails(
        train,
        "training.precision=fp16",
        "training.deepspeed={fp16: {initial_scale_power: 0}}",
        "early_stopping.max_steps_at_min_loss_scale=4",
    )
    assert "at step 4 the loss scale has been at its minimum for 4 steps" in message
    assert "early_stopping.max_steps_at_min_loss_scale" in message


def curves(train: Callable[..., RunResult], *half: str) -> tuple[list[float], list[float]]:
    common = ["training.budget.steps=20", "training.micro_batch_size=4", "optimizer.lr=3e-3"]
    exact = losses_of(train(*common, "run.id=fp32"))
    scale = "training.deepspeed={fp16: {initial_scale_power: 10}}"
    return exact, losses_of(train(*common, "run.id=fp16", "training.precision=fp16", scale, *half))


def test_canary_fp16_trains_like_fp32(train, half_precision):
    exact, half = curves(train)
    assert exact[-1] < 0.3 * exact[0]
    np.testing.assert_allclose(half, exact, rtol=0.02)


def test_canary_fp16_at_stage_0_is_still_broken_in_deepspeed(train, half_precision, monkeypatch):
    """If this fails, DeepSpeed has been repaired, and `check_precision` need not refuse it any longer."""
    monkeypatch.setattr(run, "check_precision", lambda settings: None)
    monkeypatch.setattr(engine.Engine, "loss_scale", None)  # it lies elsewhere there
    exact, half = curves(train, "training.zero_stage=0")
    assert not np.allclose(half, exact, rtol=0.1)
