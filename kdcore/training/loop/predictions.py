"""Predict class logits of a student over all samples of a split and all processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kdcore.errors import InfrastructureError
from kdcore.models.base import Encoder
from kdcore.signals import Batch, Signals
from kdcore.tasks.base import Split, Task
from kdcore.training.loop.batches import held_out_batches
from kdcore.training.runtime.collectives import all_gather, broadcast_from_main
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.utils.atomic import atomic_directory

SCORES = "scores.json"


class Outputs:
    """Collect outputs batch by batch."""

    def __init__(self) -> None:
        self._samples: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, batch: Batch, student: Signals) -> None:
        """Add the outputs of a batch, whose column `sample_ids` identifies the samples."""
        self._samples.append(batch.columns["sample_ids"].cpu().numpy())
        self._values.append(student.class_logits.detach().float().cpu().numpy())

    def gathered(self, processes: DistributedContext) -> np.ndarray:
        """Gather outputs (n, C) float32 in the order of the samples, on every process; every process must call this."""
        everyone = all_gather(processes, (self._samples, self._values))
        samples = np.concatenate([one for samples, _ in everyone for one in samples])
        values = np.concatenate([one for _, values in everyone for one in values])
        ordered = np.empty_like(values)
        ordered[samples] = values
        return ordered


@torch.no_grad()
def predict(
    student: Encoder, task: Task, split: Split, batch_size: int, processes: DistributedContext, tick: Callable[[], None]
) -> np.ndarray:
    """Compute a student's outputs for a split: (n, C) float32; every process must call this.

    Args:
        student: the student; it is left in eval mode.
        task: provides the batches.
        split: split of the samples.
        batch_size: sequences per batch.
        processes: the processes.
        tick: called before each batch.
    """
    student.eval()
    outputs = Outputs()
    for host_batch in held_out_batches(task, batch_size, processes, split):
        tick()
        batch = host_batch.to(processes.device)
        outputs.add(batch, student(batch, Signals.classes()))
    return outputs.gathered(processes)


def write_predictions(
    folder: Path,
    student: Encoder,
    source: Path,
    task: Task,
    batch_size: int,
    processes: DistributedContext,
    tick: Callable[[], None],
    check: Callable[[], None],
) -> dict[str, float]:
    """Write a student's predictions for held-out and test samples, and its held-out scores.

    The folder is written atomically.

    Args:
        folder: folder to write.
        student: the student.
        source: the student's export, which `scores.json` names.
        task: writes the files.
        batch_size: sequences per batch.
        processes: the processes; every one must call this.
        tick: called before each batch.
        check: raises if this run may no longer write there.

    Returns:
        The scores.

    Raises:
        InfrastructureError: the disk fails.
    """
    splits: list[Split] = [split for split in _SPLITS if task.num_samples(split)]
    outputs = {split: predict(student, task, split, batch_size, processes, tick) for split in splits}
    scores = task.scores("held_out", outputs["held_out"]) if "held_out" in outputs else {}

    def write() -> None:
        try:
            with atomic_directory(folder, replace=True, check=check) as staging:
                for split in splits:
                    task.write_predictions(staging, split, outputs[split])
                content = {"export": f"{source.parent.name}/{source.name}", "scores": scores}
                (staging / SCORES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InfrastructureError(f"{folder}: the predictions cannot be written: {error}") from error

    broadcast_from_main(processes, write)
    return scores


_SPLITS: tuple[Split, ...] = ("held_out", "test")
