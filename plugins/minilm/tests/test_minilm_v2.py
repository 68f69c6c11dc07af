"""`minilm_v2` against its definition in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_minilm.minilm_v2 import MiniLMv2
from kdcore_testing import check_loss, compute_loss

import kdcore
from kdcore.signals import AttentionTap

PARTS = ("query", "key", "value")
FULL = np.ones((3, 5), dtype=bool)
RAGGED = np.arange(5) < np.array([[5], [2], [4]])

Arrays = dict[str, list[np.ndarray]]


def arrays(num_layers: int, seed: int, heads: int, width: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {part: [generator.standard_normal((3, heads, 5, width)) for _ in range(num_layers)] for part in PARTS}


def relations(states: np.ndarray, heads: int) -> np.ndarray:
    """Log probabilities (R, l, l) out of (A, l, d_k): merge, split, multiply, softmax."""
    merged = np.concatenate(list(states), axis=-1)
    split = np.stack(np.split(merged, heads, axis=-1))
    scores = split @ split.swapaxes(-1, -2) / np.sqrt(split.shape[-1])
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def expected(
    part: str, student: Arrays, teacher: Arrays, pairs: list[tuple[int, int]], heads: int, real: np.ndarray
) -> float:
    """The mean divergence over relation heads and real tokens, summed over pairs of blocks."""
    total = 0.0
    for t, s in pairs:
        rows = []
        for row, length in enumerate(real.sum(1)):
            log_p = relations(teacher[part][t][row][:, :length], heads)
            log_q = relations(student[part][s][row][:, :length], heads)
            rows.append((np.exp(log_p) * (log_p - log_q)).sum(-1).ravel())
        total += np.concatenate(rows).mean()
    return total


@pytest.mark.parametrize("real", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("layers", "pairs"),
    [("last", [(3, 1)]), ("uniform", [(1, 0), (3, 1)]), ([(0, 1), (-1, 1), (2, 0)], [(0, 1), (3, 1), (2, 0)])],
)
@pytest.mark.parametrize("heads", [None, 2, 6])
def test_it_is_its_definition_for_other_widths_and_heads(
    heads: int | None, layers: Any, pairs: list[tuple[int, int]], real: np.ndarray
) -> None:
    student, teacher = arrays(2, 1, heads=2, width=6), arrays(4, 2, heads=3, width=8)  # 12 and 24 wide
    keys = {} if heads is None else {"relation_heads": heads}
    got = compute_loss("minilm_v2", {"layers": layers, **keys}, student=student, teacher=teacher, attention_mask=real)
    terms = {part: expected(part, student, teacher, pairs, heads or 3, real) for part in PARTS}
    assert got == {name: pytest.approx(value, rel=1e-10) for name, value in (*terms.items(), ("total", got["total"]))}
    assert got["total"] == pytest.approx(sum(terms.values()), rel=1e-10)


def test_relations_have_weights_and_none_is_read_for_nothing() -> None:
    student, teacher = arrays(1, 1, 2, 6), arrays(1, 2, 3, 8)
    del student["query"], teacher["query"]
    got = compute_loss("minilm_v2", {"relations": {"query": 0, "value": 2.5}}, student=student, teacher=teacher)
    assert set(got) == {"key", "value", "total"}
    assert got["key"] == pytest.approx(expected("key", student, teacher, [(0, 0)], 3, FULL), rel=1e-10)
    assert got["value"] == pytest.approx(2.5 * expected("value", student, teacher, [(0, 0)], 3, FULL), rel=1e-10)


def test_what_holds_for_every_objective_holds() -> None:
    teacher = kdcore.ModelInfo("bert", 4, 8, 4, 2, 11, 512, False)
    student = kdcore.ModelInfo("bert", 2, 12, 2, 6, 11, 512, False)
    check_loss("minilm_v2", {"layers": "uniform"}, teacher=teacher, student=student, large=False)
    check_loss("minilm_v2", {"relation_heads": 2}, teacher=teacher, student=student)


def build(teacher: tuple[int, int], student: tuple[int, int], **keys: Any) -> MiniLMv2:
    """Build the loss; both models are given as (heads, width of a head)."""
    infos = [kdcore.ModelInfo("bert", 2, heads * width, heads, width, 11, 64, False)
             for heads, width in (teacher, student)]  # fmt: skip
    return MiniLMv2(MiniLMv2.Config(name="minilm_v2", label="mine", **keys), *infos)


def test_relation_heads_that_do_not_divide_a_width_are_told_those_that_do() -> None:
    with pytest.raises(kdcore.InputError, match=r"relation_heads: 5 .* teacher's width of 24\n  allowed: 1, 2, 3, 6$"):
        build((3, 8), (3, 6), relation_heads=5)
    with pytest.raises(kdcore.InputError, match="4 relation heads do not divide the student's width of 18"):
        build((3, 8), (3, 6), relation_heads=4)
    with pytest.raises(kdcore.InputError, match="4 relation heads, the teacher's number of heads, do not divide the s"):
        build((4, 6), (3, 6))


def test_mistakes_are_told() -> None:
    with pytest.raises(kdcore.InputError, match="relations: all relations of `minilm_v2` have weight 0"):
        build((2, 4), (2, 4), relations={"query": 0, "key": 0, "value": 0})
    with pytest.raises(kdcore.InputError, match="`embeddings` is not a block with attention"):
        build((2, 4), (2, 4), layers=[("embeddings", 0)])
    config = MiniLMv2.Config(name="minilm_v2", label="mine")
    with pytest.raises(kdcore.InputError, match="the recipe has none"):
        MiniLMv2(config, None, kdcore.ModelInfo("bert", 2, 8, 2, 4, 11, 64, False))


def test_fault_1_every_pair_of_layers_counts() -> None:
    student, teacher = arrays(2, 1, 2, 6), arrays(4, 2, 3, 8)
    got = compute_loss("minilm_v2", {"layers": [(1, 0), (3, 1)]}, student=student, teacher=teacher)
    for part in PARTS:
        both, last = (expected(part, student, teacher, pairs, 3, FULL) for pairs in ([(1, 0), (3, 1)], [(3, 1)]))
        assert got[part] == pytest.approx(both, rel=1e-10)
        assert got[part] > 1.2 * last


def test_fault_3_equal_features_in_another_number_of_heads_give_zero() -> None:
    merged = np.random.default_rng(3).standard_normal((3, 5, 12))

    def split(heads: int) -> np.ndarray:
        return merged.reshape(3, 5, heads, -1).swapaxes(1, 2)

    student, teacher = ({part: [split(heads)] for part in PARTS} for heads in (2, 3))
    for relation_heads in (1, 2, 3, 4, 12):
        got = compute_loss("minilm_v2", {"relation_heads": relation_heads}, student=student, teacher=teacher)
        assert got == pytest.approx(dict.fromkeys(got, 0.0), abs=1e-12)

    def mixed(states: np.ndarray, heads: int) -> np.ndarray:
        """As in the source: (B, A, L, d_k) viewed as (B, R, L, d_r) without merging, which mixes tokens and heads."""
        split = states.reshape(3, heads, 5, -1)[0]
        return relations(split, heads)

    log_p, log_q = mixed(split(3), 3), mixed(split(2), 3)
    assert (np.exp(log_p) * (log_p - log_q)).sum(-1).mean() > 0.1


def test_fault_3_padding_is_neither_key_nor_query() -> None:
    student, teacher = arrays(1, 1, 2, 6), arrays(1, 2, 3, 8)
    got = compute_loss("minilm_v2", {}, student=student, teacher=teacher, attention_mask=RAGGED)
    for part in PARTS:
        assert got[part] == pytest.approx(expected(part, student, teacher, [(0, 0)], 3, RAGGED), rel=1e-10)
        assert abs(got[part] - expected(part, student, teacher, [(0, 0)], 3, FULL)) > 0.01 * got[part]


def test_fault_6_fp16_sums_do_not_overflow() -> None:
    student, teacher = arrays(1, 1, 2, 6), arrays(1, 2, 3, 8)
    half, exact = [], []
    for side in (student, teacher):
        rounded = {part: [(16 * np.tile(states, (300, 1, 1, 1))).astype(np.float16) for states in blocks]
                   for part, blocks in side.items()}  # fmt: skip
        half.append(rounded)
        exact.append({part: [states.astype(np.float64) for states in blocks] for part, blocks in rounded.items()})
    got = compute_loss("minilm_v2", {}, student=half[0], teacher=half[1])
    for part in PARTS:
        reference = expected(part, exact[0], exact[1], [(0, 0)], 3, np.ones((900, 5), dtype=bool))
        assert reference * 900 * 5 * 3 > 65504, "where fp16, in which the source sums, ends"
        assert got[part] == pytest.approx(reference, rel=1e-4)


def test_a_blocks_own_window_is_respected_whatever_the_heads() -> None:
    near = np.abs(np.arange(5)[:, None] - np.arange(5)) <= 1
    student, teacher = arrays(1, 1, 2, 6), arrays(1, 2, 3, 8)
    none = torch.zeros(0, dtype=torch.int64)
    index = torch.from_numpy(np.flatnonzero(RAGGED))
    batch = kdcore.Batch(torch.zeros(3, 5), torch.from_numpy(RAGGED), RAGGED.sum(1), index, none, none)

    def signals(side: Arrays, mask: np.ndarray) -> kdcore.Signals:
        parts = (torch.from_numpy(side[part][0]) for part in PARTS)
        return kdcore.Signals(batch, {}, {0: AttentionTap(*parts, torch.from_numpy(mask), 1.0)}, {})

    window = near & RAGGED[:, None, None, :]
    bias = np.where(window, np.random.default_rng(4).standard_normal((3, 3, 5, 5)), -np.inf)  # the teacher's 3 heads
    got = build((3, 8), (2, 6), layers=[(0, 0)])(signals(student, window), signals(teacher, bias), batch)
    for part in PARTS:
        reference = 0.0
        for row, length in enumerate(RAGGED.sum(1)):
            for query in range(length):
                keys = slice(max(0, query - 1), min(length, query + 2))
                log_p, log_q = (
                    relations(side[part][0][row][:, keys], 3)[:, min(query, 1)] for side in (teacher, student)
                )
                reference += (np.exp(log_p) * (log_p - log_q)).sum()
        assert got[part].item() == pytest.approx(reference, rel=1e-10)
