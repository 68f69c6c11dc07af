"""When validation, checkpoints and exports are due: decided from the agreed progress alone, alike on all processes.

Something is due in a step if the step, or the time that it took, carried progress over one of its marks. What was due
before a checkpoint is therefore never due again after it, and nothing is left out, however often a run is restarted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdcore.progress import Progress
from kdcore.recipe.schema import CheckpointSettings, Every, ValidationSettings


@dataclass(frozen=True)
class Triggers:
    """What is due between two moments of a run.

    Attributes:
        validation_settings: of the recipe.
        checkpoint_settings: of the recipe.
        steps_per_epoch: steps that one pass over the training data takes; not whole as a rule.
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
        """Return the fractions of the budget for which the student is to be exported now."""
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
        # A step that ends an epoch exactly must not miss it by a rounding error.
        return math.floor(progress.step / (every.epochs * self.steps_per_epoch) + 1e-9)


def _between(shares: list[float], before: Progress, now: Progress) -> list[float]:
    return [share for share in shares if before.fraction < share <= now.fraction]
