"""Compute losses between score maps, such as attention scores, with only a few heads' maps in memory at once.

Maps have l x l numbers for every head of every sequence and are by far the largest tensors of an attention loss: 200 MB
in float32 for 256 sequences of 128 tokens and 12 heads. The plain formula keeps several of them until the backward
pass. Here the sum is computed over slices of sequences and heads. The gradient has a closed form in terms of the
slice's maps and is computed in the forward pass; only gradients of the size of query and key are kept. A slice is as
long as its longest sequence, so padding costs little.

The following keys contribute to the loss of a real query:

- a model's softmax is over the keys that its block attends to given padding and window (an additive mask shifts the
scores);
- the teacher's softmax is restricted to keys that both models attend to, because the student cannot learn from other
  keys. With equal masks this is the plain definition; a student with a narrower window is compared with the teacher's
  distribution within that window, which avoids an infinite divergence;
- squared differences are summed over keys that both models attend to; a query without common keys contributes 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcore.layers import at_least_float32
from kdcore.objectives import Lengths, real_lengths, require_shapes
from kdcore.signals import AttentionPart, Signals

_SLICE = 2**18
"""Elements of one model's maps in a slice: 16 maps of 128 tokens, 1 of 512; 1 MB in float32, which fits in caches."""

_LARGE_SLICE = 2**24
"""The limit on other devices, where launching small operations dominates: 64 MB in float32."""


class ScoreMaps:
    """Score maps between tokens for every head of one block, computed in slices during a comparison."""

    def __init__(self, chunks: Sequence[_Chunk]) -> None:
        self._chunks = chunks

    @classmethod
    def attention(cls, signals: Signals, block: int) -> ScoreMaps:
        """Create the attention scores of `block` before the softmax: scaled products of query and key, plus bias."""
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
    def from_tensors(
        cls, left: Tensor, right: Tensor | None = None, lengths: Lengths | None = None, *, num_heads: int | None = None
    ) -> ScoreMaps:
        """Create the maps `left @ right^T / sqrt(d_k)` from tensors.

        Args:
            left: (B, A, L, d_k), such as queries.
            right: like `left`, such as keys; None for the relations of `left` with itself.
            lengths: (B,) number of real tokens of each sequence; None if all are real.
            num_heads: as for `relations`; not applied to `right`.

        Raises:
            ValueError: the shapes, the lengths or the number of heads do not match.
        """
        fit = left.ndim == 4 and (right is None or right.shape == left.shape)
        require_shapes(fit, "equal (B, A, L, d_k)", left=left, right=right)
        divided = num_heads is None or left.shape[1] * left.shape[3] % num_heads == 0
        require_shapes(divided, f"a width A * d_k that {num_heads} heads divide", left=left)
        left = _regrouped(left, num_heads)
        rows = host = None
        if lengths is not None:
            known = real_lengths(torch.as_tensor(lengths).cpu(), left.shape[0], left.shape[2])
            rows = torch.arange(left.shape[2], device=left.device) < known.to(left.device)[:, None]
            host = known.numpy()
        return cls([_Chunk(left, right, None, rows, left.shape[-1] ** -0.5, host)])

    @property
    def num_rows(self) -> int | Tensor:
        """Number of rows of real queries, over all heads; a tensor if it is known only on the device."""
        return sum(chunk.real(1) for chunk in self._chunks)

    @property
    def num_entries(self) -> int | Tensor:
        """Number of pairs of real tokens, over all heads; a tensor if it is known only on the device."""
        return sum(chunk.real(2) for chunk in self._chunks)

    @classmethod
    def relations(
        cls,
        signals: Signals,
        part: AttentionPart,
        block: int,
        num_heads: int | None = None,
        *,
        unit: Literal["token", "aligned"] = "token",
    ) -> ScoreMaps:
        """Create the scaled dot products of query, key or value of `block` with itself: `x x^T / sqrt(head width)`.

        The keys are those that the block attends to; an additive mask only selects them, and its bias is ignored.

        Args:
            signals: signals of the student or the teacher.
            part: the projection (query, key or value).
            block: counted from 0.
            num_heads: merge the heads and split them again into this number, which must divide the width; None keeps
                them.
            unit: `aligned` relates units instead of tokens; see `Signals.unit_heads`.
        """
        chunks = []
        for heads in signals.heads(part, block) if unit == "token" else signals.unit_heads(part, block):
            states, mask = heads.states, _axes(heads.mask)
            if num_heads is not None and num_heads != states.shape[1]:
                states = _regrouped(states, num_heads)
                if mask is not None and mask.shape[1] > 1:  # new heads are parts of several old ones
                    mask = mask.amax(1, keepdim=True) if mask.is_floating_point() else mask.any(1, keepdim=True)
            scale = states.shape[-1] ** -0.5
            chunks.append(_Chunk(states, None, mask, heads.rows, scale, heads.lengths, heads.only_padding))
        return cls(chunks)

    def kl_from(self, teacher: ScoreMaps) -> Tensor:
        """Sum `KL(softmax(teacher) || softmax(self))` over heads and real queries: a scalar, float32 or float64."""
        return self._compare(_kl, teacher)

    def squared_error_from(self, teacher: ScoreMaps) -> Tensor:
        """Sum the squared difference over heads and pairs of real tokens: a scalar, float32 or float64."""
        return self._compare(_squared_error, teacher)

    def _compare(self, distance: _Distance, teacher: ScoreMaps) -> Tensor:
        sums = []
        for own, theirs in zip(self._chunks, teacher._chunks, strict=True):
            fit = own.left.shape[:3] == theirs.left.shape[:3]
            require_shapes(fit, "equal (B, A, L)", student=own.left, teacher=theirs.left)
            learning = torch.is_grad_enabled()  # not available inside autograd functions
            sums.append(
                _SumOverSlices.apply(distance, learning, own.left, own.right, own.mask, own, theirs)  # type: ignore[no-untyped-call]
            )
        return torch.stack(sums).sum()


