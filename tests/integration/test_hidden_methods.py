"""Objectives on hidden states, predictions and attention trained through the real engine, and what they remember."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcore
from kdcore.training.checkpoint.format import checkpoint_folder
from kdcore.training.engine.tensors import read_tensors
from kdcore.training.run.run import RunResult

# More places than the data has samples, so that a test need not know how many sequences the texts make.
CONTRASTIVE = "losses.contrastive={samples: 200, negatives: 20, embedding_size: 16}"


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, ["losses.hidden_mse=null", *overrides])

    return run


def values_of(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if name in row]


def loss_state(run: Path, step: int) -> dict[str, Any]:
    """What a checkpoint keeps of the losses, with the optimizer's float32 weights where there are some."""
    folder = checkpoint_folder(run, step) / "engine"
    state = read_tensors(folder / "mp_rank_00_model_states.pt")["module"]
    found = {name: tensor for name, tensor in state.items() if name.startswith("losses.")}
    for file in sorted(folder.glob("*optim_states.pt")):
        found[file.name] = read_tensors(file)["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    return found


@pytest.mark.parametrize(
    "loss",
    [
        "hidden_mse_cls={layers: uniform}",
        "hidden_mse_concat={}",
        "hidden_cosine={layers: uniform}",
        "hidden_pkd={}",
        "soft_targets={temperature: 2.0}",
        "soft_targets={positions: all}",
        "attention_pearson={}",
    ],
)
def test_a_few_steps_bring_the_held_out_loss_down(train: Callable[..., RunResult], loss: str) -> None:
    folder = train(f"losses.{loss}", "training.budget.steps=20", "optimizer.lr=3e-3").folder
    held_out = values_of(folder, "held_out/loss")
    assert held_out[-1] < 0.95 * held_out[0]


def test_contrastive_tells_samples_apart_that_it_could_not(train: Callable[..., RunResult]) -> None:
    """Against a run that learns nothing, for the loss grows while the memory turns from noise into embeddings."""
    common = [CONTRASTIVE, "training.budget.steps=60", "training.micro_batch_size=8"]
    untrained = values_of(train(*common, "run.id=untrained", "optimizer.lr=0.0").folder, "held_out/loss")
    trained = values_of(train(*common, "run.id=trained", "optimizer.lr=3e-3").folder, "held_out/loss")
    assert trained[-1] < 0.6 * untrained[-1]


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1)])
def test_memory_and_learned_map_are_resumed_exactly(
    train: Callable[..., RunResult], precision: str, stage: int
) -> None:
    common = [
        CONTRASTIVE,
        "losses.hidden_mse_concat={}",
        "checkpoints.every=3",
        "training.micro_batch_size=4",
        f"training.precision={precision}",
        f"training.zero_stage={stage}",
    ]
    whole = train(*common, "run.id=whole").folder
    train(*common, "run.id=stopped")
    stopped = whole.with_name("stopped")
    (stopped / "checkpoints" / "latest").write_text("step-0000003", encoding="utf-8")
    for file in sorted((stopped / "exports").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    torch.manual_seed(12345)
    train(*common, "run.id=stopped")
    assert "continued from step-0000003" in (stopped / "train.log").read_text(encoding="utf-8")
    assert values_of(stopped, "train/loss") == values_of(whole, "train/loss")
    early, end, resumed = loss_state(whole, 3), loss_state(whole, 6), loss_state(stopped, 6)
    assert end.keys() == resumed.keys()
    for name in ("losses.contrastive.memory.embeddings", "losses.hidden_mse_concat.weight"):
        assert not torch.equal(early[name], end[name]), f"{name} moves"
    torch.testing.assert_close(resumed, end, rtol=0, atol=0)
    assert end["losses.contrastive.memory.draws"] == 12, "six steps of two micro-batches, and no other pass"
    assert end["losses.contrastive.memory.embeddings"].dtype == torch.float32


@pytest.mark.processes
def test_two_processes_share_one_memory(train: Callable[..., RunResult], small_recipe: Path) -> None:
    """Each sees half of every micro-batch of the one process, and has the same losses from the same memory."""
    common = ["losses.hidden_mse=null", CONTRASTIVE, "validation.every=3", "checkpoints.every=3"]
    one = kdcore.train(small_recipe, [*common, "run.id=one"]).folder
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *common, "run.id=two"]
    done = subprocess.run([*command, "--processes", "2"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    two = one.with_name("two")
    np.testing.assert_allclose(values_of(two, "train/loss"), values_of(one, "train/loss"), rtol=1e-5)
    # The first validation has no Z yet and takes that of each of its batches, which are cut differently.
    np.testing.assert_allclose(values_of(two, "held_out/loss")[1:], values_of(one, "held_out/loss")[1:], rtol=1e-5)
    states = [loss_state(run, 6)["losses.contrastive.memory.embeddings"] for run in (one, two)]
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)


def test_what_losses_learn_and_remember_is_not_exported(train: Callable[..., RunResult]) -> None:
    from safetensors import safe_open

    export = train(CONTRASTIVE, "losses.hidden_mse_concat={}", "training.budget.steps=1").export
    assert export is not None
    with safe_open(export / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "loss" in name or "memory" in name or "embed_" in name]  # noqa: SIM118


def test_a_memory_that_is_too_small_is_told_with_the_line(small_recipe: Path, tmp_path: Path) -> None:
    text = small_recipe.read_text(encoding="utf-8")
    text = text.replace("losses:\n", "losses:\n  contrastive: {samples: 4}\n")
    small_recipe.write_text(text, encoding="utf-8")
    line = text.splitlines().index("  contrastive: {samples: 4}") + 1
    with pytest.raises(kdcore.InputError, match="the memory of `contrastive` has 4 rows") as caught:
        kdcore.train(small_recipe)
    assert f"small.yaml:{line}: losses.contrastive.samples" in str(caught.value)
    assert not (tmp_path / "runs").exists()
