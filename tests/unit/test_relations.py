"""Losses between score maps, slice by slice, against the plain formula with whole maps and autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore import relations
from kdcore.relations import ScoreMaps
from kdcore.signals import AttentionTap, Batch, Signals

LENGTHS = np.array([9, 3, 5, 9, 1])
LENGTH, HEADS, WIDTH = 9, 4, 6
REAL = torch.from_numpy(np.arange(LENGTH) < LENGTHS[:, None])
DISTANCE = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
PADDING = REAL[:, None, None, :]

Plain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def window(reach: int) -> Tensor:
    """As blocks with a window have it: (B, 1, L, L)."""
    return PADDING & (reach >= DISTANCE)


def additive(seen: Tensor, lowest: float) -> Tensor:
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, lowest)


def a_bias() -> Tensor:
    """As a block with position bias has it: (B, A, L, L), with gradient."""
    bias = torch.randn(1, HEADS, LENGTH, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return bias.where(PADDING, torch.finfo(torch.float64).min).requires_grad_()


MASKS: dict[str, Callable[[], tuple[Tensor | None, Tensor | None]]] = {
    "none": lambda: (None, None),
    "padding": lambda: (PADDING, PADDING),
    "two axes": lambda: (DISTANCE <= 2, DISTANCE <= 2),
    "equal windows": lambda: (window(2), window(2)),
    "a wider student": lambda: (window(4), window(1)),
    "a narrower student": lambda: (window(1), window(4)),
    "minus infinity on both sides": lambda: (additive(window(1), -torch.inf), additive(window(3), -torch.inf)),
    "the lowest number against bool": lambda: (additive(window(2), torch.finfo(torch.float64).min), window(2)),
    "a learned bias": lambda: (a_bias(), a_bias().detach() / 2),
}


def tap(mask: Tensor | None, scale: float, seed: int, dtype: torch.dtype, heads: int = HEADS) -> AttentionTap:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(len(LENGTHS), LENGTH, heads, WIDTH, generator=generator).to(dtype) for _ in range(3)]
    query, key, value = (part.transpose(1, 2).detach().requires_grad_() for part in parts)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype) if mask.dtype != dtype else mask
    return AttentionTap(query, key, value, mask, scale)


def signals(one: AttentionTap) -> Signals:
    empty = torch.zeros(0, dtype=torch.int64)
    index = torch.from_numpy(np.flatnonzero(REAL.numpy()))
    return Signals(Batch(empty.view(5, 0), REAL, LENGTHS, index, empty, empty), {}, {0: one}, {})


def seen_by(mask: Tensor | None) -> Tensor:
    """(B, A, L, L) bool: what a block sees, padding never."""
    if mask is None:
        mask = torch.ones(1, dtype=torch.bool)
    elif mask.is_floating_point():
        mask = mask > -1e30
    return (mask & PADDING).expand(len(LENGTHS), HEADS, LENGTH, LENGTH)


def biased(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or not mask.is_floating_point():
        return scores
    return scores + mask.masked_fill(mask < -1e30, 0)


def plain_kl(own: Tensor, theirs: Tensor, own_seen: Tensor, their_seen: Tensor) -> Tensor:
    """KL over whole maps; the teacher's keys are those that the student sees, too."""
    common = own_seen & their_seen
    log_q = own.masked_fill(~own_seen, -1e30).log_softmax(-1)
    log_p = theirs.masked_fill(~common, -1e30).log_softmax(-1)
    counted = common & REAL[:, None, :, None]
    return torch.where(counted, log_p.exp() * (log_p - log_q), 0).sum()


def plain_squares(own: Tensor, theirs: Tensor, own_seen: Tensor, their_seen: Tensor) -> Tensor:
    return torch.where(own_seen & their_seen & REAL[:, None, :, None], (own - theirs) ** 2, 0).sum()


@pytest.fixture(params=[1, 200, 2**20], ids=["a map a slice", "some heads a slice", "all in a slice"])
def size_of_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "_SLICE", request.param)


