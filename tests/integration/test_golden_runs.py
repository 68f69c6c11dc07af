"""Runs that earlier versions stored are resumed and exported, and end as they did there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import torch

import kdcore
from kdcore.commands.main import main
from kdcore.recipe.loading import load_recipe
from kdcore.training.checkpoint import format as checkpoint_files
from kdcore.training.checkpoint.process_state import read_process_state
from kdcore.training.engine import tensors as tensor_files
from kdcore.training.run.run import train_recipe

ELSEWHERE = 1e-4  # relative tolerance on another processor than the one that wrote the runs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))


def train(run: Path, processes: int, *overrides: str) -> str:
    """Resume a run in a separate process, or several; return the output."""
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(run / "recipe.yaml"), *overrides]
    command += ["--processes", str(processes)]
    environment = {**os.environ, "KDCORE_CACHE": str(run.parents[1] / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


EVERY_STEP = "logging.every=1"


def check_end(run: Path, name: str, tolerance: float) -> None:
    """Compare metrics and exported weights with those of the undisturbed run; exactly if the tolerance is 0.

    The run was resumed with a row for every step. The undisturbed one has rows of three steps, which are averages of
    the steps: those before the checkpoint are in its open window.
    """
    rows: dict[int, dict[str, float]] = {}
    for row in golden.metrics_of(run):
        rows.setdefault(int(row["step"]), {}).update(row)
    checkpoint = run / "checkpoints" / golden.STEP
    world = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["world_size"]
    windows = [read_process_state(checkpoint, rank, 1)["own"] for rank in range(world)]
    for other in golden.metrics_of(golden.STORED / "expected" / name):
        step = int(other["step"])
        for key, value in other.items():
            found, allowed = rows[step][key], tolerance
            if step > 4 and (key == "train/loss" or key.removeprefix("train/") in windows[0]["terms"]):
                term = key.removeprefix("train/")
                before = sum(float(w["objective"] if term == "loss" else w["terms"][term]) for w in windows)
                steps = windows[0]["steps"] if term == "loss" else windows[0]["term_steps"][term]
                after = [rows[number][key] for number in range(5, step + 1)]
                found, allowed = (before + sum(after)) / (steps + len(after)), max(tolerance, 1e-6)
            np.testing.assert_allclose(found, value, rtol=allowed, err_msg=f"{key} of step {step}")
    check_weights(run, name, tolerance)


def check_weights(run: Path, name: str, tolerance: float) -> None:
    """Compare the exported weights with those of the undisturbed run."""
    expected = golden.STORED / "expected" / name
    weights = golden.tensors_of(run / "exports" / "final" / "model.safetensors")
    stored = golden.tensors_of(expected / "model.safetensors")
    assert weights.keys() == stored.keys()
    for key, tensor in stored.items():
        if ".pooler." in key and name.startswith("bf16"):  # not trained, and rounded to bf16 by earlier versions
            rounded = torch.from_numpy(weights[key]).bfloat16().float().numpy()
            np.testing.assert_array_equal(rounded, tensor, err_msg=key)
            continue
        # A key's bias has no gradient but rounding, which Adam makes as large as any.
        if tolerance == 0 or not key.endswith("key.bias"):
            np.testing.assert_allclose(weights[key], tensor, rtol=tolerance, atol=tolerance / 10, err_msg=key)


@pytest.mark.parametrize("name", golden.ONE_PROCESS)
def test_a_stored_run_ends_like_the_undisturbed_one(name, tmp_path, cache):
    run = golden.copy_golden(name, tmp_path)
    kdcore.train(run / "recipe.yaml", [EVERY_STEP])
    assert "continued from step-0000004" in (run / "train.log").read_text(encoding="utf-8")
    check_end(run, name, 0 if golden.is_the_writing_processor() else ELSEWHERE)


@pytest.mark.processes
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.sample if "bf16" in name else ()) for name in golden.TWO_PROCESSES],
)
def test_a_stored_run_of_two_processes_ends_like_the_undisturbed_one(name, tmp_path):
    run = golden.copy_golden(name, tmp_path)
    assert "continued from step-0000004" in train(run, 2, EVERY_STEP)
    check_end(run, name, 0 if golden.is_the_writing_processor() else ELSEWHERE)


@pytest.mark.parametrize("name", golden.TWO_PROCESSES)
def test_a_stored_run_of_two_processes_is_resumed_by_one(name, tmp_path, cache):
    """From step 4 on dropout is drawn otherwise, so that only the row of step 3 and 4 is the same."""
    run = golden.copy_golden(name, tmp_path)
    kdcore.train(run / "recipe.yaml")
    assert "was written by 2 processes" in (run / "train.log").read_text(encoding="utf-8")
    rows, undisturbed = golden.metrics_of(run), golden.metrics_of(golden.STORED / "expected" / name)
    assert rows[:3] == undisturbed[:3]
    assert [row["step"] for row in rows] == [row["step"] for row in undisturbed]
    for row, other in zip(rows[3:], undisturbed[3:], strict=True):
        for key in ("train/loss", "held_out/loss"):
            if key in other:
                assert row[key] == pytest.approx(other[key], rel=0.05)


def masters(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The student's weights in float32, computed from the stored files: the parts joined, and cut by the shapes."""
    engine = checkpoint / "engine"
    state = tensor_files.read_tensors(engine / "mp_rank_00_model_states.pt")
    weights = dict(state["module"])
    parts = sorted(engine.glob("*_optim_states.pt"))
    loaded = [tensor_files.read_tensors(part)["optimizer_state_dict"] for part in parts]
    for group, shapes in enumerate(state["param_shapes"]) if loaded else ():
        flat = torch.cat([part["single_partition_of_fp32_groups"][group] for part in loaded])
        for name, shape in shapes.items():
            weights[name], flat = flat[: shape.numel()].reshape(shape), flat[shape.numel() :]
        assert not flat.numel()
    for name, other in (state.get("shared_params") or {}).items():
        weights[name] = weights[other]
    names = {name: name.removeprefix("student.").removeprefix("network.") for name in weights}
    return {names[name].replace("pooler", "bert.pooler"): tensor.detach().float() for name, tensor in weights.items()}


