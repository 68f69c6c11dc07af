"""Common code of the tasks on labelled texts: the tokenizer, and batches of texts that are tokenised once."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kdcore import (
    Batch,
    ComponentConfig,
    DataError,
    FinishedRun,
    InputError,
    Model,
    Split,
    Task,
    check_fit,
    load_tokenizer,
    vocabulary_size,
)
from kdcore_supervised.data.labelled_tokens import TokenizedTexts

logger = logging.getLogger("kdcore")

PARTS: dict[Split, str] = {"train": "train", "held_out": "validation", "test": "test"}
"""Name of the data's part of each split."""

_SHOWN_CHARACTERS = 60


class NamedPart(Protocol):
    """A part of the data: its texts under a name such as `train`."""

    @property
    def name(self) -> str:
        """Name of the part."""

    def __len__(self) -> int: ...


def log_parts(parts: Sequence[NamedPart], report: Counter[str]) -> None:
    """Log the sizes of the parts, and the counts from reading them."""
    sizes = ", ".join(f"{part.name} {len(part):,}" for part in parts)
    logger.info(f"labelled texts: {sizes}")
    for what, count in report.items():
        if count:
            logger.info(f"labelled texts: {count:,} {what}")


def warn_of_problems(name: str, problems: Iterable[str]) -> None:
    """Warn of likely problems of a part."""
    for problem in problems:
        logger.warning(f"labelled texts: {name}: {problem}")


def warn_of_overlap(name: str, texts: int, first: str | None) -> None:
    """Warn if texts of a part are also in `train`, and show the first of them."""
    if texts:
        shown = str(first)[:_SHOWN_CHARACTERS]
        logger.warning(f"{texts:,} texts of `{name}` are also in `train`, such as {shown!r}")


def no_labels(split: Split) -> DataError:
    """Return the error for scoring a split without labels."""
    return DataError(
        f"the split `{PARTS[split]}` has no labels, so predictions cannot be scored",
        key=f"task.data.{PARTS[split]}",
        hint="score on `validation`; predictions for unlabelled texts are written without scores",
    )


def score_rows(run: FinishedRun, is_score: Callable[[str], bool]) -> dict[str, str]:
    """Return a row of `kdcore summary` for each held-out score."""
    return {
        f"held-out {name}": f"{first:.4f} at the start, {later[-1]:.4f} at the end, {max(later):.4f} at best"
        for name, (first, *later) in run.held_out.items()
        if later and is_score(name)
    }


class LabelledTask(Task):
    """Train on labelled texts, which are tokenised once at the start. `config.data` names the tokenizer."""

    config: Any

    masks_tokens = False
    distinct_epochs = 1  # every epoch has the same texts

    def __init__(self, config: ComponentConfig, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        if self.config.data.tokenizer is None:
            raise InputError(
                "no tokenizer is set, and the models have no weights to take one from",
                key="task.data.tokenizer",
                hint="set it to a folder or hub name",
            )
        self.tokenizer = load_tokenizer(self.config.data.tokenizer)

    @classmethod
    def completed(cls, config: ComponentConfig, student: Model, teacher: Model | None) -> ComponentConfig:
        """Use the tokenizer of the student's initial weights, or the teacher's tokenizer if there are none."""
        data = cast(Any, config).data
        source = student.source or (teacher.source if teacher else None)
        if data.tokenizer is not None or source is None:
            return config
        return config.model_copy(update={"data": data.model_copy(update={"tokenizer": source})})

    @abstractmethod
    def tokens(self, split: Split) -> TokenizedTexts:
        """Return the sequences of a split."""

    def check(self, student: Model, teacher: Model | None) -> None:
        """Compare length and vocabulary with both models."""
        tokens = [self.tokens(split) for split in PARTS]
        check_fit(
            student,
            teacher,
            vocabulary=self.tokenizer.get_vocab,
            vocab_size=vocabulary_size(self.tokenizer),
            longest=max(int(one.lengths.max()) for one in tokens if len(one)),
            where=str(self.config.data.tokenizer),
            shorter="lower task.data.max_length",
            own_tokenizer="set task.data.tokenizer to the {whose}'s",
            pad_id=self.tokenizer.pad_token_id,
            tokenizer=lambda: self.tokenizer,
        )

    def num_samples(self, split: Split) -> int:
        """Return the number of sequences."""
        return len(self.tokens(split))

    def lengths(self, split: Split) -> np.ndarray:
        """Return the number of tokens (n,) of each sequence, special ones included."""
        return self.tokens(split).lengths

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer; as in training, special tokens in a text are text, and long texts are truncated."""
        longest = self.config.data.max_length
        settings = {"split_special_tokens": True, "model_max_length": longest, "truncation_side": "right"}
        for name, value in settings.items():
            setattr(self.tokenizer, name, value)
            self.tokenizer.init_kwargs[name] = value
        self.tokenizer.save_pretrained(folder)

    def _batch(self, split: Split, samples: np.ndarray, columns: Mapping[str, Tensor]) -> Batch:
        """Return a batch of sequences without masks, with `sample_ids` in addition to `columns`."""
        ids, lengths, types = self.tokens(split).rows(samples)
        real = np.arange(ids.shape[1]) < lengths[:, None]
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=lengths,
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=nothing,
            masked_labels=nothing,
            columns={"sample_ids": torch.from_numpy(np.asarray(samples, dtype=np.int64)), **columns},
            token_types=None if types is None else torch.from_numpy(types),
        )
