"""The interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np

from kdcore.models.base import Model
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import Batch

Split = Literal["train", "held_out"]
Order = Literal["global", "per_process"]


class Task(ABC):
    """Data and batches. Subclasses are constructed as `Task(config, seed, cache)`.

    `seed` is the recipe's; `cache` is a folder where prepared data may be kept and found again.

    Attributes:
        order: `global`: all samples in one random order, dealt to the processes, so that their number changes nothing;
            `per_process`: each process draws from a share of its own, a random order of which it goes through.
    """

    order: Order = "global"

    class Config(ComponentConfig):
        """The keys of the recipe's `task` section."""

    def __init__(self, config: ComponentConfig, seed: int, cache: Path) -> None:
        self.config = config
        self.seed = seed

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the prepared data; a run is resumed only on the same data."""

    @abstractmethod
    def check(self, student: Model, teacher: Model | None) -> None:
        """Raise an `InputError` if the data does not fit the models; `teacher` is None if no loss reads it."""

    @abstractmethod
    def num_samples(self, split: Split) -> int:
        """How many samples a split has."""

    @abstractmethod
    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """A batch of the given samples; a pure function of seed, samples and epochs.

        Args:
            split: where the samples are from.
            samples: (B,) int64 indices below `num_samples(split)`.
            epochs: (B,) int64, how often each sample has been seen before.
        """

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files into an exported student's folder."""
