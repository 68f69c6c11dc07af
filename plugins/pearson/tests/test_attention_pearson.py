"""`attention_pearson` against its definition in float64 NumPy, and for the faults of the authors' code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_pearson import attention_pearson
from kdcore_pearson.attention_pearson import AttentionPearson
from kdcore_testing import check_loss, compute_loss

import kdcore

FULL = np.ones((3, 5), dtype=bool)
RAGGED = np.arange(5) < np.array([5, 2, 4])[:, None]
ONE_LONG = np.arange(5) < np.array([5, 1, 2])[:, None]
AXES = {"keys": 3, "queries": 2, "heads": 1, "sequences": 0}


def draw(blocks: int = 1, heads: int = 4, width: int = 2, seed: int = 0) -> dict[str, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return {
        part: [2 * generator.standard_normal((3, heads, 5, width)) for _ in range(blocks)] for part in ("query", "key")
    }


def probabilities(side: dict[str, list[np.ndarray]], block: int, real: np.ndarray) -> np.ndarray:
    """(B, A, L, L)."""
    query, key = side["query"][block], side["key"][block]
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    powers = np.exp(scores) * real[:, None, None, :]
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def reference(own: np.ndarray, theirs: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Compute one correlation after another with NumPy."""
    entries = np.broadcast_to((real[:, None, :, None] & real[:, None, None, :]), own.shape)
    found = {}
    for term, axis in AXES.items():
        columns = [np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]) for array in (own, theirs, entries)]
        distances = []
        for p, q, chosen in zip(*columns, strict=True):
            p, q = p[chosen.astype(bool)], q[chosen.astype(bool)]
            if len(p) < (2 if term == "sequences" else 1):
                continue
            flat = [np.ptp(values) < 1e-12 for values in (p, q)]
            distances.append(float(flat[0] != flat[1]) if any(flat) else 1 - np.corrcoef(p, q)[0, 1])
        found[term] = float(np.mean(distances))
    return found


@pytest.mark.parametrize("real", [FULL, RAGGED, ONE_LONG], ids=["full", "ragged", "a single token"])
@pytest.mark.parametrize("layers", ["last", "uniform", [(3, 0), (0, 0), (-1, 1)]], ids=str)
def test_it_is_one_minus_the_mean_correlation_along_each_axis_summed_over_pairs(layers: Any, real: np.ndarray) -> None:
    student, teacher = draw(2, seed=1), draw(4, width=3, seed=2)
    found = compute_loss(
        "attention_pearson", {"layers": layers, "weight": 0.5}, student=student, teacher=teacher, attention_mask=real
    )
    pairs = {"last": [(3, 1)], "uniform": [(1, 0), (3, 1)]}.get(str(layers), layers)
    terms = [reference(probabilities(student, s, real), probabilities(teacher, t, real), real) for t, s in pairs]
    expected = {term: sum(one[term] for one in terms) for term in AXES}
    assert found == pytest.approx(expected | {"total": 0.5 * sum(expected.values())}, rel=1e-8)


