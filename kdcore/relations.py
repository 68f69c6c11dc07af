"""Losses between score maps, such as attention scores, that never hold more than a few heads' maps at once.

A map has l x l numbers for every head of every sequence and so is by far the largest thing an attention objective
touches: at 256 sequences of 128 tokens and 12 heads 200 MB in float32, of which the plain formula keeps several until
the backward pass. Here the sum runs over slices of (sequence, head), and the gradient, whose closed form needs nothing
but the slice's own maps, is taken on the way; what is kept is a gradient as large as query and key. A slice is no
longer than its longest sequence, so padding costs little.

Which keys count, for a real query:

- a side's softmax is over the keys that its own block sees (padding, window; an additive mask shifts attention scores);
- a key that the student does not see cannot be taught: the teacher's softmax is over the keys that both see. Where the
  student sees all that the teacher sees, as with equal masks, this is the plain definition; a narrower student is held
  to what the teacher would say within the student's window, instead of to an infinite divergence;
- squared differences are taken where both see the key; a query with no common key adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcore.layers import at_least_float32
from kdcore.signals import Part, Signals

_SLICE = 2**18
"""Numbers in one side's maps of a slice: 16 maps of 128 tokens, 1 of 512; 1 MB in float32, as much as caches hold."""

_LARGE_SLICE = 2**24
"""The same on other devices, for which the start of each small operation is what costs: 64 MB in float32."""


class ScoreMaps:
    """A map of scores between tokens for every head of one block, computed in slices when it is compared."""

    def __init__(self, chunks: Sequence[_Chunk]) -> None:
        self._chunks = chunks

    @classmethod
    def attention(cls, signals: Signals, block: int) -> ScoreMaps:
        """Attention scores as the softmax of `block` gets them: query, key, the block's own scale and bias."""
        pairs = zip(signals.heads("query", block), signals.heads("key", block), strict=True)
        return cls(
            [
                _Chunk(
                    query.states,
                    key.states,
                    _axes(query.mask),
                    query.rows,
                    query.scale,
                    query.lengths,
                    query.only_padding,
                )
                for query, key in pairs
            ]
        )

    @classmethod
    def relations(cls, signals: Signals, part: Part, block: int, num_heads: int | None = None) -> ScoreMaps:
        """Scaled dot products of query, key or value of `block` with itself: `x x^T / sqrt(width of a head)`.

        Keys are those that the block sees; an additive mask only says which these are, for it shifts attention.

        Args:
            signals: of the student or the teacher.
            part: which projection.
            block: counted from 0.
            num_heads: merge the heads and split them again into so many, of which a multiple is the whole width;
                None leaves them.
        """
        chunks = []
        for heads in signals.heads(part, block):
            states, mask = heads.states, _axes(heads.mask)
            if num_heads is not None and num_heads != states.shape[1]:
                sequences, _, length, _ = states.shape
                states = states.transpose(1, 2).reshape(sequences, length, num_heads, -1).transpose(1, 2)
                if mask is not None and mask.shape[1] > 1:  # new heads are parts of several old ones
                    mask = mask.amax(1, keepdim=True) if mask.is_floating_point() else mask.any(1, keepdim=True)
            scale = states.shape[-1] ** -0.5
            chunks.append(_Chunk(states, None, mask, heads.rows, scale, heads.lengths, heads.only_padding))
        return cls(chunks)

    def kl_from(self, teacher: ScoreMaps) -> Tensor:
        """Sum over heads and real queries of `KL(softmax(teacher) || softmax(self))`: a scalar, float32 or better."""
        return self._compare(_kl, teacher)

    def squared_error_from(self, teacher: ScoreMaps) -> Tensor:
        """Sum over heads and pairs of real tokens of the squared difference: a scalar, float32 or better."""
        return self._compare(_squared_error, teacher)

    def _compare(self, distance: _Distance, teacher: ScoreMaps) -> Tensor:
        sums = []
        for own, theirs in zip(self._chunks, teacher._chunks, strict=True):
            assert own.left.shape[:3] == theirs.left.shape[:3], "numbers of heads differ"
            learning = torch.is_grad_enabled()  # which autograd does not tell its functions
            sums.append(
                _SumOverSlices.apply(distance, learning, own.left, own.right, own.mask, own, theirs)  # type: ignore[no-untyped-call]
            )
        return torch.stack(sums).sum()


