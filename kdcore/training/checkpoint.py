"""Checkpoints to resume from: written beside, then renamed, then pointed to."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcore.errors import InputError
from kdcore.training.distributed import Processes
from kdcore.training.engine import Engine

_LATEST = "latest"
_STATE = "state.json"


@dataclass(frozen=True)
class TrainingState:
    """What the loop itself has to remember.

    Attributes:
        step: steps done.
        seconds: training time, by process 0's clock, when it was written.
        done_seconds: training time as all processes last agreed on it; what was due until then has been done.
        world_size: number of processes that wrote the checkpoint.
        zero_stage: ZeRO stage that it was written with.
        milestone: whether it is kept for good.
    """

    step: int
    seconds: float
    done_seconds: float
    world_size: int
    zero_stage: int
    milestone: bool = False


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_folder / "checkpoints" / f"step-{step:07d}"


def latest_checkpoint(run_folder: Path) -> Path | None:
    """The newest complete checkpoint; None if none was ever written.

    Raises:
        InputError: there are checkpoints, but the pointer to the newest is missing or wrong.
    """
    folder = run_folder / "checkpoints"
    pointer = folder / _LATEST
    steps = sorted(folder.glob("step-*"))
    if not pointer.is_file():
        if steps:
            raise InputError(
                f"there are checkpoints, but no file `{_LATEST}` that names the newest",
                where=str(folder),
                hint=f"to continue from it: write `{steps[-1].name}` into {pointer}",
            )
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    if not (folder / name / _STATE).is_file():
        raise InputError(
            f"`{_LATEST}` names the checkpoint {name!r}, which is missing or incomplete",
            where=str(folder),
            allowed=[step.name for step in steps if (step / _STATE).is_file()] or None,
            hint=f"write the name of a complete checkpoint into {pointer}",
        )
    return folder / name


def read_state(folder: Path) -> TrainingState:
    """The loop's state in a checkpoint.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return TrainingState(**json.loads((folder / _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the checkpoint's state cannot be read: {error}", where=str(folder)) from error


def save_checkpoint(
    run_folder: Path,
    state: TrainingState,
    own_state: dict[str, Any],
    engine: Engine,
    processes: Processes,
    keep: int,
) -> Path:
    """Write a checkpoint together; it exists under its name only once every process has written its part.

    `own_state` is what this process alone remembers; `load_checkpoint` gives it back.
    """
    folder = checkpoint_folder(run_folder, state.step)
    staging = folder.with_name(f".staging-{folder.name}")
    if processes.is_main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    processes.barrier()
    engine.save(staging)
    process_state = {"random": _random_states(processes.device), "own": own_state}
    torch.save(process_state, staging / f"process-{processes.rank}.pt")
    processes.barrier()
    if processes.is_main:
        (staging / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
        replaced = folder.with_name(f".replaced-{folder.name}")
        if folder.exists():  # the same step with a later clock; the old one goes when the new one stands
            os.replace(folder, replaced)
        os.replace(staging, folder)
        shutil.rmtree(replaced, ignore_errors=True)
        pointer = folder.parent / _LATEST
        pointer_staging = pointer.with_suffix(".staging")
        pointer_staging.write_text(folder.name, encoding="utf-8")
        os.replace(pointer_staging, pointer)
        others = sorted(folder.parent.glob("step-*"), key=_step_of)
        later = [path for path in others if _step_of(path) > state.step]  # of a past that this run did not continue
        for old in later + [path for path in others if path not in later][:-keep]:
            shutil.rmtree(old)
    processes.barrier()
    return folder


def check_layout(folder: Path, processes: Processes, zero_stage: int) -> None:
    """Refuse a checkpoint that these processes cannot load.

    Raises:
        InputError: it was written by another number of processes or at another ZeRO stage.
    """
    state = read_state(folder)
    if (state.world_size, state.zero_stage) != (processes.world_size, zero_stage):
        raise InputError(
            f"the checkpoint was written by {state.world_size} processes at ZeRO stage {state.zero_stage}, "
            f"this run has {processes.world_size} at stage {zero_stage}",
            where=str(folder),
            hint=f"start with {state.world_size} processes and `training.zero_stage={state.zero_stage}`",
        )


def load_checkpoint(folder: Path, engine: Engine, processes: Processes) -> tuple[TrainingState, dict[str, Any]]:
    """Restore engine and random states; give the loop's state and what this process alone remembered."""
    state = read_state(folder)
    engine.load(folder)
    process_state = torch.load(folder / f"process-{processes.rank}.pt", weights_only=False)
    _restore_random_states(process_state["random"], processes.device)
    return state, process_state["own"]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _random_states(device: torch.device) -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
