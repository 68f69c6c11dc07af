"""Warm-up, a stable part, then decay."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from kdcore.errors import RecipeError
from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupConfig, WarmupScheduler


class WarmupStableDecay(WarmupScheduler):
    """Linear warm-up, a constant rate, and linear decay to 0 over the last fraction `decay` (Hu et al. 2024, MiniCPM).

    The constant rate does not depend on the length of the budget, so that with `warmup_steps` a run can be extended
    from any checkpoint of that phase.
    """

    class Config(WarmupConfig):
        """The keys of warm-up, stable, decay."""

        decay: float = Field(0.1, gt=0, le=1, description="Length of the final decay, as a fraction of `over`.")

        @model_validator(mode="after")
        def _parts_fit(self) -> Self:
            if self.warmup_steps is None and self.warmup + self.decay > 1 + 1e-9:
                raise ValueError(f"the sum of `warmup` ({self.warmup:g}) and `decay` ({self.decay:g}) exceeds 1")
            return self

    config: Config

    def fall(self, progress: Progress) -> float:
        """Return 1 until the decay starts, then the linear decay."""
        return min(1.0, (1.0 - self.used(progress)) / self.config.decay)

    def check(self, start: Progress) -> None:
        """Check the budget as for every schedule, and reject a warm-up that overlaps the decay."""
        super().check(start)
        share = self.warmup_share(start)
        if share + self.config.decay > 1 + 1e-9:
            raise RecipeError(
                f"the sum of `warmup_steps` ({self.config.warmup_steps} of {start.max_steps} steps) and `decay` "
                f"({self.config.decay:g}) exceeds the budget",
                key="decay",
                allowed=f"up to {1 - share:g}",
            )
