"""Muon against its definition in float64 NumPy, by conformance checks, and in runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_muon.muon import Muon, orthogonalize
from kdcore_testing import check_optimizer
from numpy.typing import NDArray
from safetensors.numpy import load_file

import kdcore
from kdcore import (
    ComponentConfig,
    NamedParameter,
    ParameterGroup,
    ParameterRole,
    Progress,
    RecipeError,
    Scheduler,
    register_scheduler,
)

Array = NDArray[np.float64]
STEPS = 6


def newton_schulz(matrix: Array, iterations: int) -> Array:
    """Apply the polynomial to the singular values, which is what the published matrix products compute."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def muon_update(gradients: list[Array], weight: Array, keys: dict[str, Any]) -> Array:
    """Return the change of a matrix after its last gradient, with averages as sums over all gradients."""
    momentum = keys["momentum"]
    ages = np.arange(len(gradients))[::-1]
    flat = [gradient.reshape(len(gradient), -1) for gradient in gradients]
    average = sum((1 - momentum) * momentum**age * gradient for age, gradient in zip(ages, flat, strict=True))
    direction = (1 - momentum) * flat[-1] + momentum * average if keys["nesterov"] else average
    update = newton_schulz(direction, keys["iterations"]) * 0.2 * max(direction.shape) ** 0.5
    return -keys["lr"] * (update.reshape(weight.shape) + keys["weight_decay"] * weight)


def adamw_update(gradients: list[Array], weight: Array, keys: dict[str, Any]) -> Array:
    """Return the same for AdamW."""
    beta1, beta2 = keys["betas"]
    step = len(gradients)
    ages = np.arange(step)[::-1]
    first = sum((1 - beta1) * beta1**age * one for age, one in zip(ages, gradients, strict=True)) / (1 - beta1**step)
    second = sum((1 - beta2) * beta2**age * one**2 for age, one in zip(ages, gradients, strict=True))
    ratio = first / (np.sqrt(second / (1 - beta2**step)) + keys["eps"])
    return -keys["lr"] * (ratio + keys["weight_decay"] * weight)


PARAMETERS: list[tuple[ParameterRole, tuple[int, ...]]] = [
    ("embedding", (9, 4)),
    ("matrix", (4, 4)),
    ("matrix", (7, 3)),
    ("vector", (4,)),
    ("matrix", (3, 7)),
    ("matrix", (4, 4)),
    ("matrix", (2, 3, 4)),
    ("matrix", (1, 5)),
    ("head", (6, 4)),
    ("loss", (4, 5)),
]


@pytest.mark.parametrize(
    "keys",
    [
        {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "iterations": 5},
        {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.5, "nesterov": False, "iterations": 3},
        {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.0, "nesterov": True, "iterations": 1},
    ],
)
def test_every_update_equals_the_definition(keys: dict[str, Any]) -> None:
    keys = keys | {"betas": (0.9, 0.95), "eps": 1e-8}
    generator = np.random.default_rng(0)
    parameters = [
        NamedParameter(f"{role}.{number}", role, torch.nn.Parameter(torch.tensor(generator.standard_normal(shape))))
        for number, (role, shape) in enumerate(PARAMETERS)
    ]
    groups = [ParameterGroup(parameters[:5], keys["weight_decay"]), ParameterGroup(parameters[5:], 0.0)]
    optimizer = Muon(Muon.Config(**keys)).build(groups)
    gradients: list[list[Array]] = [[] for _ in parameters]
    for step in range(STEPS):
        before = [one.parameter.detach().numpy().copy() for one in parameters]
        lr = keys["lr"] * (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for one, past in zip(parameters, gradients, strict=True):
            past.append(generator.standard_normal(one.parameter.shape))
            one.parameter.grad = torch.tensor(past[-1])
        optimizer.step()
        for number, (one, past, start) in enumerate(zip(parameters, gradients, before, strict=True)):
            own = keys | {"lr": lr, "weight_decay": keys["weight_decay"] if number < 5 else 0.0}
            rule = muon_update if one.role == "matrix" else adamw_update
            expected = start + rule(past, start, own)
            np.testing.assert_allclose(one.parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=one.name)


@pytest.mark.parametrize("shape", [(32, 128), (128, 32)])
def test_singular_values_are_about_1(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for values in torch.linalg.svdvals(orthogonalize(matrices, 5)):
        assert 0.6 < values.min() < values.max() < 1.3
    assert torch.linalg.svdvals(matrices).max() > 8


def test_a_gradient_of_zero_changes_nothing() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 3), 5).any()


def test_conformance() -> None:
    check_optimizer("muon")


OPTIMIZER = "optimizer={name: muon, lr: 1e-3}"


@register_scheduler("constant_for_muon")
class Constant(Scheduler):
    """The same rate for any budget, so that a longer budget does not change the first steps."""

    class Config(ComponentConfig):
        """There are no keys."""

    def factor(self, progress: Progress) -> float:
        """Return the factor on the learning rate."""
        return 1.0


def test_a_run_resumes_bit_for_bit_and_learns(small_recipe: Path) -> None:
    losses = ["losses.masked_lm={weight: 0.1}", "student.config.hidden_size=16", "student.config.num_attention_heads=2"]
    common = [OPTIMIZER, *losses, "student.initialize=null", "logging.every=1", "scheduler={name: constant_for_muon}"]
    whole = kdcore.train(small_recipe, [*common, "run.id=whole", "training.budget.steps=20"])
    kdcore.train(small_recipe, [*common, "run.id=parts", "training.budget.steps=9"])
    parts = kdcore.train(small_recipe, [*common, "run.id=parts", "training.budget.steps=20"])
    assert "continued from step-0000009" in (parts.folder / "train.log").read_text(encoding="utf-8")
    assert whole.export is not None
    assert parts.export is not None
    first, second = load_file(whole.export / "model.safetensors"), load_file(parts.export / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    rows = kdcore.read_metrics(whole.folder)
    values = [row["train/loss"] for row in rows if "train/loss" in row]
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_is_refused_by_name(stage: int, small_recipe: Path) -> None:
    with pytest.raises(RecipeError, match=f"the optimizer `muon` needs whole tensors, but ZeRO stage {stage}"):
        kdcore.train(small_recipe, [OPTIMIZER, f"training.zero_stage={stage}"])
