"""Define the interface of a learning-rate schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kdcore.progress import Progress
from kdcore.recipe.schema import ComponentConfig


class Scheduler(ABC):
    """Compute a multiplier of the peak learning rate from the progress alone, without state to restore.

    Subclasses are constructed as `Scheduler(config)`.
    """

    class Config(ComponentConfig):
        """The keys of the recipe's `scheduler` section."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """Return the multiplier of the peak learning rate for the step that starts at `progress`."""

    def check(self, start: Progress) -> None:  # noqa: B027 - most schedules support any budget
        """Reject a budget that the schedule does not support, before any model is loaded.

        Args:
            start: the run's progress before its first step, with its limits.

        Raises:
            RecipeError: the budget is not supported; its key is relative to the recipe's `scheduler` section.
        """
