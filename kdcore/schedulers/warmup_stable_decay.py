"""Warm-up, a stable part, then decay."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from kdcore.errors import RecipeError
from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupConfig, WarmupScheduler


class WarmupStableDecay(WarmupScheduler):
    """Rises linearly over the warm-up, stays, and falls linearly to 0 over the last `decay` (Hu et al. 2024, MiniCPM).

    The rate of the stable part does not depend on the length of the budget, so that with `warmup_steps` a run can be
    made longer from any checkpoint of that part.
    """

    class Config(WarmupConfig):
        """The keys of warm-up, stable, decay."""

        decay: float = Field(0.1, gt=0, le=1, description="Share at the end in which the rate falls to 0.")

        @model_validator(mode="after")
        def _parts_fit(self) -> Self:
            if self.warmup_steps is None and self.warmup + self.decay > 1 + 1e-9:
                raise ValueError(f"`warmup` ({self.warmup:g}) and `decay` ({self.decay:g}) are more than the whole")
            return self

    config: Config

    def fall(self, progress: Progress) -> float:
        """1 until the decay begins."""
        return min(1.0, (1.0 - self.used(progress)) / self.config.decay)

    def check(self, start: Progress) -> None:
        """Refuse, beside what every schedule refuses, a warm-up that reaches into the decay."""
        super().check(start)
        share = self.warmup_share(start)
        if share + self.config.decay > 1 + 1e-9:
            raise RecipeError(
                f"`warmup_steps` ({self.config.warmup_steps} of {start.max_steps} steps) and `decay` "
                f"({self.config.decay:g}) are more than the whole",
                key="decay",
                allowed=f"up to {1 - share:g}",
            )
