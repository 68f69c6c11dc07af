"""Each optimizer against its published update rule in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import check_optimizer
from numpy.typing import NDArray
from pydantic import ValidationError

from kdcore.errors import RecipeError
from kdcore.optimizers.adamw import AdamW
from kdcore.optimizers.base import Optimizer
from kdcore.recipe.schema import Budget, TrainingSettings
from kdcore.registry import optimizers
from kdcore.training.engine.engine import check_optimizer as check_stage

Array = NDArray[np.float64]
SHAPES = [(5, 3), (7,), (2, 3, 4), (4, 4), (1, 6)]
STEPS = 6


def adam_direction(gradients: list[Array], keys: dict[str, Any]) -> Array:
    """Averages as their sums over all gradients so far, not as recursions."""
    beta1, beta2 = keys["betas"]
    step = len(gradients)
    ages = np.arange(step)[::-1]
    average = sum((1 - beta1) * beta1**age * gradient for age, gradient in zip(ages, gradients, strict=True))
    square = sum((1 - beta2) * beta2**age * gradient**2 for age, gradient in zip(ages, gradients, strict=True))
    if keys.get("bias_correction", True):
        average, square = average / (1 - beta1**step), square / (1 - beta2**step)
    return np.asarray(average / (np.sqrt(square) + keys["eps"]))


def adamw(gradients: list[Array], weights: list[Array], keys: dict[str, Any]) -> Array:
    """Loshchilov and Hutter 2019, algorithm 2, with the learning rate in front of the decay as everywhere."""
    return keys["lr"] * (adam_direction(gradients, keys) + keys["weight_decay"] * weights[-1])


def adam(gradients: list[Array], weights: list[Array], keys: dict[str, Any]) -> Array:
    """Kingma and Ba 2015, algorithm 1, on the loss with the penalty weight_decay / 2 * |x|^2."""
    penalised = [g + keys["weight_decay"] * x for g, x in zip(gradients, weights, strict=True)]
    return keys["lr"] * adam_direction(penalised, keys)


def lamb(gradients: list[Array], weights: list[Array], keys: dict[str, Any]) -> Array:
    """You et al. 2020, algorithm 2, with the ratio clamped."""
    update = adam_direction(gradients, keys) + keys["weight_decay"] * weights[-1]
    size, length = np.sqrt((weights[-1] ** 2).sum()), np.sqrt((update**2).sum())
    ratio = np.clip(size / length, keys["min_coeff"], keys["max_coeff"]) if size > 0 and length > 0 else 1.0
    return np.asarray(keys["lr"] * ratio * update)


def adafactor(gradients: list[Array], weights: list[Array], keys: dict[str, Any]) -> Array:
    """Shazeer and Stern 2018, algorithms 4 and 5, with a step size from outside and decoupled weight decay."""
    second: Array | float = 0.0
    rows: Array | float = 0.0
    columns: Array | float = 0.0
    for step, gradient in enumerate(gradients, start=1):
        beta = 1 - step**-0.8
        square = gradient**2 + 1e-30
        second = beta * second + (1 - beta) * square
        if gradient.ndim > 1:
            rows = beta * rows + (1 - beta) * square.sum(-1, keepdims=True)
            columns = beta * columns + (1 - beta) * square.sum(-2, keepdims=True)
    if gradients[-1].ndim > 1:
        second = rows * columns / np.asarray(rows).sum(-2, keepdims=True)
    update = gradients[-1] / np.sqrt(second)
    update = update / max(1.0, np.sqrt((update**2).mean()) / keys["clip_threshold"])
    lr = keys["lr"]
    if keys["scale_parameter"]:
        lr = lr * max(1e-3, np.sqrt((weights[-1] ** 2).mean()))
    return np.asarray(lr * (update + keys["weight_decay"] * weights[-1]))


MOMENTS = {"lr": 0.03, "weight_decay": 0.2, "betas": (0.8, 0.95), "eps": 1e-3}
CASES = [
    ("adam", adam, MOMENTS),
    ("adam", adam, MOMENTS | {"bias_correction": False}),
    ("adamw", adamw, MOMENTS),
    ("adamw", adamw, MOMENTS | {"bias_correction": False}),
    ("lamb", lamb, MOMENTS | {"min_coeff": 0.01, "max_coeff": 10.0}),
    ("lamb", lamb, MOMENTS | {"min_coeff": 0.01, "max_coeff": 10.0, "bias_correction": False}),
    ("lamb", lamb, MOMENTS | {"min_coeff": 0.7, "max_coeff": 0.9}),
    ("adafactor", adafactor, {"lr": 0.03, "weight_decay": 0.2, "clip_threshold": 1.0, "scale_parameter": False}),
    ("adafactor", adafactor, {"lr": 0.03, "weight_decay": 0.2, "clip_threshold": 0.5, "scale_parameter": True}),
]
IDS = [f"{name}-{index}" for index, (name, *_) in enumerate(CASES)]


def build(name: str, keys: dict[str, Any]) -> Optimizer:
    cls = optimizers.get(name)
    component = cls(cls.Config(**keys))
    assert isinstance(component, Optimizer)
    return component


@pytest.mark.parametrize(("name", "rule", "keys"), CASES, ids=IDS)
def test_each_step_is_the_published_one(name: str, rule: Callable[..., Array], keys: dict[str, Any]) -> None:
    """Two groups, one without decay as biases are; gradients of very different size; the rate changes every step."""
    generator = np.random.default_rng(3)
    start = [generator.normal(size=shape) * 10.0 ** generator.uniform(-2, 1) for shape in SHAPES]
    start[1][:] = 0.0
    parameters = [torch.nn.Parameter(torch.tensor(values)) for values in start]
    decays = [keys["weight_decay"] if index % 2 == 0 else 0.0 for index in range(len(SHAPES))]
    built = build(name, keys).build(
        [
            {"params": parameters[0::2], "weight_decay": keys["weight_decay"]},
            {"params": parameters[1::2], "weight_decay": 0.0},
        ]
    )
    weights = [[values] for values in start]
    gradients: list[list[Array]] = [[] for _ in SHAPES]
    for step in range(STEPS):
        lr = keys["lr"] * (step + 1) / STEPS
        for group in built.param_groups:
            group["lr"] = lr
        for index, parameter in enumerate(parameters):
            gradient = generator.normal(size=SHAPES[index]) * 10.0 ** generator.uniform(-2, 2)
            parameter.grad = torch.tensor(gradient)
            gradients[index].append(gradient)
            own = keys | {"lr": lr, "weight_decay": decays[index]}
            weights[index].append(weights[index][-1] - rule(gradients[index], weights[index], own))
        built.step()
        for parameter, expected in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), expected[-1], rtol=1e-9, atol=1e-12)


def test_the_ratio_of_lamb_is_clamped_on_both_sides() -> None:
    for weight, ratio in ((1e-6, 0.5), (1.0, 1.0), (1e6, 2.0)):
        parameter = torch.nn.Parameter(torch.full((4, 4), weight, dtype=torch.float64))
        keys = {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-12, "min_coeff": 0.5, "max_coeff": 2.0}
        built = build("lamb", keys).build([{"params": [parameter], "weight_decay": 0.0}])
        parameter.grad = torch.ones_like(parameter)  # its direction is 1 everywhere
        built.step()
        np.testing.assert_allclose(parameter.detach().numpy(), weight - 0.1 * ratio, rtol=1e-9)


@pytest.mark.parametrize(("name", "rule", "keys"), CASES, ids=IDS)
def test_what_holds_for_every_optimizer(name: str, rule: Callable[..., Array], keys: dict[str, Any]) -> None:
    check_optimizer(name, {key: value for key, value in keys.items() if key not in ("lr", "weight_decay")})


def test_conformance_finds_state_that_does_not_begin_at_0() -> None:
    class NAdam(Optimizer):
        def build(self, groups: list[dict[str, Any]]) -> torch.optim.NAdam:
            return torch.optim.NAdam(groups, lr=self.config.lr)

    with pytest.raises(AssertionError, match="`reset_state` does not reset the state"):
        check_optimizer(NAdam)


@pytest.mark.parametrize("name", optimizers.names())
def test_what_works_with_zero_is_told_where_something_does_not(name: str) -> None:
    cls = optimizers.get(name)
    for stage in (0, 1, 2):
        settings = TrainingSettings(budget=Budget(steps=1), batch_size=1, zero_stage=stage)
        if stage == 0 or cls.elementwise:
            check_stage(cls, name, settings)
            continue
        with pytest.raises(RecipeError) as caught:
            check_stage(cls, name, settings)
        (problem,) = caught.value.problems
        assert problem.key == "optimizer.name"
        assert f"`{name}` needs whole tensors, but ZeRO stage {stage}" in problem.what
        assert "`training.zero_stage: 0` and `training.precision: fp32`" in str(problem.allowed)
        assert str(problem.allowed).endswith("adam, adamw")


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("lamb", {"min_coeff": 2.0, "max_coeff": 1.0}, r"`min_coeff` \(2\) exceeds `max_coeff` \(1\)"),
        ("adamw", {"betas": (0.9, 1.0)}, "less than 1"),
        ("adafactor", {"betas": (0.9, 0.99)}, "Extra inputs"),
    ],
)
def test_keys_that_make_no_sense_are_refused(name: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        build(name, keys)


def test_an_optimizer_that_overrides_the_hook_under_its_old_name_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="`Optimizer.forget` is deprecated: override `reset_state`"):

        class Old(AdamW):
            def forget(self, state: dict[str, Any]) -> None:
                super().forget(state)
                state["product"] = 1.0

    state = {"step": torch.tensor(3.0), "product": 0.5, "average": torch.ones(2)}
    with pytest.warns(DeprecationWarning, match="`Optimizer.forget` is deprecated: use `reset_state`"):
        Old(AdamW.Config()).reset_state(state)
    assert state["product"] == 1.0
    assert state["step"] == 0
    assert not state["average"].any()


def test_the_hooks_old_name_calls_the_override_of_the_new_one() -> None:
    class New(AdamW):
        def reset_state(self, state: dict[str, Any]) -> None:
            state["reset"] = True

    state: dict[str, Any] = {}
    with pytest.warns(DeprecationWarning, match="use `reset_state`"):
        New(AdamW.Config()).forget(state)
    assert state == {"reset": True}
