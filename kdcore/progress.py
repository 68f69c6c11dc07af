"""How far training is, measured by one clock for all processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kdcore.recipe.schema import Budget


@dataclass(frozen=True)
class Progress:
    """Where training stands at the start of a step, the same on every process.

    Attributes:
        step: steps done so far.
        seconds: training time so far by process 0's clock, earlier sessions of the run included.
        max_steps: limit of steps, or None.
        max_seconds: limit of time, or None.
        exit_seconds: time after which training ends although its budget is not used up, or None.
        exit_steps: steps after which it ends likewise, or None.
    """

    step: int
    seconds: float
    max_steps: int | None
    max_seconds: float | None
    exit_seconds: float | None = None
    exit_steps: int | None = None

    @classmethod
    def start(cls, budget: Budget, steps_per_epoch: float) -> Progress:
        """Progress of a run with this budget before its first step.

        Args:
            budget: the limits.
            steps_per_epoch: steps that one pass over the training data takes; not whole as a rule.
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
        """The same run's progress at another moment."""
        return replace(self, step=step, seconds=seconds)

    @property
    def fraction_of_steps(self) -> float | None:
        """Used share of the steps, 0 at the start; None where steps are not limited."""
        return None if self.max_steps is None else self.step / self.max_steps

    @property
    def fraction_of_time(self) -> float | None:
        """Used share of the time, 0 at the start; None where time is not limited."""
        return None if self.max_seconds is None else self.seconds / self.max_seconds

    @property
    def fraction(self) -> float:
        """Used share of the budget: the largest over all its limits, 0 at the start, 1 or more when it is used up."""
        return max(0.0, self.fraction_of_steps or 0.0, self.fraction_of_time or 0.0)

    @property
    def finished(self) -> bool:
        """Whether training ends: the budget is used up, or the moment to exit has come."""
        time_is_up = self.exit_seconds is not None and self.seconds >= self.exit_seconds
        steps_are_up = self.exit_steps is not None and self.step >= self.exit_steps
        return self.fraction >= 1.0 or time_is_up or steps_are_up
