"""Compare two encoders on the same text: their embeddings, and their similarities between texts."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
        neighbours: mean fraction of a sequence's nearest neighbours that both encoders have in common; None if not
            requested.
        speedup: median ratio of the first encoder's time to the second encoder's, measured alternately on each batch.
        by_text: values (n,) of the sequences whose means are `cosine`, `rank_correlation` and `same_neighbours`, under
            these names; None for a quantity that is not measured. The rank correlation is not a mean over sequences.
            Its values are therefore jackknife values, which have the standard error of the correlation.
    """

    sequences: int
    cosine: float | None
    rank_correlation: float
    neighbours: float | None
    speedup: float
    by_text: Mapping[str, np.ndarray | None]


@torch.no_grad()
def compare(
    teacher: Any,
    student: Any,
    rows: np.ndarray,
    lengths: np.ndarray,
    neighbours: int | None = None,
    *,
    teacher_rows: tuple[np.ndarray, np.ndarray] | None = None,
    device: torch.device | None = None,
    with_values: bool = False,
) -> Agreement:
    """Compare two `AutoModel` encoders, which are on the CPU before and after the call.

    Args:
        teacher: the first encoder, in eval mode.
        student: the second, in eval mode.
        rows: (n, L) token ids, padded on the right.
        lengths: (n,) number of real tokens.
        neighbours: number of nearest neighbours of each sequence to compare.
        teacher_rows: ids and lengths of the same text for a teacher with a different tokenizer.
        device: device for the computation; default: a GPU, if there is one.
        with_values: whether to compute `by_text`.
    """
    device = device or fastest_device()
    for model in (teacher, student):
        model.to(device)
    views = (teacher_rows or (rows, lengths), (rows, lengths))
    embeddings: tuple[list[Tensor], list[Tensor]] = ([], [])
    ratios = []
    for start in range(0, len(rows), _BATCH_SIZE):
        own = slice(start, start + _BATCH_SIZE)
        seconds = []
        for model, collected, (ids, sizes) in zip((teacher, student), embeddings, views, strict=True):
            longest = int(sizes[own].max())
            tokens = torch.from_numpy(ids[own, :longest].astype(np.int64)).to(device)
            mask = torch.from_numpy(np.arange(longest) < sizes[own, None]).to(device)
            wait_for(device)
            started = time.perf_counter()
            states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            wait_for(device)
            seconds.append(time.perf_counter() - started)
            collected.append(mean_pooled(states, mask).cpu())
        ratios.append(seconds[0] / seconds[1])
    for model in (teacher, student):
        model.to("cpu")
    first, second = (torch.nn.functional.normalize(torch.cat(parts).double(), dim=1) for parts in embeddings)
    above = np.triu_indices(len(rows), 1)
    whole = [(side @ side.T).numpy() for side in (first, second)]
    similarities = [matrix[above] for matrix in whole]
    cosines = (first * second).sum(1).numpy() if first.shape == second.shape else None
    shared = None if neighbours is None else same_neighbours(whole[0], whole[1], neighbours)
    by_text: dict[str, np.ndarray | None] = {}
    if with_values:
        by_text = {"cosine": cosines, "same_neighbours": shared}
        by_text["rank_correlation"] = rank_correlation_values(whole[0], whole[1])
    return Agreement(
        sequences=len(rows),
        cosine=None if cosines is None else float(cosines.mean()),
        rank_correlation=rank_correlation(*similarities),
        neighbours=None if shared is None else float(shared.mean()),
        speedup=float(np.median(ratios)),
        by_text=by_text,
    )


def fastest_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Average hidden states (B, L, d) of real tokens, where `mask` (B, L) is true, to (B, d)."""
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Spearman's rank correlation of two samples (n,) without ties."""
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def rank_correlation_values(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a value for each of n >= 4 texts (n,); their mean is the rank correlation over all pairs of texts.

    These are jackknife values: the correlation plus n - 1 times the decrease when a text is left out, relative to the
    mean decrease. Their standard error is the standard error of the correlation.

    Args:
        first: similarities (n, n).
        second: other similarities (n, n) of the same texts.
    """
    count = len(first)
    rows, columns = np.triu_indices(count, 1)
    orders = [np.argsort(matrix[rows, columns]) for matrix in (first, second)]
    without = np.empty(count)
    for text in range(count):
        kept = (rows != text) & (columns != text)
        ranks = []
        for order in orders:
            left = order[kept[order]]
            ranks.append(np.empty(len(kept)))
            ranks[-1][left] = np.arange(len(left))
        without[text] = np.corrcoef(ranks[0][kept], ranks[1][kept])[0, 1]
    whole = rank_correlation(first[rows, columns], second[rows, columns])
    return np.asarray(whole + (count - 1) * (without.mean() - without))


def same_neighbours(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Return the fraction (n,) of each text's `count` nearest other texts on which two similarities (n, n) agree."""
    count = min(count, len(first) - 1)
    nearest = []
    for similarities in (first, second):
        others = similarities.copy()
        np.fill_diagonal(others, -np.inf)
        nearest.append(np.argsort(-others, axis=1, kind="stable")[:, :count])
    both = [len(set(one) & set(other)) for one, other in zip(*nearest, strict=True)]
    return np.array(both) / count
