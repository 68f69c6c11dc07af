"""Bundle the objects that all parts of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdcore.progress import Progress
from kdcore.recipe.schema import RecipeSettings
from kdcore.training.checkpoint.manager import Checkpoints
from kdcore.training.loop.monitor import Monitor
from kdcore.training.loop.plan import Plan
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.training.runtime.shutdown import GracefulShutdown
from kdcore.training.runtime.startup import StartupTimer
from kdcore.training.runtime.watchdog import Watchdog


@dataclass(frozen=True)
class RunContext:
    """Objects that all parts of a training session share.

    Attributes:
        plan: the checked recipe as objects, without weights.
        folder: the run folder.
        processes: this process's rank, device and host group.
        monitor: progress bar, log file and trackers.
        checkpoints: writer of checkpoints.
        shutdown: whether a signal has requested a stop.
        watchdog: watchdog that ends the process if it makes no progress.
        check_lock: function that raises an error on process 0 if another run has taken over the run folder.
        startup: duration of each part of the start-up in seconds.
        start: progress before the first step, with the run's limits.
    """

    plan: Plan
    folder: Path
    processes: DistributedContext
    monitor: Monitor
    checkpoints: Checkpoints
    shutdown: GracefulShutdown
    watchdog: Watchdog
    check_lock: Callable[[], None]
    startup: StartupTimer
    start: Progress

    @property
    def settings(self) -> RecipeSettings:
        """The core's settings of the recipe."""
        return self.plan.recipe.settings
