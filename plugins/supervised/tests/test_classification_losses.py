"""Losses on classes of whole sequences against NumPy, and the requirements on every loss."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import check_loss, compute_loss
from kdcore_testing.loss_checks import tiny

from kdcore import Batch, Head, InputError, Signals, find_component

STUDENT = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = np.array([[0.5, 0.0, 0.25], [-1.0, 2.0, 2.0]])
REGRESSION = {
    "teacher": replace(tiny(4), heads=(Head.sequence_classes(),)),
    "student": replace(tiny(2), heads=(Head.sequence_classes(),)),
}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_classification_is_the_cross_entropy_of_the_labels() -> None:
    found = compute_loss("classification", student={"classes": STUDENT}, teacher=None, labels=[2, 1])
    expected = -(log_softmax(STUDENT)[0, 2] + log_softmax(STUDENT)[1, 1]) / 2
    assert found["classification"] == pytest.approx(expected, rel=1e-12)


def test_classification_of_numbers_is_the_squared_error() -> None:
    found = compute_loss("classification", student={"classes": STUDENT[:, :1]}, teacher=None, labels=[1.5, -0.5])
    assert found["classification"] == pytest.approx(((1.0 - 1.5) ** 2 + 0.5**2) / 2, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_of_classes_are_the_divergence_per_sequence(temperature: float) -> None:
    config = {"positions": "classes", "temperature": temperature, "weight": 2.0}
    found = compute_loss("soft_targets", config, student={"classes": STUDENT}, teacher={"classes": TEACHER})
    own, theirs = log_softmax(STUDENT / temperature), log_softmax(TEACHER / temperature)
    expected = temperature**2 * (np.exp(theirs) * (theirs - own)).sum() / 2
    assert found["soft_targets"] == pytest.approx(expected, rel=1e-12)
    assert found["total"] == pytest.approx(2 * expected, rel=1e-12)


MULTI = {
    "teacher": replace(tiny(4), heads=(Head.sequence_classes(("a", "b", "c"), "multi_label_classification"),)),
    "student": replace(tiny(2), heads=(Head.sequence_classes(("a", "b", "c"), "multi_label_classification"),)),
}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def of_heads(
    name: str, config: dict[str, Any], columns: dict[str, Any], infos: Any, student: Any, teacher: Any
) -> tuple[float, float]:
    """Return a loss on the outputs of the only head, and the value of its best constant prediction."""
    loss = find_component("kdcore.losses", name).cls
    built = loss(loss.Config(name=name, label=name, **config), infos["teacher"], infos["student"])
    head = infos["student"].heads[0]
    first = next(iter(columns.values()))
    rows, length = first.shape if head.level == "token" else (len(first), 1)
    nothing = torch.empty(0, dtype=torch.int64)
    batch = Batch(
        input_ids=torch.zeros((rows, length), dtype=torch.int64),
        attention_mask=None,
        lengths=np.full(rows, length),
        token_index=torch.arange(rows * length),
        masked_index=nothing,
        masked_labels=nothing,
        columns={key: torch.from_numpy(column) for key, column in columns.items()},
    )
    sides = [Signals(batch, {}, {}, {}, heads={head.name: torch.from_numpy(side)}) for side in (student, teacher)]
    (value,), (count,) = built(*sides, batch).values(), built.counts(batch).values()
    (constant,) = built.constant_baseline(built.constant_sums(sides[1], batch)).values()
    return float(value) / count, constant


def logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log(1 - probability)


def test_classification_of_lists_of_classes_is_the_mean_binary_cross_entropy() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 1]], dtype=np.float32)
    found, constant = of_heads("classification", {}, {"labels": labels}, MULTI, STUDENT, TEACHER)
    yes = sigmoid(STUDENT)
    assert found == pytest.approx(-(labels * np.log(yes) + (1 - labels) * np.log(1 - yes)).mean(), rel=1e-6)
    best = np.tile(logit(np.clip(labels.mean(0, dtype=np.float64), 1e-9, 1 - 1e-9)), (2, 1))
    assert constant == pytest.approx(
        of_heads("classification", {}, {"labels": labels}, MULTI, best, TEACHER)[0], abs=1e-6
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_of_lists_of_classes_are_the_mean_divergence_of_each_class(temperature: float) -> None:
    config = {"positions": "classes", "temperature": temperature}
    columns = {"sample_ids": np.arange(2)}
    found, constant = of_heads("soft_targets", config, columns, MULTI, STUDENT, TEACHER)
    own, theirs = sigmoid(STUDENT / temperature), sigmoid(TEACHER / temperature)
    divergence = theirs * np.log(theirs / own) + (1 - theirs) * np.log((1 - theirs) / (1 - own))
    assert found == pytest.approx(temperature**2 * divergence.mean(), rel=1e-10)
    best = temperature * logit(theirs[::-1])  # of each half of the texts, the mean of the other
    assert constant == pytest.approx(of_heads("soft_targets", config, columns, MULTI, best, TEACHER)[0], rel=1e-9)


TOKENS = {
    "teacher": replace(tiny(4), heads=(Head.token_classes(("O", "B-a", "I-a")),)),
    "student": replace(tiny(2), heads=(Head.token_classes(("O", "B-a", "I-a")),)),
}


def test_losses_on_tokens_average_over_the_chosen_tokens() -> None:
    draw = np.random.default_rng(2)
    own, theirs = draw.standard_normal((2, 6, 3))  # of 2 sequences of 3 tokens
    labels, starts = np.array([[-100, 1, 2], [0, -100, -100]]), np.array([[False, True, True], [True, False, True]])
    columns = {"labels": labels, "word_starts": starts}
    found, constant = of_heads("classification", {}, columns, TOKENS, own, theirs)
    chosen = labels.reshape(-1) >= 0
    expected = -log_softmax(own)[chosen, labels.reshape(-1)[chosen]].mean()
    assert found == pytest.approx(expected, rel=1e-10)
    assert constant == pytest.approx(np.log(3)), "each of the three labels once"
    for column, rows in ((None, slice(None)), ("word_starts", starts.reshape(-1))):
        config = {"head": "token_classes", "column": column, "temperature": 2.0}
        found, constant = of_heads("soft_targets", config, columns, TOKENS, own, theirs)
        log_own, log_theirs = log_softmax(own[rows] / 2), log_softmax(theirs[rows] / 2)
        assert found == pytest.approx(4 * (np.exp(log_theirs) * (log_theirs - log_own)).sum(-1).mean(), rel=1e-10)
        chosen = starts if column else np.ones((2, 3), bool)
        chances = np.exp(log_softmax(theirs / 2)).reshape(2, 3, 3)
        means = [chances[other][chosen[other]].mean(0) for other in (1, 0)]  # of each sequence, over the other
        best = np.repeat(2 * np.log(means), 3, axis=0)
        assert constant == pytest.approx(of_heads("soft_targets", config, columns, TOKENS, best, theirs)[0], rel=1e-9)


def test_a_column_of_numbers_does_not_choose_tokens() -> None:
    columns = {"word_starts": np.array([[0, 1, 1], [1, 0, 1]])}
    config = {"head": "token_classes", "column": "word_starts"}
    with pytest.raises(InputError, match=r"losses\.soft_targets\.column: .*found torch\.int64, expected bool"):
        of_heads("soft_targets", config, columns, TOKENS, *np.zeros((2, 6, 3)))


def test_the_best_constant_prediction_of_classes_and_numbers() -> None:
    head = Head.sequence_classes(("a", "b", "c"))
    infos = {"teacher": replace(tiny(4), heads=(head,)), "student": replace(tiny(2), heads=(head,))}
    outputs = np.random.default_rng(3).standard_normal((4, 3))
    _, constant = of_heads("classification", {}, {"labels": np.array([0, 1, 1, 1])}, infos, outputs, outputs)
    assert constant == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    _, constant = of_heads(
        "classification", {}, {"labels": np.array([0.0, 1.0, 5.0])}, REGRESSION, outputs[:3, :1], outputs
    )
    assert constant == pytest.approx(np.var([0.0, 1.0, 5.0]))


def test_tokens_that_are_not_chosen_have_no_gradient() -> None:
    config = {"head": "token_classes", "column": "word_starts"}
    outputs = np.random.default_rng(2).standard_normal((2, 6, 3))
    loss = find_component("kdcore.losses", "soft_targets").cls
    built = loss(loss.Config(name="soft_targets", label="x", **config), TOKENS["teacher"], TOKENS["student"])
    starts = torch.tensor([[False, True, True], [True, False, False]])
    nothing = torch.empty(0, dtype=torch.int64)
    batch = Batch(
        nothing.new_zeros(2, 3), None, np.array([3, 3]), torch.arange(6), nothing, nothing, {"word_starts": starts}
    )
    own = torch.from_numpy(outputs[0]).requires_grad_()
    sides = [Signals(batch, {}, {}, {}, heads={"token_classes": side}) for side in (own, torch.from_numpy(outputs[1]))]
    built(*sides, batch)["soft_targets"].backward()
    assert own.grad is not None
    assert (own.grad.abs().sum(-1) > 0).tolist() == starts.reshape(-1).tolist()


def test_soft_targets_of_numbers_are_the_squared_difference() -> None:
    config = {"positions": "classes", "temperature": 7.0}
    sides = {"student": {"classes": STUDENT[:, :1]}, "teacher": {"classes": TEACHER[:, :1]}}
    found = compute_loss("soft_targets", config, **sides)  # type: ignore[arg-type]
    assert found["soft_targets"] == pytest.approx((0.5**2 + 1.0**2) / 2, rel=1e-12)


def test_they_do_what_every_loss_must_do() -> None:
    check_loss("classification")
    check_loss("classification", **REGRESSION, large=False)  # type: ignore[arg-type]
    check_loss("soft_targets", {"positions": "classes", "temperature": 2.0})
    check_loss("soft_targets", {"positions": "classes"}, **REGRESSION, large=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["classification", "soft_targets"])
def test_a_student_without_classes_is_refused(name: str) -> None:
    config = {"positions": "classes"} if name == "soft_targets" else {}
    with pytest.raises(InputError, match=r"requires the head `sequence_classes`, which the student does not have"):
        check_loss(name, config, student=replace(tiny(2), heads=()))


def soft_targets(theirs: tuple[str, ...], own: tuple[str, ...]) -> None:
    infos = {
        "teacher": replace(tiny(4), heads=(Head.sequence_classes(theirs),)),
        "student": replace(tiny(2), heads=(Head.sequence_classes(own),)),
    }
    check_loss("soft_targets", {"positions": "classes"}, **infos, large=False)  # type: ignore[arg-type]


def test_heads_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="requires the head `sequence_classes`, which the teacher does not have"):
        check_loss("soft_targets", {"positions": "classes"}, teacher=replace(tiny(4), heads=()))
    with pytest.raises(InputError, match="equal numbers of classes, but the teacher has 3 and the student 2"):
        soft_targets(("a", "b", "c"), ("a", "b"))
    with pytest.raises(
        InputError, match=r"but the teacher's are pro, con and the student's con, pro(?s:.)*teacher's order"
    ):
        soft_targets(("pro", "con"), ("con", "pro"))


def test_classes_of_other_names_are_told_and_of_the_same_in_capitals_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kdcore"):
        soft_targets(("CON", "PRO"), ("con", "pro"))
        assert not caplog.records
        soft_targets(("0", "1"), ("con", "pro"))
    assert "class names differ (teacher: 0, 1; student: con, pro); assuming the same classes" in caplog.text
