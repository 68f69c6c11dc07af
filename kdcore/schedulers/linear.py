"""Warm-up, then linear decay."""

from __future__ import annotations

from pydantic import Field

from kdcore.progress import Progress
from kdcore.recipe.schema import ComponentConfig
from kdcore.schedulers.base import Scheduler


class Linear(Scheduler):
    """Rises linearly over the first `warmup` of the budget, then falls linearly to 0 at its end.

    With a budget of N steps and W warm-up steps the factor of step n (from 0) is (n + 1) / (W + 1) while n < W, so that
    no step is wasted at rate 0, and (N - n) / (N - W) after it.
    """

    class Config(ComponentConfig):
        """Linear's keys."""

        warmup: float = Field(0.06, ge=0, lt=1, description="Share of the budget in which the rate rises.")

    config: Config

    def factor(self, progress: Progress) -> float:
        """The factor at this progress."""
        fraction, warmup = progress.fraction, self.config.warmup
        if fraction < warmup:
            step = 1 / progress.max_steps if progress.max_steps else 0.0
            return (fraction + step) / (warmup + step)
        return max(0.0, (1.0 - fraction) / (1.0 - warmup))
