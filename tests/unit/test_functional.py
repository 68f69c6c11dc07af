"""`kdcore.functional` against float64 NumPy, and against the losses of the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import compute_loss

import kdcore
from kdcore.registry import losses

B, L, HEADS, WIDTH, CLASSES = 3, 5, 2, 8, 7
LENGTHS = np.array([5, 2, 4])
REAL = np.arange(L) < LENGTHS[:, None]
GENERATOR = np.random.default_rng(11)


def array(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


def tensor(value: np.ndarray) -> torch.Tensor:
    return torch.tensor(value)


HIDDEN = [array(B, L, WIDTH) for _ in range(2)]  # of student and teacher
QUERY, KEY, VALUE = ([array(B, HEADS, L, WIDTH // HEADS) for _ in range(2)] for _ in range(3))
LOGITS = [array(B, L, CLASSES) for _ in range(2)]
TOKENS = np.where(REAL & (GENERATOR.random((B, L)) < 0.6), GENERATOR.integers(0, CLASSES, (B, L)), -100)
SCORES = [array(B, CLASSES) for _ in range(2)]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    own, theirs = log_softmax(student), log_softmax(teacher)
    return (np.exp(theirs) * (theirs - own)).sum(-1)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def over_sequences(distance: Callable[[np.ndarray, np.ndarray], Any], own: Any, theirs: Any) -> float:
    """Sum a distance of the score maps (A, l, l) of each sequence, cut to its real tokens."""
    total = 0.0
    for sequence, length in enumerate(LENGTHS):
        maps = []
        for left, right in (own, theirs):
            x, y = left[sequence, :, :length], right[sequence, :, :length]
            maps.append(x @ y.transpose(0, 2, 1) / np.sqrt(x.shape[-1]))
        total += distance(*maps).sum()
    return total


def mean_of_correlations(own: np.ndarray, theirs: np.ndarray, axis: int) -> tuple[float, int]:
    """Sum `1 - r` along an axis of probabilities (B, A, L, L), over real entries, and count correlations."""
    used = np.broadcast_to(REAL[:, None, :, None] & REAL[:, None, None, :], own.shape)
    moved = [np.moveaxis(one, axis, -1).reshape(-1, own.shape[axis]) for one in (own, theirs, used)]
    total, count = 0.0, 0
    for one, other, real in zip(*moved, strict=True):
        chosen = real.astype(bool)
        if chosen.sum() > (1 if axis == 0 else 0):
            total += 1 - np.corrcoef(one[chosen], other[chosen])[0, 1]
            count += 1
    return total, count


def probabilities(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    return np.exp(log_softmax(np.where(REAL[:, None, None, :], scores, -1e30)))


def pearson(axis: int) -> Callable[[], tuple[float, int]]:
    return lambda: mean_of_correlations(probabilities(QUERY[0], KEY[0]), probabilities(QUERY[1], KEY[1]), axis)


def both(values: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor(values[0]), tensor(values[1])


N = int(LENGTHS.sum())
PAIRS = int((LENGTHS**2).sum())
F = kdcore.functional
WEIGHT = array(WIDTH, WIDTH)
IDS = np.array([1, 4, 2])
LABELLED = TOKENS != -100
lengths = tensor(LENGTHS)
attention = [tuple(map(tensor, pair)) for pair in zip(QUERY, KEY, strict=True)]

Reference = Callable[[], tuple[float, int]]
CASES: dict[str, tuple[Callable[[], Any], Reference]] = {
    "hidden_mse": (
        lambda: F.hidden_mse(*both(HIDDEN), lengths),
        lambda: (((HIDDEN[0] - HIDDEN[1])[REAL] ** 2).sum(), N * WIDTH),
    ),
    "hidden_mse_cls": (
        lambda: F.hidden_mse_cls(*both([one[:, 0] for one in HIDDEN])),
        lambda: (((HIDDEN[0] - HIDDEN[1])[:, 0] ** 2).sum(), B * WIDTH),
    ),
    "hidden_cosine": (
        lambda: F.hidden_cosine(*both(HIDDEN), lengths),
        lambda: ((1 - (unit(HIDDEN[0]) * unit(HIDDEN[1])).sum(-1))[REAL].sum(), N),
    ),
    "hidden_pkd": (
        lambda: F.hidden_pkd(*both([one[:, 0] for one in HIDDEN])),
        lambda: (((unit(HIDDEN[0]) - unit(HIDDEN[1]))[:, 0] ** 2).sum(), B),
    ),
    "hidden_mse_concat": (
        lambda: F.hidden_mse_concat([tensor(HIDDEN[0])], [tensor(HIDDEN[1])], tensor(WEIGHT), lengths),
        lambda: (((HIDDEN[0] @ WEIGHT.T - HIDDEN[1])[REAL] ** 2).sum(), N * WIDTH),
    ),
    "attention_kl": (
        lambda: F.attention_kl(*attention, lengths),
        lambda: (over_sequences(kl, (QUERY[0], KEY[0]), (QUERY[1], KEY[1])), HEADS * N),
    ),
    "attention_mse": (
        lambda: F.attention_mse(*attention, lengths),
        lambda: (
            over_sequences(lambda own, theirs: (own - theirs) ** 2, (QUERY[0], KEY[0]), (QUERY[1], KEY[1])),
            HEADS * PAIRS,
        ),
    ),
    "value_relation_kl": (
        lambda: F.value_relation_kl(*both(VALUE), lengths),
        lambda: (over_sequences(kl, (VALUE[0], VALUE[0]), (VALUE[1], VALUE[1])), HEADS * N),
    ),
    "minilm_v2": (
        lambda: F.minilm_v2(*both(VALUE), lengths),
        lambda: (over_sequences(kl, (VALUE[0], VALUE[0]), (VALUE[1], VALUE[1])), HEADS * N),
    ),
    "masked_lm": (
        lambda: F.masked_lm(tensor(LOGITS[0]), tensor(TOKENS)),
        lambda: (
            -np.take_along_axis(log_softmax(LOGITS[0])[LABELLED], TOKENS[LABELLED][:, None], -1).sum(),
            int(LABELLED.sum()),
        ),
    ),
    "soft_targets": (
        lambda: F.soft_targets(*both(LOGITS), lengths, temperature=2.0),
        lambda: (4 * kl(LOGITS[0] / 2, LOGITS[1] / 2)[REAL].sum(), N),
    ),
    "classification": (
        lambda: F.classification(tensor(SCORES[0]), tensor(IDS)),
        lambda: (-np.take_along_axis(log_softmax(SCORES[0]), IDS[:, None], -1).sum(), B),
    ),
    "contrastive": (
        lambda: F.contrastive(*embeddings()[0], *embeddings()[1], temperature=0.5),
        lambda: contrastive_reference(),
    ),
    **{
        f"attention_pearson/{term}": (
            lambda term=term: F.attention_pearson(*attention, lengths)[term],
            pearson(axis),
        )
        for term, axis in (("keys", 3), ("queries", 2), ("heads", 1), ("sequences", 0))
    },
}


def embeddings() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = np.random.default_rng(5)
    own = [tensor(unit(generator.standard_normal((B, 4)))) for _ in range(2)]
    return own, [tensor(unit(generator.standard_normal((B, 6, 4)))) for _ in range(2)]


def contrastive_reference() -> tuple[float, int]:
    (student, teacher), (own_memory, their_memory) = ([one.numpy() for one in side] for side in embeddings())
    total = 0.0
    for anchor, partner, memory in ((student, teacher, their_memory), (teacher, student, own_memory)):
        positive = np.exp((anchor * partner).sum(-1, keepdims=True) / 0.5)
        negative = np.exp((memory @ anchor[:, :, None])[:, :, 0] / 0.5)
        z_by_n = np.concatenate([positive, negative], -1).mean()  # Z / n: the mean over this batch
        # D(x) = p / (p + K / n) with p = exp(x) / Z and K = 6
        accepted, rejected = (scores / (scores + 6 * z_by_n) for scores in (positive, negative))
        total -= np.log(accepted).sum() + np.log(1 - rejected).sum()
    return total / 2, B


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_its_definition_in_float64(name: str) -> None:
    function, reference = CASES[name]
    total, (expected, count) = function(), reference()
    assert total.sum.dtype == torch.float64
    assert total.sum.item() == pytest.approx(expected, rel=1e-10)
    assert int(total.count) == count
    assert total.mean.item() == pytest.approx(expected / count, rel=1e-10)


PACKAGES = ("attention", "contrastive", "hidden-mse", "minilm", "pearson", "supervised")


def test_every_loss_of_the_core_and_of_its_methods_has_a_function_and_a_reference() -> None:
    packages = {"kdcore", *(f"kdcore-{package}" for package in PACKAGES)}
    names = {entry.name for entry in losses.entries() if entry.distribution in packages}
    assert len(names) >= 13
    assert names <= set(dir(F))
    assert {name for name in names if getattr(F, name, None) is None} == set()
    assert names <= {name.partition("/")[0] for name in CASES}


SIGNALS = [
    {"hidden": [HIDDEN[side]], "query": [QUERY[side]], "key": [KEY[side]], "value": [VALUE[side]]} for side in (0, 1)
]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("hidden_mse", {}),
        ("hidden_mse_cls", {}),
        ("hidden_cosine", {}),
        ("hidden_pkd", {"layers": "last"}),
        ("attention_kl", {}),
        ("attention_mse", {}),
        ("value_relation_kl", {}),
        ("minilm_v2", {"relations": {"query": 0, "key": 0, "value": 1}}),
    ],
)
def test_a_loss_has_the_value_of_its_function(name: str, config: dict[str, Any]) -> None:
    found = compute_loss(name, config, student=SIGNALS[0], teacher=SIGNALS[1], attention_mask=REAL)
    assert found["total"] == pytest.approx(CASES[name][0]().mean.item(), rel=1e-12)


def test_losses_on_predictions_have_the_values_of_their_functions() -> None:
    student, teacher = ({"hidden": [HIDDEN[side]], "logits": LOGITS[side]} for side in (0, 1))
    found = compute_loss("masked_lm", student=student, teacher=None, attention_mask=REAL, labels=TOKENS)
    assert found["total"] == pytest.approx(CASES["masked_lm"][0]().mean.item(), rel=1e-12)
    keys = {"positions": "all", "temperature": 2.0}
    found = compute_loss("soft_targets", keys, student=student, teacher=teacher, attention_mask=REAL)
    assert found["total"] == pytest.approx(CASES["soft_targets"][0]().mean.item(), rel=1e-12)


def test_functions_of_other_kinds_of_outputs() -> None:
    own, theirs = SCORES
    total = F.soft_targets(tensor(own), tensor(theirs), problem_type="regression")
    assert total.mean.item() == pytest.approx(((own - theirs) ** 2).sum() / B)
    several = (GENERATOR.random((B, CLASSES)) < 0.5).astype(np.int64)
    p = 1 / (1 + np.exp(-own))
    expected = -(several * np.log(p) + (1 - several) * np.log(1 - p)).mean(-1).sum()
    total = F.classification(tensor(own), tensor(several), problem_type="multi_label_classification")
    assert (total.sum.item(), total.count) == (pytest.approx(expected), B)
    numbers = array(B)
    total = F.classification(tensor(own[:, :1]), tensor(numbers), problem_type="regression")
    assert total.sum.item() == pytest.approx(((own[:, 0] - numbers) ** 2).sum())
    tags = F.classification(tensor(LOGITS[0]), tensor(TOKENS))
    assert int(tags.count) == LABELLED.sum()
    assert tags.sum.item() == pytest.approx(CASES["masked_lm"][0]().sum.item())


def test_relation_heads_of_other_numbers_are_those_of_merged_heads() -> None:
    merged = [value.transpose(0, 2, 1, 3).reshape(B, L, 1, WIDTH).transpose(0, 2, 1, 3) for value in VALUE]
    total = F.minilm_v2(*both(VALUE), lengths, relation_heads=1)
    expected = over_sequences(kl, (merged[0], merged[0]), (merged[1], merged[1]))
    assert (total.sum.item(), total.count) == (pytest.approx(expected), N)


def test_gradients_reach_the_students_tensors_and_not_the_padding() -> None:
    student = tensor(HIDDEN[0]).requires_grad_()
    F.hidden_mse(student, tensor(HIDDEN[1]), lengths).mean.backward()
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, tensor(REAL))


def test_a_name_without_a_loss_and_one_without_a_function_say_so() -> None:
    with pytest.raises(AttributeError, match=r"(?s)unknown loss `hidden_mso`.*Did you mean `hidden_mse`"):
        _ = F.hidden_mso

    @kdcore.register_loss("without_function")
    class WithoutFunction(kdcore.Loss):
        def requests(self) -> Any: ...

        def counts(self, batch: Any) -> Any: ...

        def forward(self, student: Any, teacher: Any, batch: Any) -> Any: ...

    with pytest.raises(AttributeError, match="the loss `without_function` has no function"):
        _ = F.without_function
    del losses._registered["without_function"]
