"""The attention objectives against their definitions in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import check_loss, compute_loss

import kdcore
from kdcore.signals import AttentionTap

NAMES = ("attention_kl", "attention_mse", "value_relation_kl")
PARTS = ("query", "key", "value")
FULL = np.ones((3, 5), dtype=bool)
RAGGED = np.arange(5) < np.array([[5], [2], [4]])

Arrays = dict[str, list[np.ndarray]]


def arrays(num_layers: int, seed: int, heads: int = 2, width: int = 4) -> Arrays:
    generator = np.random.default_rng(seed)
    return {part: [generator.standard_normal((3, heads, 5, width)) for _ in range(num_layers)] for part in PARTS}


def log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def kl(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return the divergence of rows."""
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def attention(side: Arrays, block: int, sequence: int, length: int) -> np.ndarray:
    """Scores (A, l, l) between the real tokens of one sequence."""
    query, key = (side[part][block][sequence][:, :length] for part in ("query", "key"))
    return query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])


def value_relations(side: Arrays, block: int, sequence: int, length: int) -> np.ndarray:
    value = side["value"][block][sequence][:, :length]
    return value @ value.swapaxes(-1, -2) / np.sqrt(value.shape[-1])


def squares(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    return (student - teacher) ** 2


REFERENCES: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "attention_kl": (attention, kl),
    "attention_mse": (attention, squares),
    "value_relation_kl": (value_relations, kl),
}


def expected(name: str, student: Arrays, teacher: Arrays, pairs: list[tuple[int, int]], real: np.ndarray) -> float:
    """The definition: the mean over heads and queries (or pairs of tokens), summed over pairs of blocks."""
    scores, distance = REFERENCES[name]
    total = 0.0
    for t, s in pairs:
        items = [
            distance(scores(teacher, t, row, length), scores(student, s, row, length)).ravel()
            for row, length in enumerate(real.sum(1))
        ]
        total += np.concatenate(items).mean()
    return total


@pytest.mark.parametrize("real", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("layers", "pairs"),
    [("last", [(3, 1)]), ("uniform", [(1, 0), (3, 1)]), ([(0, 1), (-1, 1), (2, 0)], [(0, 1), (3, 1), (2, 0)])],
)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_its_definition(name: str, layers: Any, pairs: list[tuple[int, int]], real: np.ndarray) -> None:
    student, teacher = arrays(2, 1), arrays(4, 2)
    got = compute_loss(name, {"layers": layers}, student=student, teacher=teacher, attention_mask=real)
    reference = expected(name, student, teacher, pairs, real)
    assert got == {name: pytest.approx(reference, rel=1e-10), "total": pytest.approx(reference, rel=1e-10)}


