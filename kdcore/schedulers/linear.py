"""Warm-up, then linear decay."""

from __future__ import annotations

from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupConfig, WarmupScheduler


class Linear(WarmupScheduler):
    """Linear warm-up, then linear decay to 0 at the end (Devlin et al. 2019).

    For N steps, of which W are warm-up, the factor of step n (counted from 0) is (n + 1) / (W + 1) while n < W, so that
    the first step does not have rate 0, and (N - n) / (N - W) afterwards.
    """

    class Config(WarmupConfig):
        """Linear's keys."""

    config: Config

    def fall(self, progress: Progress) -> float:
        """Return the remaining fraction of the time after warm-up."""
        return self.left(progress)
