"""Implement the time axis and the warm-up that the built-in schedules share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from kdcore.errors import RecipeError
from kdcore.progress import Progress
from kdcore.recipe.schema import ComponentConfig
from kdcore.schedulers.base import Scheduler


class WarmupConfig(ComponentConfig):
    """Common keys of the built-in schedules."""

    over: Literal["budget", "steps", "time"] = Field(
        "budget",
        description="Time axis: `steps`, `time` (hours), or `budget` (the limit with the largest used fraction).",
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="Length of the warm-up, as a fraction of `over`.")
    warmup_steps: int | None = Field(None, ge=0, description="Length of the warm-up in steps, instead of `warmup`.")

    @model_validator(mode="after")
    def _one_warmup(self) -> WarmupConfig:
        if self.warmup_steps is not None and "warmup" in self.model_fields_set:
            raise ValueError(
                "`warmup` (a fraction) and `warmup_steps` are mutually exclusive: remove one "
                "(`warmup: null` removes an inherited value)"
            )
        return self


class WarmupScheduler(Scheduler):
    """Warm-up, then a decay defined by the subclass.

    The factor is `rise` * `fall`. For N steps, of which W are warm-up, the rise of step n (counted from 0) is (n + 1) /
    (W + 1) while n < W, so that the first step does not have rate 0, and 1 afterwards. With `over: time`, the rise is
    the used fraction of the warm-up; the first step then has rate 0, because its duration is not known in advance.

    The fall depends on the used fraction s of `over` and on the fraction w of the warm-up, and is 1 until s reaches w.
    `warmup_steps` is converted to a fraction of the step limit. Without a step limit, or with `over: time`, this
    fraction is unknown. Then w is 0, and the fall starts at the first step, in parallel with the rise.
    """

    class Config(WarmupConfig):
        """The keys of the recipe's `scheduler` section."""

    config: WarmupConfig

    @abstractmethod
    def fall(self, progress: Progress) -> float:
        """Return the decay factor: 1 until the end of the warm-up, then the curve of the subclass."""

    def factor(self, progress: Progress) -> float:
        """Return the factor at this progress."""
        return self.rise(progress) * self.fall(progress)

    def rise(self, progress: Progress) -> float:
        """Return the used fraction of the warm-up, 1 after it."""
        steps = self.config.warmup_steps
        if steps is not None:
            return min(1.0, (progress.step + 1) / (steps + 1))
        used, warmup = self.used(progress), self.config.warmup
        if used >= warmup:
            return 1.0
        step = 1 / progress.max_steps if progress.max_steps and self.config.over != "time" else 0.0
        return min(1.0, (used + step) / (warmup + step))

    def used(self, progress: Progress) -> float:
        """Return the used fraction of `over`, from 0 to 1."""
        shares = {"budget": progress.fraction, "steps": progress.fraction_of_steps, "time": progress.fraction_of_time}
        share = shares[self.config.over]
        assert share is not None, f"`check` rejects `over: {self.config.over}` with this budget"
        return min(1.0, share)

    def warmup_share(self, progress: Progress) -> float:
        """Return the length of the warm-up as a fraction of `over`; 0 if it is unknown."""
        if self.config.warmup_steps is None:
            return self.config.warmup
        if self.config.over == "time" or progress.max_steps is None:
            return 0.0
        return self.config.warmup_steps / progress.max_steps

    def left(self, progress: Progress) -> float:
        """Return the remaining fraction of the time after warm-up: 1 until the end of warm-up, 0 at the end."""
        return min(1.0, (1.0 - self.used(progress)) / (1.0 - self.warmup_share(progress)))

    def check(self, start: Progress) -> None:
        """Reject a budget without the limit that the schedule needs, or a warm-up as long as the budget.

        With a time limit only, the number of steps is unknown, and any `warmup_steps` is accepted.

        Raises:
            RecipeError: the budget is not supported; the error names the key.
        """
        over, steps = self.config.over, self.config.warmup_steps
        if over == "time" and start.max_seconds is None:
            raise RecipeError(
                "`over` is `time`, but the budget has no `hours`",
                key="over",
                hint="set `training.budget.hours`, or set `scheduler.over` to `steps` or `budget`",
            )
        if over == "steps" and start.max_steps is None:
            raise RecipeError(
                "`over` is `steps`, but the budget has neither `steps` nor `epochs`",
                key="over",
                hint="set `training.budget.steps`, or set `scheduler.over` to `time` or `budget`",
            )
        if steps is not None and start.max_steps is not None and steps >= start.max_steps:
            raise RecipeError(
                f"the warm-up must have fewer steps than `training.budget` (found {steps}, budget {start.max_steps})",
                key="warmup_steps",
                allowed=f"less than {start.max_steps}",
            )
