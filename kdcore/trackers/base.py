"""Define the interface of a tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from kdcore.recipe.schema import ComponentConfig


class Tracker(ABC):
    """Record metrics on process 0. Subclasses are constructed as `Tracker(config, run_folder)`."""

    class Config(ComponentConfig):
        """The keys of this tracker's entry in `tracking`."""

    def __init__(self, config: ComponentConfig, run_folder: Path) -> None:
        self.config = config
        self.run_folder = run_folder

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics after `step` completed steps, with names such as `train/loss`."""

    @abstractmethod
    def rewind(self, step: int) -> None:
        """Discard metrics after `step`, from which an interrupted run resumes."""

    @abstractmethod
    def close(self) -> None:
        """Flush buffered metrics; `log` is not called afterwards."""
