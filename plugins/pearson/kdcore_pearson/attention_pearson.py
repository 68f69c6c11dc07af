"""Define a loss on the correlation between attention probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdcore import (
    Batch,
    LayerPairs,
    Lengths,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    Total,
    real_lengths,
    require_equal_heads,
    require_shapes,
    require_teacher,
    resolve_block_pairs,
)
from kdcore_pearson.correlation import correlation_distance
from kdcore_pearson.probabilities import BlockAttention

_SLICE_ENTRIES = 2**22
"""Number of one model's probabilities per slice, 16 MB in float32; a backward pass holds about twenty such arrays. All
probabilities of 256 sequences, 12 heads and 128 tokens are 50 million."""

_EVERYTHING = slice(None)


QueryKey = BlockAttention | tuple[Tensor, Tensor]
"""Query and key of one block, (B, A, L, d_k) each; the loss passes them with the model's mask and scale."""


def attention_pearson(student: QueryKey, teacher: QueryKey, lengths: Lengths | None = None) -> dict[str, Total]:
    """Sum `1 - r` over Pearson correlations r of attention probabilities, and count the correlations.

    Args:
        student: (query, key) of one block, each (B, A, L, d_k).
        teacher: like `student`, with the same A.
        lengths: (B,) number of real tokens of each sequence; None if all are real.

    Returns:
        The totals along `keys`, `queries`, `heads` and `sequences`.

    Raises:
        ValueError: the shapes or the lengths do not match.
    """
    query = student.query if isinstance(student, BlockAttention) else student[0]
    require_shapes(query.ndim == 4, "(B, A, L, d_k)", query=query)
    size, heads, length, _ = query.shape
    known = np.full(size, length) if lengths is None else torch.as_tensor(lengths).cpu()
    real = real_lengths(known, size, length).numpy()
    if not isinstance(teacher, BlockAttention):
        teacher = teacher[0].detach(), teacher[1].detach()
    own, theirs = (
        side if isinstance(side, BlockAttention) else BlockAttention.from_tensors(*side, real)
        for side in (student, teacher)
    )
    fit = own.query.shape[:3] == theirs.query.shape[:3]
    require_shapes(fit, "equal (B, A, L)", student=own.query, teacher=theirs.query)
    sums: dict[str, list[Tensor]] = {term: [] for term in ("keys", "queries", "heads", "sequences")}
    for sequences in _slices(size, heads * length**2):
        parts = _checkpointed(_within_sequences, own, theirs, sequences)
        for term, part in zip(("keys", "queries", "heads"), parts, strict=True):
            sums[term].append(part)
    shared = _shared_length(real)
    sums["sequences"].append(torch.zeros_like(sums["keys"][0]))
    for some_heads in _slices(heads if shared else 0, size * shared * length):
        for queries in _slices(shared, size * length * (some_heads.stop - some_heads.start)):
            sums["sequences"].append(_checkpointed(_across_sequences, own, theirs, some_heads, queries, shared))
    counts = _counts(real, heads)
    return {term: Total(torch.stack(parts).sum(), counts[term]) for term, parts in sums.items()}


def _counts(lengths: np.ndarray, heads: int) -> dict[str, int]:
    rows = heads * int(lengths.sum())
    across = heads * _shared_length(lengths) ** 2
    return {"keys": rows, "queries": rows, "heads": int(np.square(lengths).sum()), "sequences": across}


class AttentionPearson(Loss):
    """Pearson correlation between student and teacher attention probabilities (DIST, along every axis).

    Probabilities p are (B, A, L, L), one for every sequence, head, query and key. Each of four terms sums `1 - r` over
    pairs of blocks and over correlations r between p_s and p_t, and divides by the number of correlations. The terms
    differ in the axis of the correlations:

    - `keys`: along keys, one for every sequence, head and query;
    - `queries`: along queries, one for every sequence, head and key;
    - `heads`: along heads, one for every sequence, query and key;
    - `sequences`: along sequences of the micro-batch, one for every head, query and key that at least two of them have.

    Only entries between real tokens are used. If neither model has variance, r = 1; if only one has variance, r = 0.
    """

    class Config(LossConfig):
        """Keys of an `attention_pearson` entry."""

        layers: LayerPairs = Field("last", description="Pairs of teacher and student blocks.")

    config: Config
    function = staticmethod(attention_pearson)

    couples_batch = True

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.num_heads = require_equal_heads(config, teacher, student)
        self.pairs = resolve_block_pairs(config.layers, teacher.num_layers, student.num_layers)

    def requests(self) -> Requests:
        """Request query and key of the paired blocks."""
        theirs, own = zip(*self.pairs, strict=True)
        return Requests(
            teacher=Signals.attention(("query", "key"), theirs), student=Signals.attention(("query", "key"), own)
        )

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of correlations along each axis."""
        return _counts(batch.lengths, self.num_heads)

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sums of `1 - r`."""
        assert teacher is not None
        pairs = [
            attention_pearson(BlockAttention.of(student, own), BlockAttention.of(teacher, theirs), batch.lengths)
            for theirs, own in self.pairs
        ]
        return {term: torch.stack([totals[term].sum for totals in pairs]).sum() for term in pairs[0]}


def _within_sequences(own: BlockAttention, theirs: BlockAttention, sequences: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums along keys, queries and heads over some sequences."""
    part = sequences, _EVERYTHING, _EVERYTHING
    own_logs, their_logs = own.log_probabilities(*part), theirs.log_probabilities(*part)
    real = own.real(sequences, _EVERYTHING)
    along_keys, along_queries, along_heads = (
        correlation_distance(own_logs, their_logs, real, dim) for dim in (3, 2, 1)
    )
    return along_keys, along_queries, along_heads


def _across_sequences(
    own: BlockAttention, theirs: BlockAttention, heads: slice, queries: slice, num_keys: int
) -> Tensor:
    """Return the sum of `1 - r` along sequences, for some heads, some queries and the first keys."""
    part = _EVERYTHING, heads, queries
    own_logs, their_logs = (side.log_probabilities(*part)[..., :num_keys] for side in (own, theirs))
    real = own.real(_EVERYTHING, queries)[..., :num_keys]
    return correlation_distance(own_logs, their_logs, real, 0)


def _checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with activation checkpointing: the backward pass recomputes intermediate values."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _shared_length(lengths: np.ndarray) -> int:
    """Return the number of tokens that at least two sequences have; 0 if there is only one sequence."""
    return int(np.sort(lengths)[-2]) if len(lengths) > 1 else 0


def _slices(total: int, entries_each: int) -> Iterator[slice]:
    """Yield slices of `total` items with `entries_each` entries per item, limited to `_SLICE_ENTRIES` entries."""
    step = max(1, _SLICE_ENTRIES // max(1, entries_each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
