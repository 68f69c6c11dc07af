"""Predict with a student over all samples of a split and all processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kdcore.errors import InfrastructureError
from kdcore.models.base import Encoder
from kdcore.signals import Batch, Head, SignalRequest, Signals
from kdcore.tasks.base import Split, Task, TaskOutputs
from kdcore.training.loop.batches import held_out_batches
from kdcore.training.runtime.collectives import all_gather, broadcast_from_main
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.utils.atomic import atomic_directory

SCORES = "scores.json"


def scored_head(task: Task) -> Head | None:
    """Return the task's own head, if the task scores its outputs."""
    heads = task.heads(task.config)
    return heads[0] if heads and task.metric is not None else None


class Outputs:
    """Collect outputs of one head batch by batch."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._samples: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    @property
    def request(self) -> SignalRequest:
        """Return the request of the outputs."""
        return Signals.head(self.head.name)

    def add(self, batch: Batch, student: Signals) -> None:
        """Add the outputs of a batch, whose column `sample_ids` identifies the samples."""
        self._samples.append(batch.columns["sample_ids"].cpu().numpy())
        self._lengths.append(batch.lengths)
        self._values.append(student.outputs(self.head.name).detach().float().cpu().numpy())

    def gathered(self, processes: DistributedContext) -> TaskOutputs:
        """Gather float32 outputs in the order of the samples, on every process; every process must call this.

        Returns:
            (n, C), or n arrays (length, C) for a head on tokens.
        """
        everyone = all_gather(processes, (self._samples, self._lengths, self._values))
        samples, lengths, values = (
            np.concatenate([one for part in side for one in part]) for side in zip(*everyone, strict=True)
        )
        order = np.argsort(samples)
        if self.head.level == "sequence":
            return values[order]
        ends = np.cumsum(lengths)
        return [values[ends[one] - lengths[one] : ends[one]] for one in order]


def largest_class(head: Head, outputs: TaskOutputs) -> dict[str, float]:
    """Return the fraction of predictions of the most frequent class as `largest_class`.

    Empty for regression heads and heads with several labels per text.
    """
    if head.num_outputs < 2 or head.problem_type in ("regression", "multi_label_classification"):
        return {}
    counts = np.bincount(np.concatenate(outputs if head.level == "token" else [outputs]).argmax(1))
    return {"largest_class": float(counts.max() / counts.sum())}


@torch.no_grad()
def predict(
    student: Encoder,
    task: Task,
    head: Head,
    split: Split,
    batch_size: int,
    processes: DistributedContext,
    tick: Callable[[], None],
) -> TaskOutputs:
    """Compute a student's outputs for a split, in the form that `Task.scores` accepts; every process must call this.

    Args:
        student: the student; it is left in eval mode.
        task: the task that provides the batches.
        head: the task's own head.
        split: the split.
        batch_size: sequences per batch.
        processes: the processes.
        tick: function that is called before each batch.
    """
    student.eval()
    outputs = Outputs(head)
    for host_batch in held_out_batches(task, batch_size, processes, split):
        tick()
        batch = host_batch.to(processes.device)
        outputs.add(batch, student(batch, outputs.request))
    return outputs.gathered(processes)


def write_predictions(
    folder: Path,
    student: Encoder,
    source: Path,
    task: Task,
    head: Head,
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
        source: the student's export, recorded in `scores.json`.
        task: the task that writes the files.
        head: the task's own head.
        batch_size: sequences per batch.
        processes: the processes; every process must call this.
        tick: function that is called before each batch.
        check: function that raises an error if this run may no longer write there.

    Returns:
        The scores.

    Raises:
        InfrastructureError: the disk fails.
    """
    splits: list[Split] = [split for split in _SPLITS if task.num_samples(split)]
    outputs = {split: predict(student, task, head, split, batch_size, processes, tick) for split in splits}
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
