"""Warm-up, then exponential decay."""

from __future__ import annotations

from pydantic import Field

from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupConfig, WarmupScheduler


class Exponential(WarmupScheduler):
    """Rises with the square of the used share of the warm-up, then falls by `decay_rate` every `decay_step` steps.

    This is the curve `exp` of academic-budget-bert (Izsak et al. 2021). The factor is decay_rate ** (steps since
    warm-up / decay_step) after warm-up: in steps, whatever the schedule goes over. Where the warm-up is a share of
    time, the step at which it ended is taken from the run's mean pace so far: of n steps in a used share s,
    n * (1 - w / s) lie behind the share w. This is exact for a constant pace, and never makes the rate rise. The factor
    does not reach 0, and the end of the budget has no part in it.
    """

    class Config(WarmupConfig):
        """Exponential's keys."""

        decay_rate: float = Field(0.99, gt=0, le=1, description="What is left of the rate after `decay_step` steps.")
        decay_step: int = Field(1000, gt=0, description="Steps in which the rate falls by `decay_rate`.")

    config: Config

    def rise(self, progress: Progress) -> float:
        """The square of the used share of the warm-up."""
        return super().rise(progress) ** 2

    def fall(self, progress: Progress) -> float:
        """Decay by the steps since warm-up."""
        return float(self.config.decay_rate ** (self._steps_since_warmup(progress) / self.config.decay_step))

    def _steps_since_warmup(self, progress: Progress) -> float:
        if self.config.warmup_steps is not None:
            return max(0, progress.step - self.config.warmup_steps)
        used = self.used(progress)
        return max(0.0, progress.step * (1 - self.config.warmup / used)) if used > 0 else 0.0