@pytest.mark.parametrize("name", NAMES)
def test_widths_may_differ(name: str) -> None:
    student, teacher = arrays(2, 1, width=3), arrays(4, 2, width=8)
    got = compute_loss(name, {}, student=student, teacher=teacher, attention_mask=RAGGED)
    assert got[name] == pytest.approx(expected(name, student, teacher, [(3, 1)], RAGGED), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_for_every_objective_holds(name: str) -> None:
    check_loss(name, {"layers": "uniform"}, large=False)
    check_loss(name, {})


def info(num_layers: int = 4, heads: int = 4) -> kdcore.ModelInfo:
    return kdcore.ModelInfo("bert", num_layers, 8, heads, 8 // heads, 11, 64)


def loss_class(name: str) -> Any:
    from kdcore_attention import losses

    return {"attention_kl": losses.AttentionKL, "attention_mse": losses.AttentionMSE}.get(name, losses.ValueRelationKL)


def build(name: str, teacher: kdcore.ModelInfo | None, student: kdcore.ModelInfo, **keys: Any) -> kdcore.Loss:
    cls = loss_class(name)
    return cls(cls.Config(name=name, label="mine", **keys), teacher, student)


@pytest.mark.parametrize("name", NAMES)
def test_other_numbers_of_heads_are_an_error_that_names_minilm_v2(name: str) -> None:
    with pytest.raises(kdcore.InputError, match=r"the teacher has 4 and the student 2\n.*`minilm_v2`"):
        build(name, info(heads=4), info(2, heads=2))


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_have_no_attention(name: str) -> None:
    with pytest.raises(
        kdcore.InputError, match=r"layers: `embeddings` is not a block with attention\n.*0 to 3 of the teacher"
    ):
        build(name, info(4), info(2), layers=[("embeddings", "embeddings")])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_without_teacher_is_told(name: str) -> None:
    with pytest.raises(kdcore.InputError, match="the recipe has none"):
        build(name, None, info(2))


def test_it_asks_for_no_more_than_it_reads() -> None:
    asked = build("attention_kl", info(4), info(2), layers="uniform").requests()
    assert asked.teacher == kdcore.Signals.attention(("query", "key"), (1, 3))
    assert asked.student == kdcore.Signals.attention(("query", "key"), (0, 1))
    asked = build("value_relation_kl", info(4), info(2)).requests()
    assert asked.teacher == kdcore.Signals.attention(("value",), (3,))


# A block's own mask


def batch(real: np.ndarray) -> kdcore.Batch:
    none = torch.zeros(0, dtype=torch.int64)
    index = torch.from_numpy(np.flatnonzero(real))
    return kdcore.Batch(torch.zeros(real.shape), torch.from_numpy(real), real.sum(1), index, none, none)


def tapped(side: Arrays, real: np.ndarray, mask: np.ndarray, scale: float) -> kdcore.Signals:
    parts = (torch.from_numpy(side[part][0]) for part in PARTS)
    return kdcore.Signals(batch(real), {}, {0: AttentionTap(*parts, torch.from_numpy(mask), scale)}, {})


@pytest.mark.parametrize("form", ["bool", "additive"])
@pytest.mark.parametrize("name", NAMES)
def test_a_blocks_own_window_and_scale_are_respected(name: str, form: str) -> None:
    """Every other block of ModernBERT attends to a window only; keys outside of it are ignored."""
    near = np.abs(np.arange(5)[:, None] - np.arange(5)) <= 1
    mask = near & RAGGED[:, None, None, :]
    student, teacher = arrays(1, 1), arrays(1, 2)
    given = mask if form == "bool" else np.where(mask, 0.0, -np.inf)
    signals = [tapped(side, RAGGED, given, 0.7) for side in (student, teacher)]
    loss = build(name, info(1, 2), info(1, 2))
    got = loss(*signals, batch(RAGGED))[name].item()
    scores, distance = REFERENCES[name]
    reference = whole = 0.0
    factor = 1.0 if name == "value_relation_kl" else 0.7 * 2  # the block's scale instead of 1 / sqrt(4)
    for row, length in enumerate(RAGGED.sum(1)):
        maps = [factor * scores(side, 0, row, length) for side in (teacher, student)]
        whole += distance(*maps).sum()
        for query in range(length):
            keys = slice(max(0, query - 1), min(length, query + 2))
            reference += distance(*(one[:, query, keys] for one in maps)).sum()
    assert got == pytest.approx(reference, rel=1e-10)
    assert abs(got - whole) > 0.01 * whole


def test_a_bias_belongs_to_attention_scores_and_not_to_relations() -> None:
    """MPNet adds a position bias to the scores of every block."""
    bias = np.random.default_rng(5).standard_normal((1, 2, 5, 5))
    student, teacher = arrays(1, 1), arrays(1, 2)
    signals = [tapped(student, FULL, bias, 0.5), tapped(teacher, FULL, np.zeros((1, 2, 5, 5)), 0.5)]
    for name, shift in (("attention_kl", bias[0]), ("attention_mse", bias[0]), ("value_relation_kl", 0.0)):
        scores, distance = REFERENCES[name]
        reference = sum(
            distance(scores(teacher, 0, row, 5), scores(student, 0, row, 5) + shift).sum() for row in range(3)
        )
        got = build(name, info(1, 2), info(1, 2))(*signals, batch(FULL))[name].item()
        assert got == pytest.approx(reference, rel=1e-10)


# Faults of the source


@pytest.mark.parametrize("name", NAMES)
def test_fault_1_every_pair_of_layers_counts_and_lists_that_do_not_pair_are_errors(name: str) -> None:
    student, teacher = arrays(2, 1), arrays(4, 2)
    got = compute_loss(name, {"layers": [(1, 0), (3, 1)]}, student=student, teacher=teacher)[name]
    only_last = expected(name, student, teacher, [(3, 1)], FULL)
    cut_to_the_shorter_list = expected(name, student, teacher, list(zip([1, 3], [0], strict=False)), FULL)
    assert got == pytest.approx(expected(name, student, teacher, [(1, 0), (3, 1)], FULL), rel=1e-10)
    assert got > 1.2 * only_last
    assert got > 1.2 * cut_to_the_shorter_list
    with pytest.raises(ValueError, match="layers"):
        build(name, info(4), info(2), layers=[(1, 0), (3,)])
    with pytest.raises(kdcore.InputError, match="`uniform` requires a multiple of the student's"):
        build(name, info(5), info(2), layers="uniform")


def test_fault_4_value_relations_take_each_sides_own_width_of_a_head() -> None:
    student, teacher = arrays(1, 1, width=4), arrays(1, 2, width=16)
    got = compute_loss("value_relation_kl", {}, student=student, teacher=teacher)["value_relation_kl"]
    assert got == pytest.approx(expected("value_relation_kl", student, teacher, [(0, 0)], FULL), rel=1e-10)
    with_the_students = np.mean(
        [
            kl(value_relations(teacher, 0, row, 5) * np.sqrt(16 / 4), value_relations(student, 0, row, 5))
            for row in range(3)
        ]
    )
    assert abs(got - with_the_students) > 0.1 * got
    # Values repeated four times have products four times as large and twice the root of the width; half gives the same.
    repeated = {"value": [np.tile(student["value"][0], 4) / np.sqrt(2)]}
    assert compute_loss("value_relation_kl", {}, student=student, teacher=repeated)["value_relation_kl"] < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_fault_6_fp16_sums_do_not_overflow(name: str) -> None:
    student, teacher = arrays(1, 1), arrays(1, 2)
    halves = [
        {part: [(16 * array).astype(np.float16) for array in blocks] for part, blocks in side.items()}
        for side in (student, teacher)
    ]
    singles = [
        {part: [array.astype(np.float64) for array in blocks] for part, blocks in side.items()} for side in halves
    ]
    items = [
        REFERENCES[name][1](*(REFERENCES[name][0](side, 0, row, 5) for side in (singles[1], singles[0])))
        for row in range(3)
    ]
    many = np.tile(np.concatenate(items, axis=None), 40)
    with np.errstate(over="ignore"):
        assert np.isinf(many.astype(np.float16).sum(dtype=np.float16)), "as the source sums"
    repeated = [
        {part: [np.tile(array, (40, 1, 1, 1)) for array in blocks] for part, blocks in side.items()} for side in halves
    ]
    got = compute_loss(name, {}, student=repeated[0], teacher=repeated[1])[name]
    assert got == pytest.approx(many.mean(), rel=1e-4)


def test_fault_6_a_student_that_is_confidently_wrong_has_a_gradient() -> None:
    """Clamped at 1e-7, as in the source, a probability that is far too low is a constant."""
    length = 2
    query = torch.full((1, 1, length, 1), 30.0, dtype=torch.float64, requires_grad=True)
    key = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(1, 1, length, 1)
    wrong = AttentionTap(query, key, key, None, 1.0)
    right = AttentionTap(query.detach(), -key, key, None, 1.0)
    own = batch(np.ones((1, length), dtype=bool))
    sides = [kdcore.Signals(own, {}, {0: tap}, {}) for tap in (wrong, right)]
    total = build("attention_kl", info(1, 1), info(1, 1))(*sides, own)["attention_kl"]
    (gradient,) = torch.autograd.grad(total, query)
    assert gradient.flatten().tolist() == pytest.approx([2.0, 2.0])
    p = (query.detach() @ -key.mT).softmax(-1)
    clamped = (p * (p.clamp(min=1e-7).log() - (query @ key.mT).softmax(-1).clamp(min=1e-7).log())).sum()
    assert torch.autograd.grad(clamped, query)[0].abs().max() < 1e-6
