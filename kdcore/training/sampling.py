"""The order of samples: a pure function of the seed, the same for any number of processes and restarts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ORDER_STREAM = 0  # second word of the random key, see kdcore.tasks.masked_lm


class SampleOrder:
    """An endless stream of samples: one random permutation after the other."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        # A step reads at most from a few neighbouring epochs; batches are drawn one step ahead.
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.Philox(key=[self.seed, _ORDER_STREAM], counter=[0, 0, epoch, 0])
        return np.random.Generator(generator).permutation(self.num_samples)

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples and their epochs at stream positions `start` to `start + count - 1`; both (count,) int64."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.num_samples)
        samples = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._permutation(int(epoch))[offsets[here]]
        return samples, epochs