def assert_same(lean: Tensor, plain: Tensor, sources: list[Tensor], dtype: torch.dtype) -> None:
    rtol, atol = {torch.float64: (1e-10, 1e-12), torch.float32: (1e-5, 2e-6)}[dtype]
    torch.testing.assert_close(lean, plain, rtol=rtol, atol=atol)
    for ours, theirs in zip(
        torch.autograd.grad(3 * lean, sources), torch.autograd.grad(3 * plain, sources), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("distance", ["kl", "squares"])
@pytest.mark.usefixtures("size_of_slices")
def test_attention_has_the_plain_formulas_value_and_gradients(distance: str, masks: str, dtype: torch.dtype) -> None:
    own_mask, their_mask = MASKS[masks]()
    student, teacher = tap(own_mask, 0.4, 1, dtype), tap(their_mask, 0.3, 2, dtype)
    own, theirs = (ScoreMaps.attention(signals(side), 0) for side in (student, teacher))
    lean = own.kl_from(theirs) if distance == "kl" else own.squared_error_from(theirs)
    maps = [biased(side.query @ side.key.mT * side.scale, side.mask) for side in (student, teacher)]
    compare = plain_kl if distance == "kl" else plain_squares
    plain = compare(*maps, seen_by(own_mask), seen_by(their_mask))
    sources = [student.query, student.key]
    if own_mask is not None and own_mask.requires_grad:
        sources.append(own_mask)
    assert_same(lean, plain, sources, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("masks", ["none", "padding", "a narrower student", "a learned bias"])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.usefixtures("size_of_slices")
def test_relations_have_the_plain_formulas_value_and_gradients(part: str, masks: str, dtype: torch.dtype) -> None:
    own_mask, their_mask = MASKS[masks]()
    student, teacher = tap(own_mask, 9.0, 1, dtype), tap(their_mask, 9.0, 2, dtype)
    lean = ScoreMaps.relations(signals(student), part, 0).kl_from(ScoreMaps.relations(signals(teacher), part, 0))
    maps = [states @ states.mT / WIDTH**0.5 for states in (getattr(student, part), getattr(teacher, part))]
    plain = plain_kl(*maps, seen_by(own_mask), seen_by(their_mask))
    assert_same(lean, plain, [getattr(student, part)], dtype)


def test_merged_and_split_heads_are_the_columns_of_the_merged_states() -> None:
    student, teacher = tap(window(2), 1.0, 1, torch.float64), tap(a_bias().detach(), 1.0, 2, torch.float64)
    maps = [ScoreMaps.relations(signals(side), "key", 0, 8) for side in (student, teacher)]
    lean = maps[0].kl_from(maps[1])
    wide = [side.key.transpose(1, 2).flatten(2) for side in (student, teacher)]
    plain = torch.zeros((), dtype=torch.float64)
    for head in range(8):
        own, theirs = (states[..., 3 * head : 3 * head + 3] for states in wide)
        scores = [(states @ states.mT / 3**0.5)[:, None] for states in (own, theirs)]
        plain = plain + plain_kl(*scores, window(2), PADDING.expand(5, 1, LENGTH, LENGTH))
    assert_same(lean, plain, [student.key], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_gradients_come_back_in_its_own(dtype: torch.dtype) -> None:
    student, teacher = tap(PADDING, 0.4, 1, dtype), tap(PADDING, 0.3, 2, dtype)
    lean = ScoreMaps.attention(signals(student), 0).kl_from(ScoreMaps.attention(signals(teacher), 0))
    assert lean.dtype == torch.float32
    maps = [side.query.float() @ side.key.float().mT * side.scale for side in (student, teacher)]
    plain = plain_kl(*maps, seen_by(PADDING), seen_by(PADDING))
    torch.testing.assert_close(lean, plain, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(lean, student.query)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, student.query)[0])


def test_a_query_with_no_key_in_common_adds_nothing_and_no_nan() -> None:
    apart = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    apart[2] = DISTANCE[2] <= 0
    other = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    other[2] = DISTANCE[2] == 1
    student, teacher = tap(apart, 0.4, 1, torch.float64), tap(additive(other, -torch.inf), 0.3, 2, torch.float64)
    lean = ScoreMaps.attention(signals(student), 0).kl_from(ScoreMaps.attention(signals(teacher), 0))
    (gradient,) = torch.autograd.grad(lean, student.query)
    assert torch.isfinite(lean)
    assert not gradient[:, :, 2].any()
    assert gradient[0, :, 3].any()


def test_only_what_learns_gets_a_gradient() -> None:
    student, teacher = tap(PADDING, 0.4, 1, torch.float64), tap(PADDING, 0.3, 2, torch.float64)
    student.key.requires_grad_(False)
    ScoreMaps.attention(signals(student), 0).kl_from(ScoreMaps.attention(signals(teacher), 0)).backward()
    assert student.query.grad is not None
    assert student.key.grad is None
    assert teacher.query.grad is None
    assert teacher.key.grad is None


class Recorder(TorchDispatchMode):
    """Notes the largest tensor that any operation makes; views count as what they show."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        self.products += "bmm" in str(function)
        return result


@pytest.mark.parametrize("kind", ["attention", "relations"])
def test_no_more_than_a_slice_of_maps_exists_at_a_time(kind: str) -> None:
    """96 sequences, 12 heads and 128 tokens have 1,152 maps; a slice has 12."""
    generator = torch.Generator().manual_seed(0)
    real = torch.ones(96, 128, dtype=torch.bool)
    batch = Batch(torch.zeros(96, 128), real, np.full(96, 128), torch.zeros(96 * 128), torch.zeros(0), torch.zeros(0))

    def make() -> tuple[AttentionTap, Signals]:
        query, key = (torch.randn(96, 12, 128, 4, generator=generator).requires_grad_() for _ in range(2))
        own = AttentionTap(query, key, key, real[:, None, None, :], 0.5)
        return own, Signals(batch, {}, {0: own}, {})

    (student, own), (_, theirs) = make(), make()
    with Recorder() as lean:
        if kind == "attention":
            value = ScoreMaps.attention(own, 0).kl_from(ScoreMaps.attention(theirs, 0))
        else:
            value = ScoreMaps.relations(own, "query", 0).kl_from(ScoreMaps.relations(theirs, "query", 0))
        value.backward()
    with Recorder() as plain:
        (student.query @ student.key.mT).log_softmax(-1).sum().backward()
    assert plain.largest == 96 * 12 * 128 * 128
    assert lean.largest <= max(relations._SLICE, student.query.numel()) < plain.largest / 16
    assert lean.products <= 96 * 4, "and slices are large: a step is not a loop over heads"


def test_validation_computes_no_gradients() -> None:
    student, teacher = tap(PADDING, 0.4, 1, torch.float64), tap(PADDING, 0.3, 2, torch.float64)
    own, theirs = (ScoreMaps.attention(signals(side), 0) for side in (student, teacher))
    with torch.no_grad(), Recorder() as quiet:
        value = own.kl_from(theirs)
    with Recorder() as learning:
        own.kl_from(theirs)
    assert not value.requires_grad
    assert (quiet.products, learning.products) == (2, 4)