@pytest.mark.parametrize("name", [*golden.ONE_PROCESS, *golden.TWO_PROCESSES])
def test_an_export_holds_the_stored_float32_weights(name, tmp_path, cache):
    run = golden.copy_golden(name, tmp_path)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    expected = masters(run / "checkpoints" / golden.STEP)
    exported = golden.tensors_of(tmp_path / "out" / "model.safetensors")
    assert len(exported) > 30
    for key, tensor in exported.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, expected[key].numpy(), err_msg=key)


def test_a_risen_format_number_breaks_nothing(tmp_path, cache, monkeypatch):
    run = golden.copy_golden("fp32-zero0", tmp_path)
    train_recipe(load_recipe(run / "recipe.yaml"), exit_steps=6)
    folder = run / "checkpoints"
    numbers = [json.loads((path / "manifest.json").read_text(encoding="utf-8"))["format"] for path in folder.glob("s*")]
    assert sorted(numbers) == [1, 2]
    monkeypatch.setattr(checkpoint_files, "_FORMAT", 3)
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert checkpoint_files.latest_checkpoint(run) == folder / "step-0000006"
    kdcore.train(run / "recipe.yaml")
    check_weights(run, "fp32-zero0", 0 if golden.is_the_writing_processor() else ELSEWHERE)
    third = json.loads((folder / "step-0000008" / "manifest.json").read_text(encoding="utf-8"))
    assert third["format"] == 3


def test_a_moved_class_breaks_nothing(tmp_path, cache, monkeypatch):
    """Format 1 names the class of a term by its module, which may go."""
    from kdcore.training.checkpoint.process_state import read_process_state
    from kdcore.training.engine import module

    monkeypatch.delattr(module, "Term")
    run = golden.copy_golden("fp32-zero0", tmp_path)
    own = read_process_state(run / "checkpoints" / golden.STEP, 0, 1)["own"]
    assert list(own["terms"]) == ["hidden_mse", "masked_lm"]
    assert own["term_steps"] == {"hidden_mse": 1, "masked_lm": 1}


def test_an_opened_run_takes_the_tokenizer_from_an_export_or_the_prepared_data(tmp_path, cache):
    run = golden.copy_golden("fp32-zero0", tmp_path)
    opened = kdcore.open_run(run)
    assert not (run / "tokenizer").exists()
    assert not opened.exports()
    stored = json.loads(next((run.parents[1] / "cache").glob("*/tokenizer/tokenizer.json")).read_text(encoding="utf-8"))
    assert opened.tokenizer().get_vocab() == stored["model"]["vocab"]
    exported = opened.export(run / "exports" / "final")
    other = json.loads((exported / "tokenizer.json").read_text(encoding="utf-8"))
    shutil.rmtree(run.parents[1] / "cache")
    assert opened.tokenizer().get_vocab() == other["model"]["vocab"]
