"""Measure the progress of training with one clock for all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field

from kdcore.recipe.schema import Budget

Fraction = Annotated[float, Field(ge=0, le=1)]


def check_points(key: str, value: float | Sequence[tuple[float, float]]) -> None:
    """Raise a ValueError unless the value of a key is a number or a list of points with increasing fractions."""
    if isinstance(value, Sequence) and (len(value) < 2 or any(b <= a for (a, _), (b, _) in pairwise(value))):
        raise ValueError(f"a list for `{key}` requires at least two points with strictly increasing fractions")


def value_at(value: float | Sequence[tuple[float, float]], fraction: float) -> float:
    """Return a scheduled value at a given fraction of the budget.

    Args:
        value: a constant; or points (fraction, value), which are interpolated linearly. Before the first and after the
            last point, the value is constant.
        fraction: fraction of the budget.
    """
    if not isinstance(value, Sequence):
        return value
    fractions, values = zip(*value, strict=True)
    return float(np.interp(fraction, fractions, values))


@dataclass(frozen=True)
class Progress:
    """Progress of training at the start of a step, identical on every process.

    Attributes:
        step: number of completed steps.
        seconds: training time measured by process 0, including earlier sessions of the run.
        max_steps: maximum number of steps, or None.
        max_seconds: maximum training time in seconds, or None.
        exit_seconds: training time in seconds at which training ends before its budget is used up, or None.
        exit_steps: number of steps at which training ends before its budget is used up, or None.
    """

    step: int
    seconds: float
    max_steps: int | None
    max_seconds: float | None
    exit_seconds: float | None = None
    exit_steps: int | None = None

    @classmethod
    def start(cls, budget: Budget, steps_per_epoch: float) -> Progress:
        """Return the progress of a run with this budget before its first step.

        Args:
            budget: the limits.
            steps_per_epoch: number of steps per pass over the training data, usually not an integer.
        """
        epochs = None if budget.epochs is None else max(1, math.ceil(budget.epochs * steps_per_epoch - 1e-9))
        limits = [limit for limit in (budget.steps, epochs) if limit is not None]
        return cls(
            0,
            0.0,
            max_steps=min(limits, default=None),
            max_seconds=None if budget.hours is None else budget.hours * 3600,
            exit_seconds=None if budget.exit_after_hours is None else budget.exit_after_hours * 3600,
        )

    def at(self, step: int, seconds: float) -> Progress:
        """Return the progress of the same run at another step and time."""
        return replace(self, step=step, seconds=seconds)

    @property
    def fraction_of_steps(self) -> float | None:
        """Return the used fraction of the steps, 0 at the start; None if steps are not limited."""
        return None if self.max_steps is None else self.step / self.max_steps

    @property
    def fraction_of_time(self) -> float | None:
        """Return the used fraction of the time, 0 at the start; None if time is not limited."""
        return None if self.max_seconds is None else self.seconds / self.max_seconds

    @property
    def fraction(self) -> float:
        """Return the used fraction of the budget: the maximum over its limits, at least 1 if it is used up."""
        return max(0.0, self.fraction_of_steps or 0.0, self.fraction_of_time or 0.0)

    @property
    def finished(self) -> bool:
        """Return whether training is over: the budget is used up, or a limit for an early exit is reached."""
        time_is_up = self.exit_seconds is not None and self.seconds >= self.exit_seconds
        steps_are_up = self.exit_steps is not None and self.step >= self.exit_steps
        return self.fraction >= 1.0 or time_is_up or steps_are_up
