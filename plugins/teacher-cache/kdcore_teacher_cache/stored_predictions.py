"""Store a part of each prediction over the vocabulary: the largest probabilities, or random samples.

- `top_k`: the K largest log-probabilities, and the logarithm of the remaining probability, which is spread evenly over
  the other tokens when read. All distributions are biased in the same direction.
- `random_sampling`: K tokens drawn from the teacher's own distribution (Anshumann et al. 2025, arXiv 2503.16870), read
  as the fraction of each token among them. This is importance sampling with the teacher as the proposal, so all weights
  are 1 / K. The resulting distribution, and therefore the gradient of `soft_targets` at temperature 1, is unbiased.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ABSENT = -1e4
"""Logit of a token that was not drawn: its probability is 0, and 0 times its logarithm is not NaN."""
_STREAM = 16870
_BINS = np.concatenate([[0.0], np.logspace(-9, 0, 19), [np.inf]])


def ids_dtype(vocab_size: int) -> type[np.generic]:
    """Return the smallest type that can represent all ids."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def largest(logits: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return ids (M, K) and log-probabilities (M, K + 1), whose last column is for all other tokens together.

    Args:
        logits: (M, V).
        kept: K, less than V.
    """
    log_probabilities = logits.double().log_softmax(-1)
    values, ids = log_probabilities.topk(kept, dim=-1)
    others = torch.ones_like(log_probabilities, dtype=torch.bool).scatter(1, ids, False)
    remainder = log_probabilities.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
    return ids, torch.cat([values, remainder], dim=-1).clamp(min=_ABSENT).float()


def from_largest(ids: Tensor, values: Tensor, vocab_size: int) -> Tensor:
    """Return log-probabilities (M, V) from the result of `largest`."""
    kept = ids.shape[1]
    rest = values[:, kept:] - float(np.log(vocab_size - kept))
    return rest.expand(-1, vocab_size).scatter(1, ids.long(), values[:, :kept])


def drawn(logits: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Draw ids (M, K), with replacement, from the distribution of each row.

    Args:
        logits: (M, V).
        numbers: (M, K) random numbers, uniform in [0, 1).
    """
    cumulated = logits.double().softmax(-1).cumsum(-1)
    places = torch.from_numpy(numbers).to(logits.device) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, places, right=True).clamp(max=logits.shape[1] - 1)


class SampleNumbers:
    """Random numbers for each sample that do not depend on its batch."""

    def __init__(self, split: int, copy: int, samples: NDArray[np.int64]) -> None:
        """Start the sequence of random numbers of each sample.

        Args:
            split: number of the split.
            copy: number of the copy.
            samples: (B,) indices of the samples.
        """
        # Philox counts up from the first word of its counter, so the sample has to be in another word.
        counters = [[0, sample, copy, split] for sample in samples.tolist()]
        self._generators = [np.random.Generator(np.random.Philox(key=_STREAM, counter=one)) for one in counters]

    def draw(self, counts: NDArray[np.int64], kept: int) -> NDArray[np.float64]:
        """Return the next numbers of each sample, uniform in [0, 1): (sum of counts, kept).

        Args:
            counts: (B,) rows of each sample.
            kept: numbers per row.
        """
        pairs = zip(self._generators, counts.tolist(), strict=True)
        return np.concatenate([generator.random((count, kept)) for generator, count in pairs])


def from_drawn(ids: Tensor, vocab_size: int) -> Tensor:
    """Return logarithms (M, V) of the fraction of each token among the drawn tokens."""
    ids = ids.long()
    counts = torch.zeros(len(ids), vocab_size, device=ids.device).scatter_add_(1, ids, torch.ones_like(ids).float())
    return torch.where(counts > 0, (counts / ids.shape[1]).log(), torch.full_like(counts, _ABSENT))


def calibration_error(logits: Tensor, read: Tensor) -> float:
    """Return how much probability mass per position a cache moves between ranges of the teacher's probability.

    Tokens are grouped by the teacher's probability, in ranges of half a decade. Differences between the stored and the
    teacher's probability are averaged over all positions and added within each range, so that noise cancels out but
    bias does not.

    Args:
        logits: (M, V) of the teacher.
        read: (M, V) as read from a cache.
    """
    true, found = (one.double().softmax(-1).flatten().cpu().numpy() for one in (logits, read))
    bins: NDArray[np.int64] = np.digitize(true, _BINS)
    sums = np.bincount(bins, found - true, minlength=len(_BINS) + 1)
    return float(np.abs(sums).sum() / len(logits))
