"""Check the requirements on optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from kdcore import NamedParameter, Optimizer, ParameterGroup, Progress, RecipeError, Scheduler, find_component


def check_scheduler(name: str | type[Scheduler], config: Mapping[str, Any] | None = None) -> None:
    """Check the requirements on every schedule.

    The factor is finite and not negative at every step. This is checked with a budget of 100 steps, a budget of time
    and both together, unless `check` rejects them. The factor is a function of progress only: repeated calls, calls in
    a different order and a new object return the same factor.

    Args:
        name: registered name, or class.
        config: its keys in a recipe, without `name`.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: type[Scheduler] = find_component("kdcore.schedulers", name).cls if isinstance(name, str) else name
    scheduler = cls(cls.Config(**(config or {})))
    budgets = [
        (max_steps, max_seconds)
        for max_steps, max_seconds in ((100, None), (None, 50.0), (100, 50.0))
        if _accepts(scheduler, Progress(0, 0.0, max_steps, max_seconds))
    ]
    assert budgets, "`check` rejects budgets of 100 steps, of time and of both"
    for max_steps, max_seconds in budgets:
        points = [Progress(step, step / 2, max_steps, max_seconds) for step in range(101)]
        factors = [scheduler.factor(point) for point in points]
        for point, factor in zip(points, factors, strict=True):
            assert isinstance(factor, float), f"the factor at {point} is of type {type(factor).__name__}, not float"
            assert math.isfinite(factor), f"the factor at {point} is {factor}"
            assert factor >= 0, f"the factor at {point} is {factor}, below 0"
        assert any(factor > 0 for factor in factors), "the factor is always 0"
        again = cls(cls.Config(**(config or {})))
        for point, factor in reversed(list(zip(points, factors, strict=True))):
            assert again.factor(point) == factor, f"the factor at {point} depends on earlier calls"


def _accepts(scheduler: Scheduler, start: Progress) -> bool:
    try:
        scheduler.check(start)
    except RecipeError:
        return False
    return True


def check_optimizer(name: str | type[Optimizer], config: Mapping[str, Any] | None = None) -> None:
    """Check the requirements on every optimizer.

    It reduces a quadratic; a learning rate of 0 leaves parameters bitwise unchanged; groups have separate weight decay;
    splitting a tensor changes its update if and only if `elementwise` is False; a new optimizer with the loaded state
    continues bitwise like the old optimizer; after `reset_state` it behaves like a new one.

    Args:
        name: registered name, or class.
        config: its keys in a recipe, without `name`.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: type[Optimizer] = find_component("kdcore.optimizers", name).cls if isinstance(name, str) else name
    keys = {"lr": 0.05, "weight_decay": 0.0} | dict(config or {})

    torch.manual_seed(0)
    start, target = torch.randn(8, 6), torch.randn(8, 6)

    def make(parts: list[torch.nn.Parameter], **changes: Any) -> torch.optim.Optimizer:
        section = keys | changes
        named = [NamedParameter(f"student.weight.{number}", "matrix", part) for number, part in enumerate(parts)]
        return cls(cls.Config(**section)).build([ParameterGroup(named, section["weight_decay"])])

    def step(optimizer: torch.optim.Optimizer, parts: list[torch.nn.Parameter]) -> None:
        optimizer.zero_grad()
        # Rows of very different scale, so that normalising a whole tensor differs from normalising its pieces.
        scale = torch.arange(1.0, 9.0)[:, None] ** 2
        torch.autograd.backward((scale * (torch.cat(list(parts)) - target)).square().sum())
        optimizer.step()

    def run(pieces: int, steps: int, **changes: Any) -> torch.Tensor:
        parts = [torch.nn.Parameter(part.clone()) for part in start.chunk(pieces)]
        optimizer = make(parts, **changes)
        for _ in range(steps):
            step(optimizer, parts)
        return torch.cat([part.detach() for part in parts])

    before, after = (start - target).square().sum(), (run(1, 200) - target).square().sum()
    assert after < 0.5 * before, f"200 steps reduce a quadratic only from {before:g} to {after:g}"
    assert torch.equal(run(1, 5, lr=0.0, weight_decay=0.1), start), "a learning rate of 0 changes parameters"
    assert not torch.equal(run(1, 5, weight_decay=0.1), run(1, 5)), "weight decay of a group has no effect"
    same = torch.allclose(run(1, 5), run(4, 5), rtol=1e-5, atol=1e-7)
    claim = cls.elementwise
    effect = "does not change" if same else "changes"
    assert same == claim, f"`elementwise` is {claim}, but splitting a tensor {effect} its update"

    weight = torch.nn.Parameter(start.clone())
    old = make([weight])
    for _ in range(3):
        step(old, [weight])
    copy = torch.nn.Parameter(weight.detach().clone())
    new = make([copy])
    new.load_state_dict(deepcopy(old.state_dict()))
    for _ in range(3):
        step(old, [weight])
        step(new, [copy])
    assert torch.equal(copy, weight), "a new optimizer with the loaded state diverges from the old one"
    component = cls(cls.Config(**keys))
    component.reset_state(old.state[weight])
    weight.data.copy_(start)
    step(old, [weight])
    assert torch.equal(weight, run(1, 1)), "`reset_state` does not reset the state: its initial values are not 0"
