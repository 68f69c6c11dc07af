"""The interface of a learning-rate schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kdcore.progress import Progress
from kdcore.recipe.schema import ComponentConfig


class Scheduler(ABC):
    """A pure function from progress to a factor on the peak learning rate, so that there is no state to restore.

    Subclasses are constructed as `Scheduler(config)`.
    """

    class Config(ComponentConfig):
        """The keys of the recipe's `scheduler` section."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """Factor on the peak learning rate for the step that starts at `progress`."""

    def check(self, start: Progress) -> None:  # noqa: B027 - most schedules fit any budget
        """Refuse a budget that the schedule cannot follow, before any model is loaded.

        Args:
            start: the run's progress before its first step, which carries its limits.

        Raises:
            RecipeError: its key is relative to the recipe's `scheduler` section.
        """
