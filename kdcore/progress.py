"""How far training is, measured by one clock for all processes."""

from __future__ import annotations

from dataclasses import dataclass

from kdcore.recipe.schema import Budget


@dataclass(frozen=True)
class Progress:
    """Where training stands at the start of a step, the same on every process.

    Attributes:
        step: steps done so far.
        seconds: training time so far by process 0's clock, earlier sessions of the run included.
        max_steps: limit of steps, or None.
        max_seconds: limit of time, or None.
    """

    step: int
    seconds: float
    max_steps: int | None
    max_seconds: float | None

    @classmethod
    def within(cls, budget: Budget, step: int, seconds: float) -> Progress:
        """Progress of a run with this budget."""
        return cls(step, seconds, budget.steps, None if budget.hours is None else budget.hours * 3600)

    @property
    def fraction(self) -> float:
        """Used share of the budget: the largest over all its limits, 0 at the start, 1 or more when it is used up."""
        shares = [0.0]
        if self.max_steps is not None:
            shares.append(self.step / self.max_steps)
        if self.max_seconds is not None:
            shares.append(self.seconds / self.max_seconds)
        return max(shares)

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.fraction >= 1.0
