"""Warm-up, then exponential decay."""

from __future__ import annotations

from pydantic import Field

from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupConfig, WarmupScheduler


class Exponential(WarmupScheduler):
    """Quadratic warm-up, then decay by a factor of `decay_rate` every `decay_step` steps.

    This is the curve `exp` of academic-budget-bert (Izsak et al. 2021). The factor after warm-up is decay_rate **
    (steps since warm-up / decay_step); steps are counted even with `over: time`. If the warm-up is a fraction w of
    time, its last step is estimated from the mean pace: if n steps have taken the fraction s of the time, n * (1 - w /
    s) of them came after the warm-up. This is exact for a constant pace, and the rate never increases. The factor does
    not reach 0 and does not depend on the length of the budget.
    """

    class Config(WarmupConfig):
        """Exponential's keys."""

        decay_rate: float = Field(0.99, gt=0, le=1, description="Decay factor per `decay_step` steps.")
        decay_step: int = Field(1000, gt=0, description="Steps after which the rate has decayed by `decay_rate`.")

    config: Config

    def rise(self, progress: Progress) -> float:
        """Return the square of the used fraction of the warm-up."""
        return super().rise(progress) ** 2

    def fall(self, progress: Progress) -> float:
        """Return the decay for the steps since warm-up."""
        return float(self.config.decay_rate ** (self._steps_since_warmup(progress) / self.config.decay_step))

    def _steps_since_warmup(self, progress: Progress) -> float:
        if self.config.warmup_steps is not None:
            return max(0, progress.step - self.config.warmup_steps)
        used = self.used(progress)
        return max(0.0, progress.step * (1 - self.config.warmup / used)) if used > 0 else 0.0
