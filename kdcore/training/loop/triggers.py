"""Decide when validation, checkpoints and exports are due.

All processes make the same decisions, because they agree on progress.

An action is due in a step in which the progress (in steps or time) reaches one of its due points. Therefore, regardless
of restarts, no action is skipped, and an action that was due before a checkpoint is never repeated after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdcore.progress import Progress
from kdcore.recipe.schema import CheckpointSettings, Every, RecipeSettings, ValidationSettings


@dataclass(frozen=True)
class Triggers:
    """Decide which actions are due between two points of a run.

    Attributes:
        validation_settings: the recipe's `validation`.
        checkpoint_settings: the recipe's `checkpoints`.
        steps_per_epoch: steps of one pass over the training data; usually not an integer.
    """

    validation_settings: ValidationSettings
    checkpoint_settings: CheckpointSettings
    steps_per_epoch: float

    def validation(self, before: Progress, now: Progress) -> bool:
        """Return whether validation is due; `begin` and `end` of the budget have their own intervals."""
        settings = self.validation_settings
        every: Every
        if settings.begin is not None and now.fraction <= settings.begin.share:
            every = settings.begin.every
        elif settings.end is not None and now.fraction > 1.0 - settings.end.share:
            every = settings.end.every
        elif settings.every == "never":
            return False
        else:
            every = settings.every
        return self._passed(every, before, now)

    def checkpoint(self, before: Progress, now: Progress) -> bool:
        """Return whether a checkpoint is due."""
        return self._passed(self.checkpoint_settings.every, before, now)

    def milestone(self, before: Progress, now: Progress) -> bool:
        """Return whether a checkpoint that is kept permanently is due."""
        return bool(_between(self.checkpoint_settings.keep_at, before, now))

    def exports(self, before: Progress, now: Progress) -> list[float]:
        """Return the fractions of the budget whose exports are due now."""
        return _between(self.checkpoint_settings.export_at, before, now)

    def _passed(self, every: Every, before: Progress, now: Progress) -> bool:
        return self._periods(every, now) > self._periods(every, before)

    def _periods(self, every: Every, progress: Progress) -> int:
        """Count the whole intervals that have passed."""
        if isinstance(every, int):
            return progress.step // every
        if every.steps is not None:
            return progress.step // every.steps
        if every.minutes is not None:
            return int(progress.seconds // (every.minutes * 60))
        assert every.epochs is not None
        # A rounding error must not hide the exact end of an epoch.
        return math.floor(progress.step / (every.epochs * self.steps_per_epoch) + 1e-9)


class Patience:
    """Count validations without improvement of the metric that early stopping watches.

    Attributes:
        best: best value of the metric so far, by its name; empty before the first validation.
        waited: number of validations since that value was reached.
    """

    def __init__(self, settings: RecipeSettings) -> None:
        self._settings = settings.early_stopping
        metric = self._settings.metric
        is_loss = metric == "loss" or metric.partition("/")[0] in settings.losses
        self._sign = 1.0 if (self._settings.mode or ("min" if is_loss else "max")) == "min" else -1.0
        self.best: dict[str, float] = {}
        self.waited = 0

    @property
    def used_up(self) -> bool:
        """Whether training is finished."""
        return self._settings.is_over(self.best, self.waited)

    def add(self, values: Mapping[str, float]) -> None:
        """Record a validation; it does not count if the metric's loss was not active."""
        metric = self._settings.metric
        if self._settings.patience is None or metric not in values:
            return
        if metric not in self.best or self._sign * values[metric] < self._sign * self.best[metric]:
            self.best, self.waited = {metric: values[metric]}, 0
        else:
            self.waited += 1

    def restore(self, best: Mapping[str, float], waited: int) -> None:
        """Continue from a checkpoint, unless it was written for a different metric."""
        if self._settings.metric in best:
            self.best, self.waited = dict(best), waited

    def __str__(self) -> str:
        (metric, best), waited = next(iter(self.best.items())), self.waited
        return f"{metric} has not improved on {best:.5g} for {waited} validations (early_stopping.patience)"


def _between(shares: list[float], before: Progress, now: Progress) -> list[float]:
    return [share for share in shares if before.fraction < share <= now.fraction]
