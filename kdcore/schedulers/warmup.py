"""What the built-in schedules have in common: what they go over, and how the rate rises."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from kdcore.errors import RecipeError
from kdcore.progress import Progress
from kdcore.recipe.schema import ComponentConfig
from kdcore.schedulers.base import Scheduler


class WarmupConfig(ComponentConfig):
    """Keys that every built-in schedule has."""

    over: Literal["budget", "steps", "time"] = Field(
        "budget",
        description="What is used up: `steps`, `time` (hours), or `budget`, whichever of both is used up most.",
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of it in which the rate rises.")
    warmup_steps: int | None = Field(None, ge=0, description="Steps in which the rate rises, in place of `warmup`.")

    @model_validator(mode="after")
    def _one_warmup(self) -> WarmupConfig:
        if self.warmup_steps is not None and "warmup" in self.model_fields_set:
            raise ValueError(
                "`warmup` (a share) and `warmup_steps` are two ways to say one thing: leave one out "
                "(`warmup: null` removes what another recipe states)"
            )
        return self


class WarmupScheduler(Scheduler):
    """Rises over the warm-up, and falls after it as a subclass says.

    The factor is `rise` * `fall`. Over N steps, W of them warm-up, the rise of step n (from 0) is (n + 1) / (W + 1)
    while n < W, so that no step is wasted at rate 0, and 1 from then on. Over time it is the used share of the warm-up;
    the first step then has rate 0, for how long a step takes is not known before it.

    The fall goes by the used share s of what the schedule goes over and by the share w that is warm-up, and is 1 until
    s reaches w. `warmup_steps` are a share of the limit of steps. Where steps have no limit, or the schedule goes over
    time, that share cannot be known: w is 0, so that the fall begins with the first step beside the rise.
    """

    class Config(WarmupConfig):
        """The keys of the recipe's `scheduler` section."""

    config: WarmupConfig

    @abstractmethod
    def fall(self, progress: Progress) -> float:
        """Factor on the peak learning rate beside the warm-up: 1 until its end, then what the curve says."""

    def factor(self, progress: Progress) -> float:
        """The factor at this progress."""
        return self.rise(progress) * self.fall(progress)

    def rise(self, progress: Progress) -> float:
        """Used share of the warm-up, 1 after it."""
        steps = self.config.warmup_steps
        if steps is not None:
            return min(1.0, (progress.step + 1) / (steps + 1))
        used, warmup = self.used(progress), self.config.warmup
        if used >= warmup:
            return 1.0
        step = 1 / progress.max_steps if progress.max_steps and self.config.over != "time" else 0.0
        return min(1.0, (used + step) / (warmup + step))

    def used(self, progress: Progress) -> float:
        """Used share of what the schedule goes over, 0 at the start and never more than 1."""
        shares = {"budget": progress.fraction, "steps": progress.fraction_of_steps, "time": progress.fraction_of_time}
        share = shares[self.config.over]
        assert share is not None, f"`check` refuses `over: {self.config.over}` under this budget"
        return min(1.0, share)

    def warmup_share(self, progress: Progress) -> float:
        """The share of what the schedule goes over that is warm-up, as far as it is known beforehand."""
        if self.config.warmup_steps is None:
            return self.config.warmup
        if self.config.over == "time" or progress.max_steps is None:
            return 0.0
        return self.config.warmup_steps / progress.max_steps

    def left(self, progress: Progress) -> float:
        """The share of what follows warm-up that is left: 1 until the end of warm-up, 0 at the end."""
        return min(1.0, (1.0 - self.used(progress)) / (1.0 - self.warmup_share(progress)))

    def check(self, start: Progress) -> None:
        """Refuse limits that the schedule needs and the budget lacks, and a warm-up that the budget does not outlast.

        With a limit of time alone nobody knows how many steps there will be: any `warmup_steps` pass.

        Raises:
            RecipeError: names the keys.
        """
        over, steps = self.config.over, self.config.warmup_steps
        if over == "time" and start.max_seconds is None:
            raise RecipeError(
                "the schedule goes over time, but the budget has no `hours`",
                key="over",
                hint="state `training.budget.hours`, or let `scheduler.over` be `steps` or `budget`",
            )
        if over == "steps" and start.max_steps is None:
            raise RecipeError(
                "the schedule goes over steps, but the budget has neither `steps` nor `epochs`",
                key="over",
                hint="state `training.budget.steps`, or let `scheduler.over` be `time` or `budget`",
            )
        if steps is not None and start.max_steps is not None and steps >= start.max_steps:
            raise RecipeError(
                f"a warm-up of {steps} steps does not end within the budget of {start.max_steps} steps "
                "(`training.budget`)",
                key="warmup_steps",
                allowed=f"less than {start.max_steps}",
            )