class _Slice(NamedTuple):
    """An index into tensors with the axes (b, A, l, d)."""

    sequences: slice
    heads: slice
    tokens: slice


@dataclass(frozen=True)
class _Chunk:
    """The inputs of score maps, which are computed as `left @ right^T * scale`.

    Attributes:
        left: (b, A, l, d).
        right: like `left`; None for relations, which use `left` for both factors.
        mask: four axes, broadcastable to (b, A, l, l): bool, true where a key is attended to, or additive.
        rows: (b, l) bool, true on real tokens; None without padding.
        scale: factor applied to the products.
        lengths: (b,) on the host, number of real tokens of each sequence; None if unknown on the host.
        only_padding: whether `mask` is equivalent to `rows`.
    """

    left: Tensor
    right: Tensor | None
    mask: Tensor | None
    rows: Tensor | None
    scale: float
    lengths: np.ndarray | None = None
    only_padding: bool = False

    def slices(self) -> Iterator[_Slice]:
        """Yield slices that cover all maps, each as long as its longest sequence."""
        sequences, heads, longest, _ = self.left.shape
        numbers = _SLICE if self.left.device.type == "cpu" else _LARGE_SLICE
        maps = max(1, numbers // max(1, longest * longest))
        step, head_step = max(1, maps // heads), min(maps, heads)
        for first in range(0, sequences, step):
            chosen = slice(first, first + step)
            length = longest if self.lengths is None else max(1, int(self.lengths[chosen].max()))
            for head in range(0, heads, head_step):
                yield _Slice(chosen, slice(head, head + head_step), slice(length))

    def real(self, power: int) -> int | Tensor:
        """Sum a power of the number of real tokens over sequences and heads."""
        sequences, heads, longest, _ = self.left.shape
        if self.lengths is not None:
            return heads * int((self.lengths.astype(np.int64) ** power).sum())
        return heads * (sequences * longest**power if self.rows is None else (self.rows.sum(-1) ** power).sum())

    def part(self, where: _Slice) -> _Chunk:
        """Return one slice in at least float32; without mask and rows if it is known to have no padding."""
        full = self.lengths is not None and int(self.lengths[where.sequences].min()) >= where.tokens.stop
        return replace(
            self,
            left=at_least_float32(self.left[where]),
            right=None if self.right is None else at_least_float32(self.right[where]),
            mask=None if self.mask is None or (full and self.only_padding) else _part(self.mask, where),
            rows=None if self.rows is None or full else self.rows[where.sequences, where.tokens],
        )

    def other(self) -> Tensor:
        """Return the right factor of the product."""
        return self.left if self.right is None else self.right

    def scores(self) -> tuple[Tensor, Tensor | None]:
        """Compute the maps (b, A, l, l) and a bool mask broadcastable to them, true where keys are attended to.

        The mask is None if all keys are attended to.
        """
        scores = (self.left * self.scale) @ self.other().transpose(-1, -2)
        seen = None if self.rows is None else self.rows[:, None, None, :]
        if self.mask is not None and self.mask.is_floating_point():
            if self.right is not None:
                scores.add_(self.mask)
            # A masked key has the lowest number of the mask's precision or minus infinity.
            seen = _both(seen, self.mask > torch.finfo(self.mask.dtype).min / 2)
        elif self.mask is not None:
            seen = _both(seen, self.mask)
        return scores, seen


_Distance = Callable[[_Chunk, _Chunk], tuple[Tensor, Tensor]]
"""For one slice of student and teacher: the sum over real queries, and its gradient for the student's maps.

Rows of padding queries may contain any finite gradient.
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
    """Compute `logsumexp` of each row without further exponentials; the largest probability is at least 1 / l."""
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
    """Distance between a chunk's maps of student and teacher, with gradients computed in the forward pass."""

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
        """Return the sum; `left`, `right` and `mask` are the student's, passed separately for autograd."""
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
        """Multiply the stored gradients by the upstream gradient."""
        gradients = (
            None if gradient is None else (gradient * upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, *gradients, None, None


def _add_gradients(gradients: Sequence[Tensor | None], of_maps: Tensor, own: _Chunk, where: _Slice) -> None:
    """Add the gradients of left (G right), right (G^T left) and an additive mask (G), where G is `of_maps`."""
    for_left, for_right, for_mask = gradients
    if own.rows is not None:
        of_maps.masked_fill_(~own.rows[:, None, :, None], 0)
    if for_mask is not None:
        slot = _part(for_mask, where)
        slot += of_maps.sum_to_size(slot.shape)
    if own.right is None:
        if for_left is not None:  # one product for both factors
            for_left[where] = ((of_maps + of_maps.transpose(-1, -2)) @ own.left).mul_(own.scale)
        return
    if for_left is not None:
        for_left[where] = (of_maps @ own.right).mul_(own.scale)
    if for_right is not None:
        for_right[where] = (of_maps.transpose(-1, -2) @ own.left).mul_(own.scale)


def _regrouped(states: Tensor, num_heads: int | None) -> Tensor:
    """Merge the heads of (B, A, L, d_k) and split them again into `num_heads`."""
    if num_heads is None or num_heads == states.shape[1]:
        return states
    sequences, _, length, _ = states.shape
    return states.transpose(1, 2).reshape(sequences, length, num_heads, -1).transpose(1, 2)


def _axes(mask: Tensor | None) -> Tensor | None:
    """Add axes to a mask until it has four."""
    return None if mask is None else mask[(None,) * (4 - mask.ndim)]


def _part(mask: Tensor, where: _Slice) -> Tensor:
    """Slice a mask that is broadcastable to (b, A, l, l)."""
    mask = mask if mask.shape[0] == 1 else mask[where.sequences]
    mask = mask if mask.shape[1] == 1 else mask[:, where.heads]
    return mask[:, :, where.tokens, where.tokens]


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _fill(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Set masked scores to the lowest finite number, because differences of minus infinity would be NaN."""
    return scores if seen is None else scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
