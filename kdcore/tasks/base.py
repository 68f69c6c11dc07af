"""The interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from kdcore.models.base import Model
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import Batch, ClassHead

if TYPE_CHECKING:
    from kdcore.tasks.finished_run import FinishedRun

Split = Literal["train", "held_out", "test"]
"""`test` is asked for only of a task with a `metric`."""

Order = Literal["global", "per_process"]


@dataclass(frozen=True)
class StoredData:
    """The data that a run has started on, as its folder has it.

    Attributes:
        fingerprint: the task's `fingerprint` at that time.
        folder: the task's `data_folder`; None if it had none, or if the run is older than this entry.
    """

    fingerprint: str
    folder: Path | None = None


class Task(ABC):
    """Data and batches. Subclasses are constructed as `Task(config, seed, cache)`.

    `seed` is the recipe's; `cache` is a folder where prepared data may be kept and found again.

    Attributes:
        order: `global`: all samples in one random order, dealt to the processes, so that their number changes nothing;
            `per_process`: each process draws from a share of its own, a random order of which it goes through.
    """

    order: Order = "global"

    masks_tokens: ClassVar[bool] = True
    """Whether batches have tokens to be predicted, so that losses may read predictions at masked positions."""

    auto_class: ClassVar[str] = "AutoModel"
    """The class of transformers that loads an exported student with everything that the task trains."""

    class Config(ComponentConfig):
        """The keys of the recipe's `task` section."""

    def __init__(self, config: ComponentConfig, seed: int, cache: Path) -> None:
        self.config = config
        self.seed = seed

    @classmethod
    def class_head(cls, config: ComponentConfig) -> ClassHead | None:
        """What students predict of whole sequences; told to models before anything is read. None if nothing."""
        return None

    @classmethod
    def completed(cls, config: ComponentConfig, student: Model, teacher: Model | None) -> ComponentConfig:
        """The configuration with what it leaves to the models, such as whose tokenizer is used."""
        return config

    @classmethod
    def resumed(cls, config: ComponentConfig, seed: int, cache: Path, stored: StoredData) -> Self:
        """Construct the task of a run that is resumed. Override it to open the folder that the run has stored.

        Args:
            config: as for the constructor, and so are `seed` and `cache`.
            seed: the recipe's.
            cache: folder of prepared data.
            stored: the data that the run has started on. If the task has other data, its `fingerprint` must differ.
        """
        return cls(config, seed, cache)

    @property
    def data_folder(self) -> Path | None:
        """Folder of the prepared data, which a run stores so that it resumes on it; None if there is none."""
        return None

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

    def lengths(self, split: Split) -> np.ndarray | None:
        """Length of each sample in tokens (n,), so that similar ones come together; None to leave them mixed."""
        return None

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

    @property
    def metric(self) -> str | None:
        """Name of the score, the higher the better, by which the best student is chosen; None without scores."""
        return None

    def scores(self, split: Split, outputs: np.ndarray) -> dict[str, float]:
        """Scores of a student's outputs for whole sequences, `metric` among them.

        Args:
            split: what the outputs are for.
            outputs: (n, C) float32, for each of the split's samples in their order.

        Raises:
            DataError: the split has no labels.
        """
        return {}

    def write_predictions(self, folder: Path, split: Split, outputs: np.ndarray) -> None:
        """Write a student's outputs for whole sequences into files of `folder`; arguments as for `scores`."""
        return None

    def sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return samples as an encoder reads them in use, without masks; encoders are compared on them.

        Args:
            split: where the samples are from.
            samples: (B,) int64 indices below `num_samples(split)`.

        Returns:
            Token ids (B, L), padded on the right, and lengths (B,); None if the task has none to compare encoders on.
        """
        return None

    def summary_rows(self, run: FinishedRun) -> dict[str, str]:
        """Return what `kdcore summary` prints about a run of this task besides losses and sizes.

        Args:
            run: the run; its `task` is this one.

        Returns:
            Title -> text of each row. A row replaces the one that kdcore would print under the same title, such as
            `held-out accuracy`.

        Raises:
            InputError: the run cannot be summarised.
        """
        return {}