def test_small_slices_give_the_same_value_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate() -> list[torch.Tensor]:
        own, theirs, batch = signals(RAGGED, seed=1), signals(RAGGED, seed=2), batch_of(RAGGED)
        sums = make()(own, theirs, batch)
        torch.stack(list(sums.values())).sum().backward()
        tap = own._attention[0]
        return [*sums.values(), tap.query.grad, tap.key.grad]

    whole = evaluate()
    for entries in (1, 60, 130):
        monkeypatch.setattr(attention_pearson, "_SLICE_ENTRIES", entries)
        for one, other in zip(evaluate(), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_chunks_of_sequences_are_put_together() -> None:
    """Correlations run across sequences, so chunks of different lengths are treated as one batch."""

    class InChunks(kdcore.Signals):
        def heads(self, part: Any, block: int) -> Iterator[Any]:
            (whole,) = super().heads(part, block)
            for rows, length in ((slice(0, 1), 5), (slice(1, 3), 4)):
                assert whole.mask is not None
                yield replace(
                    whole,
                    states=whole.states[rows, :, :length],
                    mask=whole.mask[rows, ..., :length],
                    rows=None if length == 5 else whole.rows[rows, :length],
                )

    batch = batch_of(RAGGED)
    own, theirs = signals(RAGGED, seed=1), signals(RAGGED, seed=2)
    chunked = [InChunks(batch, {}, side._attention, {}) for side in (own, theirs)]
    loss = make()
    for found, expected in zip(loss(*chunked, batch).values(), loss(own, theirs, batch).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("hidden", [False, torch.finfo(torch.float16).min, -torch.inf], ids=str)
def test_a_blocks_own_window_is_part_of_its_probabilities(hidden: float) -> None:
    """The mask is bool or additive, as in fp16 models; keys outside of the window have probability 0 on both sides."""
    near = np.abs(np.arange(5)[:, None] - np.arange(5)) <= 1
    if hidden is False:
        mask = torch.from_numpy(near)[None, None] & torch.from_numpy(RAGGED)[:, None, None, :]
    else:
        additive = torch.zeros(3, 1, 5, 5, dtype=torch.float16)
        mask = additive.masked_fill(~torch.from_numpy(near & RAGGED[:, None, None, :]), hidden)
    sides = [signals(RAGGED, seed, mask) for seed in (1, 2)]
    batch = batch_of(RAGGED)
    loss = make()
    sums, counts = loss(*sides, batch), loss.counts(batch)
    windowed = []
    for side in sides:
        tap = side._attention[0]
        scores = (tap.query @ tap.key.transpose(-1, -2)).detach().numpy() / np.sqrt(2)
        powers = np.exp(scores) * near * RAGGED[:, None, None, :]
        with np.errstate(invalid="ignore"):
            windowed.append(powers / powers.sum(-1, keepdims=True))
    found = {term: value.item() / counts[term] for term, value in sums.items()}
    assert found == pytest.approx(reference(*windowed, RAGGED), rel=1e-8)
    torch.stack(list(sums.values())).sum().backward()
    assert torch.isfinite(sides[0]._attention[0].query.grad).all()


def test_a_side_without_variance_correlates_with_another_such_and_with_nothing_else() -> None:
    uniform = {part: [np.zeros((3, 4, 5, 2))] for part in ("query", "key")}
    same = compute_loss("attention_pearson", student=uniform, teacher=uniform, attention_mask=RAGGED)
    assert same == dict.fromkeys([*AXES, "total"], 0.0)
    other = compute_loss("attention_pearson", student=uniform, teacher=draw(), attention_mask=FULL)
    assert other == pytest.approx(dict.fromkeys(AXES, 1.0) | {"total": 4.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equal_rows_that_rounding_makes_unequal_have_no_variance(dtype: torch.dtype) -> None:
    """With equal keys, every probability is 1/5 except for the last digit, and noise must not be correlated."""
    own, theirs = (signals(FULL, seed) for seed in (1, 2))
    for side in (own, theirs):
        tap = side._attention[0]
        side._attention = {
            0: replace(tap, query=tap.query.to(dtype), key=tap.key[:, :, :1].expand_as(tap.key).to(dtype))
        }
    sums = make()(own, theirs, batch_of(FULL))
    assert sums["keys"] == 0
    assert sums["queries"] == 0


def test_different_head_numbers_are_told_with_the_loss_that_takes_them() -> None:
    with pytest.raises(kdcore.InputError, match=r"the teacher has 4 and the student 2") as caught:
        compute_loss("attention_pearson", student=draw(heads=2), teacher=draw(heads=4))
    assert "minilm_v2" in str(caught.value)


def test_a_single_sequence_has_no_correlation_along_sequences() -> None:
    student, teacher = ({part: [arrays[0][:1]] for part, arrays in draw(seed=seed).items()} for seed in (1, 2))
    assert compute_loss("attention_pearson", student=student, teacher=teacher)["sequences"] == 0


def test_what_must_hold_for_every_objective_holds() -> None:
    check_loss("attention_pearson")
    wide = kdcore.ModelInfo("bert", 4, 16, 4, 4, 11, 512)
    check_loss("attention_pearson", {"layers": "uniform"}, teacher=wide, large=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_fault_7_identical_models_give_0_and_padding_no_nan_in_any_precision(dtype: torch.dtype) -> None:
    """The authors correlate whole padded rows, whose variance is 0 or underflows, and add an epsilon below."""
    attention = torch.from_numpy(probabilities(draw(), 0, ONE_LONG)).half()
    attention[1, :, 1:] = attention[1, :, :1] = 0  # a fused kernel's padding
    centred = attention - attention.mean(-1, keepdim=True)
    faulty = (centred * centred).sum(-1) / (centred.norm(dim=-1) * centred.norm(dim=-1) + 1e-8)
    assert faulty.isnan().any()
    correlations = ((centred.float() ** 2).sum(-1) / (centred.float().norm(dim=-1) ** 2 + 1e-8)).mean()
    assert correlations < 0.9, "1 - r of identical models, by the faulty formula, is above 0"
    own, theirs, batch = signals(ONE_LONG, seed=1), signals(ONE_LONG, seed=1), batch_of(ONE_LONG)
    for side in (own, theirs):
        tap = side._attention[0]
        parts = {part: 30 * getattr(tap, part).detach().to(dtype) for part in ("query", "key")}
        side._attention = {0: replace(tap, **{part: value.requires_grad_() for part, value in parts.items()})}
    for reversed_heads in (False, True):
        if reversed_heads:  # and where models differ, values and gradients are numbers
            tap = theirs._attention[0]
            theirs._attention = {0: replace(tap, query=tap.query.detach().flip(1), key=tap.key.detach().flip(1))}
        total = torch.stack(list(make()(own, theirs, batch).values())).sum()
        total.backward()
        assert torch.isfinite(total)
        assert (total == 0) != reversed_heads
        assert torch.isfinite(own._attention[0].query.grad).all()


def make() -> AttentionPearson:
    info = kdcore.ModelInfo("bert", 1, 8, 4, 2, 11, 512)
    return AttentionPearson(AttentionPearson.Config(name="attention_pearson", label="mine"), info, info)


def batch_of(real: np.ndarray) -> kdcore.Batch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return kdcore.Batch(
        input_ids=torch.zeros(real.shape, dtype=torch.int64),
        attention_mask=torch.from_numpy(real),
        lengths=real.sum(1),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=nothing,
        masked_labels=nothing,
    )


def signals(real: np.ndarray, seed: int, mask: torch.Tensor | None = None) -> kdcore.Signals:
    from kdcore.signals import AttentionTap

    query, key = (torch.from_numpy(arrays[0]).requires_grad_() for arrays in draw(seed=seed).values())
    mask = torch.from_numpy(real)[:, None, None, :] if mask is None else mask
    return kdcore.Signals(batch_of(real), {}, {0: AttentionTap(query, key, query, mask, 2**-0.5)}, {})
