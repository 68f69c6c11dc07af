"""`soft_targets` against its definition in float64 NumPy, and the plain formula's gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import check_loss, compute_loss

import kdcore
from kdcore.losses import soft_targets

REAL = np.arange(5) < np.array([5, 2, 4])[:, None]


def logits(seed: int, scale: float = 3.0) -> dict[str, np.ndarray]:
    return {"logits": scale * np.random.default_rng(seed).standard_normal((3, 5, 11))}


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return float(temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=-1)))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("real", [np.ones_like(REAL), REAL], ids=["full", "ragged"])
def test_it_is_the_divergence_at_real_tokens_times_the_squared_temperature(
    real: np.ndarray, temperature: float
) -> None:
    student, teacher = logits(1), logits(2)
    found = compute_loss(
        "soft_targets",
        {"temperature": temperature, "positions": "all", "weight": 0.5},
        student=student,
        teacher=teacher,
        attention_mask=real,
    )
    expected = reference(student["logits"][real], teacher["logits"][real], temperature)
    assert found == pytest.approx({"soft_targets": expected, "total": expected / 2}, rel=1e-12)


def test_masked_positions_count_alone_unless_the_recipe_says_otherwise() -> None:
    student, teacher = logits(1), logits(2)
    labels = np.where(REAL & (np.arange(5) % 2 == 1), 4, -100)
    found = compute_loss("soft_targets", student=student, teacher=teacher, attention_mask=REAL, labels=labels)
    chosen = labels != -100
    expected = reference(student["logits"][chosen], teacher["logits"][chosen], 1.0)
    assert found["soft_targets"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("elements", [1, 30, 2**24], ids=["a row at a time", "two rows at a time", "all rows at once"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slices_give_value_and_gradient_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, elements: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(soft_targets, "_SLICE_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(7, 11, generator=generator, dtype=dtype) for _ in range(2))
    results = []
    for sliced in (True, False):
        own = student.clone().requires_grad_()
        if sliced:
            value = soft_targets._SlicedDivergence.apply(own, teacher, 2.0)
        else:
            p, q = (side / 2.0 for side in (teacher, own))
            value = 4.0 * (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()
        (0.3 * value).backward()
        results.append((value.detach(), own.grad))
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(results[0], results[1], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("config", [{"temperature": 2.0}, {"temperature": 3.0, "positions": "all"}], ids=str)
def test_what_must_hold_for_every_objective_holds(config: dict[str, Any]) -> None:
    check_loss("soft_targets", config)


def test_fault_6_a_confidently_wrong_student_keeps_its_gradient() -> None:
    """In the authors' code probabilities are clamped at 1e-7, where the gradient ends, and sums are fp16."""
    teacher, student = torch.tensor([[12.0, -12.0]]), torch.tensor([[-12.0, 12.0]])
    clamped = student.clone().requires_grad_()
    p = teacher.softmax(-1)
    (p * (p.clamp_min(1e-7).log() - clamped.softmax(-1).clamp_min(1e-7).log())).sum().backward()
    assert clamped.grad is not None
    assert clamped.grad.abs().max() < 1e-6, "the faulty formula"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        own = student.to(dtype).expand(20_000, 2).clone().requires_grad_()
        value = soft_targets._SlicedDivergence.apply(own, teacher.to(dtype).expand(20_000, 2), 1.0)
        value.backward()
        assert value.item() == pytest.approx(20_000 * 24.0, rel=1e-3), "beyond the largest fp16 number"
        assert own.grad is not None
        torch.testing.assert_close(own.grad[0].float(), torch.tensor([-1.0, 1.0]), rtol=1e-2, atol=0)


def test_vocabularies_of_different_size_are_told_when_the_loss_is_made() -> None:
    other = {"logits": np.zeros((3, 5, 12))}
    with pytest.raises(kdcore.InputError, match=r"the teacher has 12 tokens and the student 11"):
        compute_loss("soft_targets", {"positions": "all"}, student=logits(1), teacher=other)


def test_no_masked_position_is_no_error() -> None:
    found = compute_loss("soft_targets", student=logits(1), teacher=logits(2))
    assert found["soft_targets"] == 0
