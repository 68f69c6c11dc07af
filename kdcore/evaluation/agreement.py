"""Agreement of two encoders on the same text: of their sentence embeddings, and of what they call similar."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BATCH_SIZE = 16


@dataclass(frozen=True)
class Agreement:
    """Two encoders compared on n sequences.

    Attributes:
        sequences: n.
        cosine: mean cosine between the two mean-pooled embeddings of a sequence; None if their widths differ.
        rank_correlation: Spearman's correlation of the n(n-1)/2 cosine similarities between sequences.
        speedup: time of the first encoder over time of the second, batch by batch in turn, median.
    """

    sequences: int
    cosine: float | None
    rank_correlation: float
    speedup: float


@torch.no_grad()
def compare(teacher: Any, student: Any, rows: np.ndarray, lengths: np.ndarray) -> Agreement:
    """Compare two `AutoModel` encoders.

    Args:
        teacher: the first encoder, in eval mode.
        student: the second, in eval mode.
        rows: (n, L) token ids, padded on the right.
        lengths: (n,) number of real tokens.
    """
    embeddings: tuple[list[Tensor], list[Tensor]] = ([], [])
    ratios = []
    for start in range(0, len(rows), _BATCH_SIZE):
        own = slice(start, start + _BATCH_SIZE)
        longest = int(lengths[own].max())
        tokens = torch.from_numpy(rows[own, :longest].astype(np.int64))
        mask = torch.from_numpy(np.arange(longest) < lengths[own, None])
        seconds = []
        for model, collected in zip((teacher, student), embeddings, strict=True):
            started = time.perf_counter()
            states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            seconds.append(time.perf_counter() - started)
            collected.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        ratios.append(seconds[0] / seconds[1])
    first, second = (torch.nn.functional.normalize(torch.cat(parts).double(), dim=1) for parts in embeddings)
    above = np.triu_indices(len(rows), 1)
    similarities = [(side @ side.T).numpy()[above] for side in (first, second)]
    return Agreement(
        sequences=len(rows),
        cosine=(first * second).sum(1).mean().item() if first.shape == second.shape else None,
        rank_correlation=rank_correlation(*similarities),
        speedup=float(np.median(ratios)),
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two samples (n,) without ties."""
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
