"""Warm-up, then half a cosine."""

from __future__ import annotations

import math

from pydantic import Field

from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupConfig, WarmupScheduler


class Cosine(WarmupScheduler):
    """Linear warm-up, then half a cosine down to `final`.

    This is SGDR (Loshchilov and Hutter 2017) without restarts. If t is the used fraction of the time after warm-up, the
    factor is final + (1 - final) * (1 + cos(pi * t)) / 2.
    """

    class Config(WarmupConfig):
        """Cosine's keys."""

        final: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, as a fraction of the peak.")

    config: Config

    def fall(self, progress: Progress) -> float:
        """Return the value of the cosine."""
        final = self.config.final
        return final + (1 - final) * (1 + math.cos(math.pi * (1 - self.left(progress)))) / 2