class _Slice(NamedTuple):
    """An index of what has the axes (b, A, l, d)."""

    sequences: slice
    heads: slice
    tokens: slice


@dataclass(frozen=True)
class _Chunk:
    """Score maps not computed yet: `left @ right^T * scale`.

    Attributes:
        left: (b, A, l, d).
        right: likewise; None for relations, where it is `left` itself.
        mask: of four axes, broadcastable to (b, A, l, l): bool, true where a key is seen, or additive.
        rows: (b, l) bool, true on real tokens; None if all are.
        scale: factor on the products.
        lengths: (b,) on the host, real tokens of each sequence; None if they are not known there.
        only_padding: whether `mask` says no more than `rows`.
    """

    left: Tensor
    right: Tensor | None
    mask: Tensor | None
    rows: Tensor | None
    scale: float
    lengths: np.ndarray | None = None
    only_padding: bool = False

    def slices(self) -> Iterator[_Slice]:
        """All of it, in slices no longer than their longest sequence."""
        sequences, heads, longest, _ = self.left.shape
        numbers = _SLICE if self.left.device.type == "cpu" else _LARGE_SLICE
        maps = max(1, numbers // max(1, longest * longest))
        step, head_step = max(1, maps // heads), min(maps, heads)
        for first in range(0, sequences, step):
            chosen = slice(first, first + step)
            length = longest if self.lengths is None else max(1, int(self.lengths[chosen].max()))
            for head in range(0, heads, head_step):
                yield _Slice(chosen, slice(head, head + head_step), slice(length))

    def part(self, where: _Slice) -> _Chunk:
        """One slice, in at least float32; without mask and rows where it is known to have no padding."""
        full = self.lengths is not None and int(self.lengths[where.sequences].min()) >= where.tokens.stop
        return replace(
            self,
            left=at_least_float32(self.left[where]),
            right=None if self.right is None else at_least_float32(self.right[where]),
            mask=None if self.mask is None or (full and self.only_padding) else _part(self.mask, where),
            rows=None if self.rows is None or full else self.rows[where.sequences, where.tokens],
        )

    def other(self) -> Tensor:
        """What `left` is multiplied with."""
        return self.left if self.right is None else self.right

    def scores(self) -> tuple[Tensor, Tensor | None]:
        """The maps (b, A, l, l), and what is seen in them: bool, broadcastable to them; None if all is."""
        scores = (self.left * self.scale) @ self.other().transpose(-1, -2)
        seen = None if self.rows is None else self.rows[:, None, None, :]
        if self.mask is not None and self.mask.is_floating_point():
            if self.right is not None:
                scores.add_(self.mask)
            # As much as hides a key in the mask's precision, be it the lowest number or minus infinity.
            seen = _both(seen, self.mask > torch.finfo(self.mask.dtype).min / 2)
        elif self.mask is not None:
            seen = _both(seen, self.mask)
        return scores, seen


_Distance = Callable[[_Chunk, _Chunk], tuple[Tensor, Tensor]]
"""Of one slice of student and teacher: the sum over real queries, and its gradient for the student's maps.

Rows of queries that are no real tokens may hold any finite gradient.
"""


def _kl(own: _Chunk, theirs: _Chunk) -> tuple[Tensor, Tensor]:
    scores, seen = own.scores()
    target_scores, target_seen = theirs.scores()
    common = _both(seen, target_seen)
    scores, target_scores = _fill(scores, seen), _fill(target_scores, common)
    target, gradient = target_scores.softmax(-1), scores.softmax(-1)
    normalizers = _log_normalizer(scores, gradient) - _log_normalizer(target_scores, target)
    rows = target_scores.sub_(scores).mul_(target).sum(-1).add_(normalizers)
    gradient.sub_(target)
    if common is not None:
        alone = ~common.any(-1)
        rows.masked_fill_(alone, 0)
        gradient.masked_fill_(alone[..., None], 0)
    if own.rows is not None:
        rows.masked_fill_(~own.rows[:, None, :], 0)
    return rows.sum(), gradient


def _log_normalizer(scores: Tensor, probabilities: Tensor) -> Tensor:
    """`logsumexp` of each row, without another pass of exponentials: the largest probability is never a tiny one."""
    return scores.amax(-1) - probabilities.amax(-1).log_()


def _squared_error(own: _Chunk, theirs: _Chunk) -> tuple[Tensor, Tensor]:
    scores, seen = own.scores()
    target_scores, target_seen = theirs.scores()
    difference = scores.sub_(target_scores)
    common = _both(seen, target_seen)
    if own.rows is not None:
        common = _both(common, own.rows[:, None, :, None])
    if common is not None:
        difference.masked_fill_(~common, 0)
    return difference.square().sum(), difference.mul_(2)


class _SumOverSlices(torch.autograd.Function):
    """A distance between a chunk's maps of student and teacher; the gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        distance: _Distance,
        learning: bool,
        left: Tensor,
        right: Tensor | None,
        mask: Tensor | None,
        student: _Chunk,
        teacher: _Chunk,
    ) -> Tensor:
        """The sum; `left`, `right` and `mask` are the student's, listed so that autograd sees them."""
        sources = (left, right, mask)
        total = torch.zeros((), dtype=torch.promote_types(left.dtype, torch.float32), device=left.device)
        gradients = [
            torch.zeros_like(source, dtype=total.dtype) if learning and needed and source is not None else None
            for source, needed in zip(sources, ctx.needs_input_grad[2:5], strict=True)
        ]
        for where in student.slices():
            own = student.part(where)
            value, gradient = distance(own, teacher.part(where))
            total += value
            _add_gradients(gradients, gradient, own, where)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if source is None else source.dtype for source in sources]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times what comes from above."""
        gradients = (
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, *gradients, None, None


def _add_gradients(gradients: Sequence[Tensor | None], of_maps: Tensor, own: _Chunk, where: _Slice) -> None:
    """From the gradient G for a slice's maps to those for left (G right), right (G^T left) and an additive mask (G)."""
    for_left, for_right, for_mask = gradients
    if own.rows is not None:
        of_maps.masked_fill_(~own.rows[:, None, :, None], 0)
    if for_mask is not None:
        slot = _part(for_mask, where)
        slot += of_maps.sum_to_size(slot.shape)
    if own.right is None:
        if for_left is not None:  # one product for both
            for_left[where] = ((of_maps + of_maps.transpose(-1, -2)) @ own.left).mul_(own.scale)
        return
    if for_left is not None:
        for_left[where] = (of_maps @ own.right).mul_(own.scale)
    if for_right is not None:
        for_right[where] = (of_maps.transpose(-1, -2) @ own.left).mul_(own.scale)


def _axes(mask: Tensor | None) -> Tensor | None:
    """A mask with all four axes."""
    return None if mask is None else mask[(None,) * (4 - mask.ndim)]


def _part(mask: Tensor, where: _Slice) -> Tensor:
    """A slice of what is broadcastable to (b, A, l, l)."""
    mask = mask if mask.shape[0] == 1 else mask[where.sequences]
    mask = mask if mask.shape[1] == 1 else mask[:, where.heads]
    return mask[:, :, where.tokens, where.tokens]


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _fill(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Scores as low as can be where nothing is seen; not minus infinity, whose differences are no numbers."""
    return scores if seen is None else scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
