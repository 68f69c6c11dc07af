"""Define what the functions of `kdcore.functional` return, and select real tokens by lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Total:
    """An objective over some items.

    Sums and counts of several batches add up, so that their quotient does not depend on how samples are split.

    Attributes:
        sum: the objective summed over all items; a scalar of at least float32, with a gradient.
        count: number of items; a tensor if only the device knows it.
    """

    sum: Tensor
    count: int | Tensor

    @property
    def mean(self) -> Tensor:
        """The objective per item; NaN without items."""
        return self.sum / self.count


def real_rows(states: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the rows (N, d) of real tokens in order.

    Args:
        states: (B, L, d) with padding at the end of sequences; or rows (..., d), all of them real, without `lengths`.
        lengths: (B,) number of real tokens of each sequence.
    """
    if lengths is None:
        return states.reshape(-1, states.shape[-1])
    return states[torch.arange(states.shape[1], device=states.device) < lengths.to(states.device)[:, None]]
