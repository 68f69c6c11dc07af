"""Define the order of samples as a pure function of the seed, so that it is independent of restarts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kdcore.errors import DataError
from kdcore.tasks.base import Order

_WINDOW_BATCHES = 64  # steps whose samples are sorted by length together: more means less padding and less shuffling
_ORDER_STREAM = 0  # second word of the random key, see kdcore.tasks.masking


class SampleOrder:
    """An endless stream of samples: one random permutation after another.

    Args:
        num_samples: number of samples.
        seed: seed of the permutations.
        share: index of the stream's range among `shares` equal ranges of the samples.
        shares: number of ranges.
        lengths: length of each sample, to group samples of similar length into steps; None to mix lengths.
        step_size: number of consecutive samples in a step.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        share: int = 0,
        shares: int = 1,
        *,
        lengths: np.ndarray | None = None,
        step_size: int = 1,
    ) -> None:
        self.seed = seed
        self.share = share
        self.first = num_samples * share // shares
        self.num_samples = num_samples * (share + 1) // shares - self.first
        if not self.num_samples:
            raise DataError(
                f"`per_process` needs at least one sequence per process (found {num_samples}, expected {shares})",
                key="task.order",
                hint="use `order: global`",
            )
        self._lengths = lengths
        self._step_size = step_size
        # A step reads from a few neighbouring epochs at most; batches are drawn one step ahead.
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.Philox(key=[self.seed, _ORDER_STREAM], counter=[0, 0, epoch, self.share])
        random = np.random.Generator(generator)
        order: np.ndarray = self.first + random.permutation(self.num_samples)
        if self._lengths is None:
            return order
        # Steps are cut out of the endless stream: the first one that begins in this epoch begins here.
        start = -epoch * self.num_samples % self._step_size
        return bucketed(order, self._lengths, self._step_size, start, random)

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return samples and epochs at stream positions `start` to `start + count - 1`; both (count,) int64."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.num_samples)
        samples = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._permutation(int(epoch))[offsets[here]]
        return samples, epochs


def bucketed(
    order: np.ndarray, lengths: np.ndarray, step_size: int, start: int, random: np.random.Generator
) -> np.ndarray:
    """Reorder samples so that the samples of a step have similar lengths, which reduces padding.

    Windows of `order` are sorted by length and cut into steps, which are shuffled within the window. Steps that extend
    into another epoch stay unchanged.

    Args:
        order: (n,) samples in random order.
        lengths: length of each sample, by its number.
        step_size: samples per step.
        start: position in `order` of the first whole step.
        random: generator that shuffles the steps.
    """
    order = order.copy()
    end = start + max(0, (len(order) - start) // step_size) * step_size
    for first in range(start, end, _WINDOW_BATCHES * step_size):
        window = order[first : min(first + _WINDOW_BATCHES * step_size, end)]
        steps = window[np.argsort(lengths[window], kind="stable")].reshape(-1, step_size)
        window[:] = random.permutation(steps).reshape(-1)
    return order


class StepSamples:
    """Select the samples of each process's micro-batches.

    With `global`, the samples of a step depend only on the seed; micro-batches are distributed round-robin. With
    `per_process`, each process has its own part of the samples and its own stream.

    Args:
        num_samples: number of samples.
        seed: seed of the order.
        batch_size: samples per step, over all processes.
        micro_batch_size: samples per micro-batch.
        world_size: number of processes.
        order: `global` or `per_process`.
        lengths: length of each sample, to group samples of similar length into steps; None to mix lengths.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        world_size: int,
        order: Order,
        lengths: np.ndarray | None = None,
    ) -> None:
        self._size = micro_batch_size
        self._world_size = world_size
        self._step_size = batch_size
        self._alone = order == "per_process"
        if self._alone:
            self._step_size = batch_size // world_size
        shares = world_size if self._alone else 1
        self._streams = [
            SampleOrder(num_samples, seed, share, shares, lengths=lengths, step_size=self._step_size)
            for share in range(shares)
        ]

    def micro_batches(self, step: int, rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return samples and their epochs in each micro-batch of a step on process `rank`."""
        samples, epochs = self._streams[rank if self._alone else 0].take(step * self._step_size, self._step_size)
        first, processes = (0, 1) if self._alone else (rank, self._world_size)
        starts = range(first * self._size, self._step_size, processes * self._size)
        return [(samples[start : start + self._size], epochs[start : start + self._size]) for start in starts]

    def whole(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return all samples of a step and their epochs; micro-batch i of process r is number i * processes + r."""
        by_rank = [self.micro_batches(step, rank) for rank in range(self._world_size)]
        ordered = [one for same_number in zip(*by_rank, strict=True) for one in same_number]
        samples, epochs = zip(*ordered, strict=True)
        return np.concatenate(samples), np.concatenate(epochs)
