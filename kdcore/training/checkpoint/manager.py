"""Write and restore checkpoints from which a run can resume; all processes participate.

Training pauses while the state is written to files. Hashing, flushing and the rename happen in the background.
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kdcore.errors import InfrastructureError, InputError, KdcoreError, PluginError, first_line
from kdcore.training.checkpoint import format as files
from kdcore.training.checkpoint.format import FileEntry, TrainingState
from kdcore.training.checkpoint.process_state import (
    random_states,
    read_process_state,
    restore_random_states,
    write_process_state,
)
from kdcore.training.engine.engine import Engine
from kdcore.training.runtime.collectives import all_gather, broadcast_from_main
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.utils.atomic import staging_folder

logger = logging.getLogger("kdcore")

_PATIENCE_SECONDS = 60.0
_SPARE_BYTES = 1 << 20


class Checkpoints:
    """Write the checkpoints of a run.

    Within the context, one checkpoint at a time may be completed in the background. The next `save` or `wait`, or
    leaving the context, waits for it and raises its error; `failed` reports an error without waiting.
    """

    def __init__(self, run_folder: Path, keep: int, processes: DistributedContext, check: Callable[[], None]) -> None:
        """Create the writer; every process must create one.

        Args:
            run_folder: the run's folder.
            keep: number of checkpoints to keep, besides milestones.
            processes: the processes that write together.
            check: function that raises an error on process 0 if this run may no longer write in the folder
                (`RunLock.check`).
        """
        self._run_folder = run_folder
        self._keep = keep
        self._processes = processes
        self._check = check
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        # Background collectives must not interleave with the collectives of training steps.
        self._group = dist.new_group(backend="gloo") if processes.world_size > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
            elif self._thread is not None and issubclass(kind, Exception):  # a second interrupt ends at once
                self._thread.join(_PATIENCE_SECONDS)
        finally:
            if self._group is not None and (self._thread is None or not self._thread.is_alive()):
                dist.destroy_process_group(self._group)

    @property
    def failed(self) -> bool:
        """Whether the last background save failed. All processes must agree on this value before they call `wait`."""
        return self._failure is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            InfrastructureError: the checkpoint could not be written, or another run has taken over the folder.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def committed(self) -> bool:
        """Wait for the last checkpoint; return whether it was committed. If not, the next `wait` raises the error."""
        if self._thread is not None:
            self._thread.join()
        return not self.failed

    def save(self, state: TrainingState, own_state: Mapping[str, Any], engine: Engine) -> None:
        """Write a checkpoint; every process must call this. It is committed and logged in the background.

        Args:
            state: state of the training loop.
            own_state: state of this process: nested maps of tensors and JSON values, with strings as keys. Tensors and
                floats are sums over this process's samples; everything else is equal on all processes.
            engine: the engine, which contains the rest of the state.

        Raises:
            PluginError: the state of a loss or of the optimizer cannot be stored.
            InfrastructureError: this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        folder = files.checkpoint_folder(self._run_folder, state.step)
        staging = staging_folder(folder)
        self._make_room(folder, engine)
        error = None
        try:
            written = engine.save(staging)
            own = {"random": random_states(self._processes.device), "own": own_state}
            written += write_process_state(own, staging, self._processes.rank)
        except OSError as failure:
            error = failure
        self._agree_on_success(folder, error)
        self._thread = Thread(target=self._finish, args=(folder, state, written), name="kdcore-checkpoint", daemon=True)
        self._thread.start()

    def _make_room(self, folder: Path, engine: Engine) -> None:
        """Create the staging folder, if the state can be stored and the disk has space for it."""
        answers = all_gather(self._processes, (engine.state_bytes(), engine.unsaveable()))
        refused = next((text for _, text in answers if text is not None), None)
        if refused is not None:
            raise PluginError(f"checkpoint {folder.name} cannot be written: {refused}")
        estimate = sum(size for size, _ in answers)

        def make() -> None:
            needed = max(estimate, *map(files.size_of, files.all_checkpoints(self._run_folder)), 0) + _SPARE_BYTES
            staging = files.make_staging(folder)
            free = shutil.disk_usage(staging).free
            if free < needed:
                shutil.rmtree(staging, ignore_errors=True)
                raise InfrastructureError(
                    self._text(folder, f"it needs {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free")
                )

        try:
            broadcast_from_main(self._processes, make)
        except InfrastructureError as error:
            if isinstance(error.__cause__, OSError):
                raise InfrastructureError(self._text(folder, str(error))) from error
            raise

    def _agree_on_success(self, folder: Path, error: OSError | None) -> None:
        """Raise the same error on all processes if any of them could not write its part."""
        texts = all_gather(self._processes, None if error is None else _text_of(error, self._processes))
        wrong = [text for text in texts if text is not None]
        if wrong:
            if self._processes.is_main:
                shutil.rmtree(staging_folder(folder), ignore_errors=True)
            raise InfrastructureError(self._text(folder, "; ".join(wrong))) from error

    def _finish(self, folder: Path, state: TrainingState, written: Sequence[Path]) -> None:
        """Sync this process's part in the background, and on process 0 commit the checkpoint."""
        try:
            self._failure = self._finished(folder, state, written)
        except BaseException as error:
            self._failure = error

    def _finished(self, folder: Path, state: TrainingState, written: Sequence[Path]) -> KdcoreError | None:
        staging = staging_folder(folder)
        part: dict[str, FileEntry] | str
        try:
            part = {path.relative_to(staging).as_posix(): files.describe_file(path, sync=True) for path in written}
        except OSError as error:
            part = _text_of(error, self._processes)
        parts = all_gather(self._processes, part, self._group)
        wrong = [part for part in parts if isinstance(part, str)]
        failure: KdcoreError | None = InfrastructureError(self._text(folder, "; ".join(wrong))) if wrong else None
        if self._processes.is_main:
            if failure is None:
                try:
                    entries = {name: entry for part in parts if isinstance(part, dict) for name, entry in part.items()}
                    files.commit(folder, state, entries, self._keep, self._check)
                    logger.info(f"step {state.step}: checkpoint {folder.name}")
                except OSError as error:
                    failure = InfrastructureError(self._text(folder, _text_of(error, self._processes)))
                except KdcoreError as error:
                    failure = error
            if failure is not None:
                shutil.rmtree(staging, ignore_errors=True)
        texts = all_gather(self._processes, None if failure is None else str(failure), self._group)
        if failure is None and texts[0] is not None:
            failure = InfrastructureError(texts[0])
        return failure

    def _text(self, folder: Path, why: str) -> str:
        good = files.pointed_to(self._run_folder)
        last = f"the last good checkpoint is {good}" if good else "the run has no earlier checkpoint"
        return (
            f"{folder.parent}: checkpoint {folder.name} cannot be written: {why}; {last}. Free disk space "
            "or repair the disk, then run the same command again"
        )


