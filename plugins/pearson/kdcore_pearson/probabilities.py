"""Compute attention probabilities from the query and key of one block, in slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kdcore import Signals, at_least_float32, require_shapes


@dataclass(frozen=True)
class BlockAttention:
    """The inputs of one block's probabilities, for all sequences of a micro-batch.

    Attributes:
        query: (B, A, L, d_k).
        key: like `query`.
        mask: the block's mask with four axes, broadcastable to (B, A, L, L): bool or additive; or None.
        rows: (B, L) bool, true on real tokens; None without padding.
        scale: factor on the products.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    rows: Tensor | None
    scale: float

    @classmethod
    def of(cls, signals: Signals, block: int) -> BlockAttention:
        """Create the attention of `block`, and join chunks of sequences, because correlations extend across them."""
        chunks = [
            cls(query.states, key.states, _four_axes(query.mask), query.rows, query.scale)
            for query, key in zip(signals.heads("query", block), signals.heads("key", block), strict=True)
        ]
        return chunks[0] if len(chunks) == 1 else _join(chunks)

    @classmethod
    def from_tensors(cls, query: Tensor, key: Tensor, lengths: np.ndarray) -> BlockAttention:
        """Create the attention of query and key (B, A, L, d_k) with the usual scale; `lengths` (B,) are on the host.

        Raises:
            ValueError: the shapes do not match.
        """
        fit = query.shape == key.shape and len(lengths) == len(query)
        require_shapes(fit, f"equal (B, A, L, d_k), {len(lengths)} sequences", query=query, key=key)
        rows = torch.from_numpy(np.arange(query.shape[2]) < lengths[:, None]).to(query.device)
        return cls(query, key, None, rows, query.shape[-1] ** -0.5)

    def log_probabilities(self, sequences: slice, heads: slice, queries: slice) -> Tensor:
        """Compute log probabilities (b, a, q, L), at least float32; minus infinity for masked keys and padding."""
        scores = at_least_float32(self.query[sequences, heads, queries]) * self.scale
        scores = scores @ at_least_float32(self.key[sequences, heads]).transpose(-1, -2)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[0] == 1 else self.mask[sequences]
            mask = mask if mask.shape[1] == 1 else mask[:, heads]
            mask = mask if mask.shape[2] == 1 else mask[:, :, queries]
            if mask.is_floating_point():
                scores = scores + mask
                # A masked key has the lowest number of the mask's precision or minus infinity.
                mask = mask > torch.finfo(mask.dtype).min / 2
            scores = scores.masked_fill(~mask, -torch.inf)
        if self.rows is None:
            return scores.log_softmax(-1)
        rows = self.rows[sequences]
        padding = ~rows[:, None, queries, None]
        scores = scores.masked_fill(~rows[:, None, None, :], -torch.inf)
        # The softmax of a padding query without visible keys would be NaN: fill its scores first, then mask them.
        return scores.masked_fill(padding, 0).log_softmax(-1).masked_fill(padding, -torch.inf)

    def real(self, sequences: slice, queries: slice) -> Tensor:
        """Return a mask of entries between real tokens: bool, (b, 1, q, L)."""
        size, _, length, _ = self.query.shape
        rows = self.rows
        if rows is None:
            rows = torch.ones((size, length), dtype=torch.bool, device=self.query.device)
        rows = rows[sequences]
        return rows[:, None, queries, None] & rows[:, None, None, :]


def _four_axes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[(None,) * (4 - mask.ndim)]


def _join(chunks: list[BlockAttention]) -> BlockAttention:
    """Join chunks into one, padded to the longest sequence."""
    longest = max(chunk.query.shape[2] for chunk in chunks)
    masked = any(chunk.mask is not None for chunk in chunks)
    heads = max((chunk.mask.shape[1] for chunk in chunks if chunk.mask is not None), default=1)
    queries, keys, rows, masks = [], [], [], []
    for chunk in chunks:
        size, _, length, _ = chunk.query.shape
        extra = longest - length
        everything = torch.ones((size, length), dtype=torch.bool, device=chunk.query.device)
        queries.append(pad(chunk.query, (0, 0, 0, extra)))
        keys.append(pad(chunk.key, (0, 0, 0, extra)))
        rows.append(pad(everything if chunk.rows is None else chunk.rows, (0, extra)))
        if masked:
            mask = everything[:, None, None, :] if chunk.mask is None else chunk.mask
            masks.append(pad(mask.expand(size, heads, length, length), (0, extra, 0, extra)))
    whole = torch.cat(masks) if masked else None
    return BlockAttention(torch.cat(queries), torch.cat(keys), whole, torch.cat(rows), chunks[0].scale)
