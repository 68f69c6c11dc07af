"""Losses on classes of whole sequences against NumPy, and what every loss must do."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from kdcore_testing import check_loss, compute_loss
from kdcore_testing.loss_checks import tiny

from kdcore import Head, InputError

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
