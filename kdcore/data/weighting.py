"""Select the rows of an epoch by the weights of corpora."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdcore.data.manifest import Manifest, PreparedSplit


class WeightedRows:
    """Map samples of an epoch to rows of a split: the rows of each corpus appear `weight` times.

    With weight 2, each row of a corpus appears twice in every epoch. With weight 0.5, one half of the rows appears in
    one epoch and the other half in the next, so that all rows are used equally often.

    Args:
        manifest: manifest of the prepared data.
        split: split of the rows.
        weighted: whether to apply weights; if not, each row is one sample.

    Attributes:
        num_samples: number of samples in an epoch.
        repeats: whether every epoch contains the same rows.
    """

    def __init__(self, manifest: Manifest, split: PreparedSplit, *, weighted: bool = True) -> None:
        available = np.zeros(max(1, len(manifest.weights)), np.int64)
        for shard in manifest.splits[split].shards:  # in the order of corpora
            available[shard.corpus] += shard.rows
        weights = np.ones(len(available)) if not weighted else np.array(manifest.weights or [1.0])
        shown = np.maximum(np.round(weights * available), np.minimum(available, 1)).astype(np.int64)
        self._plain = bool((shown == available).all())
        self._available = available
        self._shown = shown
        self._first_row = np.cumsum(available) - available
        self._first_sample = np.cumsum(shown) - shown
        self.num_samples = int(shown.sum())
        self.repeats = bool((shown % np.maximum(available, 1) == 0).all())

    def rows(self, samples: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the rows that these samples correspond to in these epochs."""
        if self._plain:
            return samples
        corpus = np.searchsorted(self._first_sample + self._shown, samples, side="right")
        turn = samples - self._first_sample[corpus] + epochs * self._shown[corpus]
        rows: NDArray[np.int64] = self._first_row[corpus] + turn % self._available[corpus]
        return rows
