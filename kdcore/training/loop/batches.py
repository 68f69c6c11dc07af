"""Draw and count the micro-batches of a step in the background while the previous step trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kdcore.faults import plugin_faults
from kdcore.signals import Batch
from kdcore.tasks.base import Split, Task
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.loop.sampling import StepSamples
from kdcore.training.runtime.distributed import DistributedContext


@dataclass(frozen=True)
class StepBatches:
    """The data of one step in host memory.

    Attributes:
        micro_batches: the micro-batches of this process.
        whole: all sequences of all processes, ordered as in `StepSamples.whole`; None if no loss needs them.
        fraction: fraction of the budget at which the task drew the samples.
        totals: function that blocks until the processes have exchanged information about this step, and returns it.
    """

    micro_batches: list[Batch]
    whole: Batch | None = None
    fraction: float = 1.0
    totals: Callable[[], dict[Any, float]] = dict


class TrainingBatches:
    """Draw the batches of each step, one step ahead in a thread."""

    def __init__(
        self,
        task: Task,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        processes: DistributedContext,
        *,
        whole: bool,
        exchange: Callable[[StepBatches], Callable[[], dict[Any, float]]] | None = None,
        fraction_at: Callable[[int], float] = lambda step: 1.0,
    ) -> None:
        """Prepare to draw batches.

        Args:
            task: the task, which draws the samples.
            seed: seed of the order of samples.
            batch_size: sequences per step, over all processes.
            micro_batch_size: sequences per micro-batch.
            processes: the processes.
            whole: whether to draw the whole batch of each step in addition to the micro-batches.
            exchange: function that starts to exchange information about a step's batches between processes, in the
                background thread; its result becomes `StepBatches.totals`.
            fraction_at: function that returns the fraction of the budget used before a step, equal on every process.
        """
        self._task = task
        self._exchange = exchange
        self._fraction_at = fraction_at
        self._draws_whole = whole
        self._samples = StepSamples(
            task.num_samples("train"),
            seed,
            batch_size,
            micro_batch_size,
            processes.world_size,
            task.order,
            task.lengths("train"),
        )
        self._processes = processes
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdcore-batches")
        self._next: tuple[int, Future[StepBatches]] | None = None

    def step(self, step: int) -> StepBatches:
        """Return the batches of a step."""
        # Exchanges start in the same order on every process, because one thread draws all steps.
        ahead = self._next[1] if self._next is not None and self._next[0] == step else None
        batches = (ahead or self._submit(step)).result()
        self._next = (step + 1, self._submit(step + 1))
        return batches

    def _submit(self, step: int) -> Future[StepBatches]:
        return self._pool.submit(self._draw, step, self._fraction_at(step))

    def settle(self) -> None:
        """Wait until the current step is drawn; call this before changing anything that `exchange` reads."""
        if self._next is not None:
            wait([self._next[1]])

    def close(self) -> None:
        """Stop the background thread and finish its exchange: a pending one would abort the process at exit."""
        ahead, self._next = self._next, None
        self._pool.shutdown()
        if ahead is not None:
            with suppress(Exception):  # the step is not trained, or another process has ended
                ahead[1].result().totals()

    def samples(self, step: int, rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return samples and their epochs in each micro-batch of a step on process `rank`."""
        return self._samples.micro_batches(step, rank)

    def _draw(self, step: int, fraction: float) -> StepBatches:
        own = self.samples(step, self._processes.rank)
        with plugin_faults(self._task, "task"):
            batches = [self._task.draw("train", samples, epochs, fraction) for samples, epochs in own]
            whole = self._task.draw("train", *self._samples.whole(step), fraction) if self._draws_whole else None
        if _pins(self._processes.device):
            batches = [batch.pin() for batch in batches]
        drawn = StepBatches(batches, whole, fraction)
        return drawn if self._exchange is None else replace(drawn, totals=self._exchange(drawn))


def step_counts(module: DistillationModule, batches: StepBatches, processes: DistributedContext) -> dict[Term, float]:
    """Count each term on this process; the sum over processes is the count of the step.

    Coupled losses are counted over the whole batch if there is one, by process 0 only.
    """
    counts: dict[Term, float] = {}
    for batch in batches.micro_batches:
        for term, count in module.counts(batch).items():
            counts[term] = counts.get(term, 0.0) + count
    if batches.whole is not None:
        whole = module.counts(batches.whole)
        coupled = [term for term in counts if term.label in module.coupled]
        counts |= {term: whole[term] if processes.is_main else 0.0 for term in coupled}
    return counts


def held_out_batches(
    task: Task, batch_size: int, processes: DistributedContext, split: Split = "held_out"
) -> Iterator[Batch]:
    """Yield this process's batches of the held-out (or another) split, with the same masks at every validation."""
    lengths = task.lengths(split)
    order = np.arange(task.num_samples(split)) if lengths is None else np.argsort(lengths, kind="stable")
    for start in range(processes.rank * batch_size, len(order), batch_size * processes.world_size):
        samples = order[start : start + batch_size].astype(np.int64)
        with plugin_faults(task, "task"):
            batch = task.draw(split, samples, np.zeros_like(samples))
        yield batch.pin() if _pins(processes.device) else batch


def _pins(device: torch.device) -> bool:
    return device.type == "cuda"