def latest_checkpoint(run_folder: Path, processes: DistributedContext) -> Path | None:
    """Find the newest good checkpoint, the same on every process; None if none was ever written.

    Process 0 verifies it and removes incomplete checkpoints of a killed run.

    Raises:
        InputError: all checkpoints of a run are lost or damaged.
    """

    def find() -> Path | None:
        files.clean_up(run_folder)
        return files.latest_checkpoint(run_folder)

    return broadcast_from_main(processes, find)


def check_layout(folder: Path, zero_stage: int) -> None:
    """Reject a checkpoint that cannot be loaded at this ZeRO stage. The number of processes may differ.

    Raises:
        InputError: the checkpoint was written at a different stage.
    """
    state = files.read_state(folder)
    if state.zero_stage != zero_stage:
        raise InputError(
            f"the ZeRO stage differs from this run's (found {state.zero_stage}, expected {zero_stage})",
            where=str(folder),
            hint=f"start with `training.zero_stage={state.zero_stage}`",
        )


def load_checkpoint(
    folder: Path, engine: Engine, processes: DistributedContext
) -> tuple[TrainingState, dict[str, Any]]:
    """Restore the engine and the random states; return the states of the loop and of this process.

    If a different number of processes wrote the checkpoint, stored sums are assigned to process 0, and the random state
    of each process is derived from process 0's state and the process's rank.
    """
    state = files.read_state(folder)
    file_format = files.read_format(folder)
    engine.load(folder, state.world_size)
    if state.world_size == processes.world_size:
        own = read_process_state(folder, processes.rank, file_format)
        with readable(folder):
            restore_random_states(own["random"], processes.device)
            return state, own["own"]
    everyone = [read_process_state(folder, rank, file_format) for rank in range(state.world_size)]
    writers = "1 process" if state.world_size == 1 else f"{state.world_size} processes"
    logger.info(f"{folder.name} was written by {writers}; resuming with {processes.world_size}")
    with readable(folder):
        _draw_random_states(everyone[0]["random"], processes.rank)
        merged: dict[str, Any] = merge_own_states([each["own"] for each in everyone], to_sum=processes.is_main)
    return state, merged


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn errors caused by unexpected values in a checkpoint's process files into InputErrors."""
    try:
        yield
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"the files process-* contain unexpected values ({type(error).__name__}: {first_line(error)})",
            where=str(folder),
        ) from error


def merge_own_states(values: Sequence[Any], *, to_sum: bool) -> Any:
    """Merge the states of several processes for a different number of processes.

    Args:
        values: the corresponding part of each process's state.
        to_sum: whether this process receives the sums; the other processes start from zero.
    """
    first = values[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: merge_own_states([v[key] for v in values if key in v], to_sum=to_sum) for key in keys}
    if isinstance(first, (Tensor, float)):
        if to_sum:
            return sum(values[1:], first)
        return torch.zeros_like(first) if isinstance(first, Tensor) else 0.0
    return first


def _text_of(error: OSError, processes: DistributedContext) -> str:
    who = f"process {processes.rank}: " if processes.world_size > 1 else ""
    return f"{who}{error.strerror or error}"


def _draw_random_states(states: dict[str, Any], rank: int) -> None:
    drawn = hashlib.sha256(states["torch"].numpy().tobytes() + rank.to_bytes(4)).digest()
    seed = int.from_bytes(drawn[:8]) >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
