"""Find runs and read their status from their folders, without importing torch or affecting the runs."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kdcore.errors import InputError
from kdcore.trackers.jsonl import METRICS, read_metrics
from kdcore.utils.stored import StoredCount, StoredText, open_regular, read_json_object, read_json_rows

logger = logging.getLogger("kdcore")

State = Literal["queued", "running", "finished", "stopped", "failed", "lost"]

_DEPTH = 3
_TAIL_BYTES = 1 << 17
_FRESH_SECONDS = 15 * 60


class _JobEvent(BaseModel):
    model_config = ConfigDict(extra="allow")

    event: str
    job: StoredText = ""
    code: int | None = None
    step: int = 0
    requeued: bool | None = None
    local: bool | None = None


class _SweepJob(BaseModel):
    folder: StoredText


class _SweepNote(BaseModel):
    jobs: list[_SweepJob]


class _LockFile(BaseModel):
    host: str
    pid: StoredCount


@dataclass(frozen=True)
class RunStatus:
    """The status of a run, read from its folder.

    Attributes:
        state: see `kdcore runs --help`.
        note: details of the state, such as the exit code; may be empty.
        step: the last step with metrics; None before the first.
        saved_step: the step of the newest checkpoint, from which the run would resume; 0 without a checkpoint.
        max_steps: limit of steps in the recipe, or None.
        loss: the last training loss, or None.
        held_out: the last held-out loss, or None.
        tokens_per_second: the last measured throughput, or None.
        restarts: number of restarts.
        updated: time of the last write, in seconds since the epoch; None before the first.
    """

    state: State
    note: str
    step: int | None
    saved_step: int
    max_steps: int | None
    loss: float | None
    held_out: float | None
    tokens_per_second: float | None
    restarts: int
    updated: float | None


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield every run in a folder, sorted by name; for a sweep folder, its runs; for a run folder, the run.

    Raises:
        InputError: the submission file of a sweep is damaged.
    """
    note = folder / "submission.json"
    if os.path.isfile(note):  # also false for a folder that may not be searched
        hint = "pass the folder set as `run.folder` in the recipes, which contains the runs of the sweep"
        yield from (Path(job.folder) for job in read_json_object(note, _SweepNote, hint=hint).jobs)
    else:
        yield from _walk(folder, _DEPTH)


def run_status(folder: Path, queue: Mapping[str, str] | None = None) -> RunStatus:
    """Read the status of a run from its folder, without importing torch or affecting the run.

    Args:
        folder: the run folder.
        queue: states of the user's jobs by job id, as in `JobQueue.states`; None without a scheduler.
    """
    from kdcore.training.checkpoint.format import all_checkpoints, step_of

    metrics = read_metrics(folder, last_bytes=_TAIL_BYTES)[::-1]  # newest first
    training = next((row for row in metrics if "train/loss" in row), {})
    validation = next((row for row in metrics if "held_out/loss" in row), {})
    steps = [step for step in (training.get("step"), validation.get("step")) if step is not None]
    checkpoints = all_checkpoints(folder)
    history = read_history(folder)
    log = _log(folder)
    state, note = _state(folder, history, log, queue)
    starts = sum(event.get("event") == "start" for event in history)
    signs = [folder / name for name in (METRICS, "train.log", "launch/history.jsonl")]
    return RunStatus(
        state=state,
        note=note,
        step=max(steps, default=None),
        saved_step=step_of(checkpoints[-1]) if checkpoints else 0,
        max_steps=_max_steps(folder / "recipe.yaml"),
        loss=training.get("train/loss"),
        held_out=validation.get("held_out/loss"),
        tokens_per_second=training.get("train/tokens_per_second"),
        restarts=max(starts - 1, log.count("continued from step-")),
        updated=max((path.stat().st_mtime for path in signs if path.exists()), default=None),
    )


def run_state(folder: Path) -> State:
    """Read only the state of a run from its folder, like `run_status` without a scheduler."""
    return _state(folder, read_history(folder), _log(folder), None)[0]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the job events of a run recorded by kdcore-launch, oldest first; empty if it was not submitted.

    The lines of `launch/history.jsonl` are maps with `event` (`submitted`, `start`, `stopping` or `end`), `job` and
    `time`; an `end` also has `code` and `requeued`. If SLURM stops the job, the `end` after `stopping` may be missing.
    """
    rows = read_json_rows(folder / "launch" / "history.jsonl", _JobEvent, last_bytes=_TAIL_BYTES)
    return [row.model_dump(exclude_unset=True) for row in rows]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if os.path.isfile(folder / "recipe.yaml") or os.path.isfile(folder / "launch" / "history.jsonl"):
        yield folder
    elif depth and os.path.isdir(folder):
        try:
            shown = [inner for inner in folder.iterdir() if not inner.name.startswith(".")]
        except OSError as error:
            logger.warning(f"{folder}: left out, because it cannot be read: {error.strerror}")
            return
        for inner in sorted(filter(os.path.isdir, shown)):
            yield from _walk(inner, depth - 1)


def _state(
    folder: Path, history: Sequence[Mapping[str, Any]], log: str, queue: Mapping[str, str] | None
) -> tuple[State, str]:
    if (folder / "exports" / "final").is_dir() or log.rstrip().endswith(": finished"):
        return "finished", ""
    if history:
        return _launched_state(history[-1], queue)
    return ("running", "") if _is_alive(folder) else ("stopped", "")


def _launched_state(last: Mapping[str, Any], queue: Mapping[str, str] | None) -> tuple[State, str]:
    job = str(last.get("job", ""))
    note = f"job {job}"
    if last["event"] == "end" and not last.get("requeued"):
        code = last.get("code")
        if code == 0:
            return "finished", ""
        return ("stopped", note) if code == 130 else ("failed", f"exit code {code}, {note}")
    in_queue = None if queue is None else queue.get(job)
    if queue is not None and not last.get("local"):
        if in_queue is None:
            return ("stopped" if last["event"] == "stopping" else "lost"), note
        return ("queued", note) if in_queue == "PENDING" else ("running", note)
    without_queue: dict[str, State] = {"start": "running", "stopping": "stopped"}
    return without_queue.get(last["event"], "queued"), note


def _is_alive(folder: Path) -> bool:
    """Return whether the process that last locked the folder appears to be running."""
    try:
        holder = read_json_object(folder / ".lock", _LockFile)
    except InputError:
        return False
    if holder.host != socket.gethostname():  # a process on another host can only be detected by its log
        log = folder / "train.log"
        return log.exists() and time.time() - log.stat().st_mtime < _FRESH_SECONDS
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _max_steps(recipe: Path) -> int | None:
    from kdcore.recipe.yaml import read_yaml

    try:
        data: Any = read_yaml(recipe).plain()
        steps = data["training"]["budget"]["steps"]
    except (InputError, KeyError, TypeError):
        return None
    return steps if type(steps) is int else None


def _log(folder: Path) -> str:
    """Return the last part of a run's log."""
    try:
        with open_regular(folder / "train.log") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text: str = file.read().decode("utf-8", errors="replace")
            return text
    except OSError:
        return ""
