"""Losses that couple a batch: fixed micro-batches without gradient caching, independent of the split with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kdcore
from kdcore.training.checkpoint.format import checkpoint_folder
from kdcore.training.engine.engine import float32_weights_of

COUPLED = [
    "losses.contrastive={samples: 200, negatives: 20, embedding_size: 16}",
    "losses.attention_pearson={layers: last, weight: 0.5}",
]
COMMON = ["training.budget.steps=4", "checkpoints.every=4", "validation={every: 4, batch_size: 4}"]
CACHED = "training.gradient_caching=true"


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., Path]:
    """Train the small recipe with coupled losses beside `hidden_mse`: `train(id, processes, *overrides)`."""

    def run(name: str, processes: int, *overrides: str) -> Path:
        arguments = [*COUPLED, *COMMON, f"run.id={name}", *overrides]
        if processes == 1:
            return kdcore.train(small_recipe, arguments).folder
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *arguments]
        done = subprocess.run([*command, "--processes", str(processes)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return small_recipe.parent / "runs" / "small" / name

    return run


def rows_of(run: Path, kind: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if f"{kind}/loss" in row]
    return [{name: row[name] for name in row if "/" in name and "per_second" not in name} for row in chosen]


def weights_of(run: Path, stage: int = 0) -> dict[str, torch.Tensor]:
    """All weights and buffers after the last step: of the student, and the losses' own."""
    return float32_weights_of(checkpoint_folder(run, 4), stage)


def assert_equal_runs(one: Path, other: Path, rtol: float, atol: float) -> None:
    for kind in ("train", "held_out"):
        found, expected = (rows_of(run, kind) for run in (one, other))
        assert len(found) == len(expected) > 1
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=rtol), (kind, name)
    mine, theirs = weights_of(one, 0), weights_of(other, 0)
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        if "key.bias" not in name:  # the gradient of a key's bias is 0 but for rounding
            torch.testing.assert_close(mine[name], weight, rtol=0, atol=atol, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(("processes", "size"), [(1, 8), (1, 4), (1, 2), (2, 4), (2, 2)])
def test_with_caching_every_split_gives_the_run_of_one_micro_batch(
    train: Callable[..., Path], processes: int, size: int
) -> None:
    whole = train("whole", 1)
    split = train("split", processes, CACHED, f"training.micro_batch_size={size}")
    assert_equal_runs(split, whole, rtol=2e-5, atol=2e-6)


def test_without_caching_the_split_changes_the_run(train: Callable[..., Path]) -> None:
    whole, split = train("whole", 1), train("split", 1, "training.micro_batch_size=4")
    for name in ("train/contrastive", "train/attention_pearson/sequences"):
        values = [rows_of(run, "train")[-1][name] for run in (whole, split)]
        assert values[0] != pytest.approx(values[1], rel=1e-3), name
    with pytest.raises(AssertionError):
        assert_equal_runs(split, whole, rtol=2e-5, atol=2e-6)


def test_dropout_is_the_same_in_both_forward_passes(train: Callable[..., Path]) -> None:
    """Over one micro-batch, a run with caching draws the same random numbers as one without."""
    dropout = ["student.config.hidden_dropout_prob=0.2", "student.config.attention_probs_dropout_prob=0.2"]
    whole, cached = train("whole", 1, *dropout), train("cached", 1, *dropout, CACHED)
    assert_equal_runs(cached, whole, rtol=2e-5, atol=2e-6)
    without = train("without", 1)
    assert rows_of(without, "train")[0]["train/loss"] != pytest.approx(
        rows_of(whole, "train")[0]["train/loss"], rel=1e-3
    )
