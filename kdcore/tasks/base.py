"""Define the interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from kdcore.models.base import Model
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import Batch, Head, HeadLevel

if TYPE_CHECKING:
    from kdcore.tasks.finished_run import FinishedRun

Split = Literal["train", "held_out", "test"]
"""`test` is requested only from a task with a `metric`."""

Order = Literal["global", "per_process"]

TaskOutputs = np.ndarray | Sequence[np.ndarray]
"""(n, C) from a head for whole sequences; n arrays (length, C) from a head for tokens."""


@dataclass(frozen=True)
class StoredData:
    """The data that a run started with, as recorded in its folder.

    Attributes:
        fingerprint: the task's `fingerprint` at that time.
        folder: the task's `data_folder`; None if it had none, or if the run predates this entry.
    """

    fingerprint: str
    folder: Path | None = None


class Task(ABC):
    """Provide data and batches. Subclasses are constructed as `Task(config, seed, cache)`.

    `seed` is the recipe's seed; `cache` is a folder for caching prepared data.

    Attributes:
        config: the section `task` of the recipe, as `completed` returned it.
        seed: the recipe's seed.
        masks_tokens: whether batches have tokens to be predicted; if False, losses on masked positions are rejected.
        columns: the columns of its batches, by name; a task with scores needs `sample_ids`.
        order: `global`: all samples in one random order, distributed over the processes, so that results do not
            depend on their number;
            `per_process`: each process reads its own part of the samples, in random order.
    """

    order: Order = "global"

    masks_tokens: ClassVar[bool] = True
    """Whether batches have tokens to be predicted, so that losses may read predictions at masked positions."""

    columns: ClassVar[Mapping[str, HeadLevel] | None] = None
    """The columns of its batches: one row per sequence (B, ...), or, at level `token`, a value per position (B, L).

    Columns that losses request are checked against these before data is prepared. If None, they are checked against a
    first batch only.
    """

    auto_class: ClassVar[str] = "AutoModel"
    """Deprecated: the class of transformers that loads an export is the class of the first of `heads`."""

    class Config(ComponentConfig):
        """The keys of the recipe's `task` section."""

    def __init__(self, config: ComponentConfig, seed: int, cache: Path) -> None:
        self.config = config
        self.seed = seed

    @classmethod
    def heads(cls, config: ComponentConfig) -> tuple[Head, ...]:
        """Return the heads that the task trains; empty if there are none.

        They are passed to the models before data is read. The first head is the task's own: exports contain it under
        its Auto class, and `scores` are computed from its outputs.
        """
        head = cls.class_head(config)
        return () if head is None else (head,)

    @classmethod
    def class_head(cls, config: ComponentConfig) -> Head | None:
        """Deprecated: override `heads`."""
        return None

    @classmethod
    def completed(cls, config: ComponentConfig, student: Model, teacher: Model | None) -> ComponentConfig:
        """Fill in settings that depend on the models, such as the model whose tokenizer is used."""
        return config

    @classmethod
    def resumed(cls, config: ComponentConfig, seed: int, cache: Path, stored: StoredData) -> Self:
        """Construct the task of a resumed run. Override it to open the data folder recorded by the run.

        Args:
            config: as for the constructor.
            seed: the recipe's seed.
            cache: folder of prepared data.
            stored: the data that the run started with. If the task uses different data, its `fingerprint` must differ.
        """
        return cls(config, seed, cache)

    @property
    def data_folder(self) -> Path | None:
        """Folder of the prepared data, recorded so that a run resumes with the same data; None if there is none."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the prepared data; a run resumes only with the same data."""

    @abstractmethod
    def check(self, student: Model, teacher: Model | None) -> None:
        """Raise an `InputError` if the data is incompatible with the models; `teacher` is None if no loss uses it."""

    @abstractmethod
    def num_samples(self, split: Split) -> int:
        """Return the number of samples of a split."""

    def lengths(self, split: Split) -> np.ndarray | None:
        """Return the length of each sample in tokens (n,), for batching by length; None to mix all lengths."""
        return None

    @abstractmethod
    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Build a batch of the given samples; a pure function of seed, samples and epochs.

        Args:
            split: split of the samples.
            samples: (B,) int64 indices below `num_samples(split)`.
            epochs: (B,) int64, number of times that each sample has been seen before.
        """

    def batch_at(self, split: Split, samples: np.ndarray, epochs: np.ndarray, fraction: float) -> Batch:
        """Build a training batch at a given fraction of the budget. Override it if batches change during training.

        By default, and always at fraction 1, this is the batch that `batch` returns, which is also used for validation.
        """
        return self.batch(split, samples, epochs)

    def scheduled(self, fraction: float) -> dict[str, float]:
        """Return the values of scheduled settings at a given fraction of the budget, by their names in metrics."""
        return {}

    def draw(self, split: Split, samples: np.ndarray, epochs: np.ndarray, fraction: float = 1.0) -> Batch:
        """Build a batch that also contains split, samples and epochs on the host; arguments as for `batch_at`."""
        return self.batch_at(split, samples, epochs, fraction).of_samples(split, samples, epochs)

    @property
    def batch_identity(self) -> Mapping[str, str]:
        """Named values, such as `data` and `masks`, that determine the models' inputs for each split, sample and epoch.

        Two tasks with the same identity draw the same batches. Signals stored for one can be read by the other.
        """
        return {"data": self.fingerprint}

    @property
    def distinct_epochs(self) -> int | None:
        """Number of epochs until the models' inputs repeat: 1 if all epochs are equal, None if they never repeat."""
        return None

    def texts(self, split: Split, samples: np.ndarray) -> Sequence[str] | None:
        """Return the texts of samples, to look up vectors computed by other programs; None if the task has no texts."""
        return None

    @property
    def separate_views(self) -> bool:
        """Whether the teacher's tokens differ from the student's. If so, batches have `teacher` and `units`."""
        return False

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files into an exported student's folder."""

    @property
    def metric(self) -> str | None:
        """Score that selects the best student (higher is better); None without scores."""
        return None

    def scores(self, split: Split, outputs: TaskOutputs) -> dict[str, float]:
        """Compute scores of a student's outputs, including `metric`.

        Args:
            split: split of the outputs.
            outputs: float32 outputs of the task's own head for each of the split's samples in their order: (n, C), or
                n arrays (length, C) if the head's level is `token`.

        Raises:
            DataError: the split has no labels.
        """
        return {}

    def write_predictions(self, folder: Path, split: Split, outputs: TaskOutputs) -> None:
        """Write a student's outputs to files in `folder`; arguments as for `scores`."""
        return None

    def baselines(self, split: Split) -> dict[str, float]:
        """Return scores of predictions that ignore the text, by name, such as the `accuracy` of the majority class."""
        return {}

    def finish_export(self, folder: Path) -> None:
        """Add the task's own files to an exported student's folder, which already contains weights and tokenizer."""
        return None

    def card_usage(self) -> tuple[Mapping[str, str], str] | None:
        """Return instructions for using an export, for its model card; None if it is used with transformers.

        Returns:
            Metadata for the Hugging Face hub (`library_name` and optional keys such as `pipeline_tag`), and a Python
            program in which `path = "."` refers to the export.
        """
        return None

    def sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return unmasked samples for comparing encoders.

        Args:
            split: split of the samples.
            samples: (B,) int64 indices below `num_samples(split)`.

        Returns:
            Token ids (B, L), padded on the right, and lengths (B,); None if there are no samples for a comparison.
        """
        return None

    def teacher_sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return `sequences` as tokens of the teacher; None if its tokens are the same or there are no samples."""
        return None

    def summary_rows(self, run: FinishedRun) -> dict[str, str]:
        """Return the rows that `kdcore summary` prints about a run of this task besides losses and sizes.

        Args:
            run: the run; its `task` is this one.

        Returns:
            Title -> text of each row. A row replaces the one that kdcore would print under the same title, such as
            `held-out accuracy`.

        Raises:
            InputError: the run cannot be summarised.
        """
        return {}
