"""Training on the device: losses, waits, resuming."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from material import distance, rows_of, write_material
from recording import Setting

import kdcore
from kdcore.errors import RecipeError
from kdcore.recipe.loading import load_recipe
from kdcore.training.loop.trainer import Trainer
from kdcore.training.run.run import train_recipe

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 3e-2}
"""Relative, of losses averaged over 10 steps."""
REFERENCE = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}
"""The precision on a CPU, which has no fp16. In bf16 a weight changes only after several steps of a small rate."""
STEPS = 20
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def train_on_cpu(recipe: Path, *arguments: str) -> None:
    """Train in another process, which sees no GPU."""
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(recipe), *arguments]
    done = subprocess.run(command, env=os.environ | NO_GPU, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training on the CPU failed: {done.stderr[-400:]}")


@contextmanager
def waits_between_rows(device: str, *, allowed: bool) -> Iterator[list[str]]:
    """Observe waits for the device from the first row of metrics on; the rows themselves may wait.

    Args:
        device: on a CPU nothing waits.
        allowed: collect the waits, instead of raising an error at the first one.

    Yields:
        The collected messages.
    """
    original = Trainer._after_step
    mode = "warn" if allowed else "error"

    def set_mode(value: str) -> None:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(value)

    def after_step(trainer: Any, progress: Any) -> Iterator[Any]:
        row = trainer.step % trainer.settings.logging.every == 0
        if row:
            set_mode("default")
        yield from original(trainer, progress)
        if row and not progress.finished:
            set_mode(mode)

    found: list[str] = []
    Trainer._after_step = after_step  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
            found += [str(one.message) for one in caught if "synchroniz" in str(one.message)]
    finally:
        Trainer._after_step = original  # type: ignore[method-assign]
        set_mode("default")


def check_training(setting: Setting) -> None:
    """Train 20 steps with each precision and ZeRO stage; compare with runs on a CPU, and forbid waits.

    At ZeRO stages 1 and 2 one wait in each step is allowed, for the norm of the gradients; in fp16 any number.
    """
    findings, recipe = setting.findings, write_material(setting)
    overrides = ["checkpoints.export_at_end=false"]
    runs: dict[str, tuple[str, Path]] = {}
    results: dict[str, Any] = {}
    stages = [("fp32", 1)] if setting.small else [(kind, stage) for kind in TOLERANCE for stage in (0, 1, 2)]
    with ThreadPoolExecutor() as pool:
        kdcore.train(recipe, [*overrides, "run.id=prepare", "training.budget.steps=1"])
        references = [
            pool.submit(train_on_cpu, recipe, *overrides, f"run.id=cpu-{kind}", f"training.precision={kind}", *stage)
            for kind, *stage in (("fp32",), ("bf16", "training.zero_stage=1"))[: 1 if setting.small else 2]
        ]
        for precision, stage in stages:
            name = f"{precision}-{stage}"
            settings = [f"run.id={name}", f"training.precision={precision}", f"training.zero_stage={stage}"]
            if precision == "fp16":  # a small scale, so that no step is skipped
                settings.append("training.deepspeed.fp16.initial_scale_power=8")
            try:
                with waits_between_rows(setting.device, allowed=stage > 0 or precision == "fp16") as waits:
                    runs[name] = (precision, kdcore.train(recipe, [*overrides, *settings]).folder)
                results[name] = {"waits": len(waits)}
                if precision != "fp16":
                    findings.expect(len(waits) <= STEPS, f"{name}: {len(waits)} waits in {STEPS} steps: {waits[:2]}")
            except RecipeError as error:
                results[name] = "refused"
                findings.expect(precision != "fp32" and stage == 0, f"{name}: {error}")
            except Exception as error:
                results[name] = "failed"
                findings.expect(False, f"{name}: {type(error).__name__}: {str(error)[:300]}")
            findings.note("runs", results)
        for reference in references:
            reference.result()
    for name, (precision, run) in runs.items():
        expected = rows_of(setting.folder / "runs" / "gpu" / f"cpu-{REFERENCE[precision]}")
        off, limit = distance(rows_of(run), expected), TOLERANCE[precision]
        results[name]["loss_difference"] = off
        findings.note("runs", results)
        findings.expect(off < limit, f"{name}: losses differ by {off:.1e}, expected below {limit:.0e}")


def check_resume(setting: Setting) -> None:
    """Compare 10 + 10 steps with 20, bit for bit; then continue a checkpoint of two CPU processes."""
    findings, recipe = setting.findings, write_material(setting)
    steps, results = (4 if setting.small else 20), {}
    dropout = "student.config={num_hidden_layers: 1, hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1}"
    kinds = (("fp32", 0),) if setting.small else (("fp32", 0), ("bf16", 1))
    for precision, stage in kinds:
        settings = [f"training.precision={precision}", f"training.zero_stage={stage}", dropout]
        settings += [f"training.budget.steps={steps}", f"checkpoints.every={steps // 2}", "logging.every=1"]
        settings.append("training.deterministic=true")
        name, runs = f"{precision}-{stage}", []
        for kind, stops in (("whole", [None]), ("parts", [steps // 2, None])):
            loaded = load_recipe(recipe, [*settings, f"run.id={name}-{kind}"])
            for stop in stops:
                result = train_recipe(loaded, exit_steps=stop)
            runs.append(result)
        hashes = [hashlib.sha256((run.export / "model.safetensors").read_bytes()).hexdigest() for run in runs]
        off = distance(rows_of(runs[1].folder), rows_of(runs[0].folder))
        equal = hashes[0] == hashes[1]
        results[name] = {"equal_weights": equal, "loss_difference": off}
        findings.note("runs", results)
        findings.expect(equal and off == 0, f"{name}: the resumed run differs (losses by {off:.1e})")
    _reshard(setting, recipe)


def _reshard(setting: Setting, recipe: Path) -> None:
    """Continue on the device from a checkpoint of two CPU processes, and compare with their own next steps."""
    settings = ["run.id=resharded", "training.budget.steps=6", "training.zero_stage=1", "logging.every=1"]
    settings += ["checkpoints.every=4", "checkpoints.export_at_end=false"]
    train_on_cpu(recipe, *settings, "--processes", "2")
    run = setting.folder / "runs" / "gpu" / "resharded"
    expected = rows_of(run)
    shutil.rmtree(run / "checkpoints" / "step-0000006")  # as if the processes had been killed after step 4
    (run / "checkpoints" / "latest").write_text("step-0000004", encoding="utf-8")
    kdcore.train(recipe, settings)
    continued = "step-0000004" in (run / "train.log").read_text(encoding="utf-8")
    off = distance(rows_of(run), expected)
    setting.findings.note("resharded", {"continued": continued, "loss_difference": off})
    limit = TOLERANCE["fp32"]
    setting.findings.expect(continued, "the resharded run has not continued from the checkpoint of step 4")
    setting.findings.expect(off < limit, f"losses of the resharded run differ by {off:.1e}, expected below {limit:.0e}")
