"""The interface of a tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from kdcore.recipe.schema import ComponentConfig


class Tracker(ABC):
    """Receives metrics on process 0. Subclasses are constructed as `Tracker(config, run_folder)`."""

    class Config(ComponentConfig):
        """The keys of this tracker's entry in `tracking`."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        self.config = config
        self.run_folder = run_folder

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of `step` (steps done), named such as `train/loss`."""

    @abstractmethod
    def rewind(self, step: int) -> None:
        """Forget what came after `step`: the run was interrupted and continues from there."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is buffered; nothing is logged afterwards."""
