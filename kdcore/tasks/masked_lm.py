"""Masked language modelling on prepared text."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from kdcore.data.manifest import FIRST_WITH_HASH
from kdcore.data.preparation import open_data, reopen_data, stated_tokenizer
from kdcore.data.shards import SPLITS, Sequences
from kdcore.data.tokenizers import load_tokenizer, tokenizer_fingerprint
from kdcore.data.weighting import WeightedRows
from kdcore.errors import DataError, InputError
from kdcore.models.base import Model
from kdcore.progress import value_at
from kdcore.recipe.schema import ComponentConfig, DataSource
from kdcore.signals import Batch
from kdcore.tasks.base import Order, Split, StoredData, Task
from kdcore.tasks.fitting import check_fit
from kdcore.tasks.masking import MaskDrawer, Masking, stored_masks
from kdcore.tasks.views import teacher_batch

if TYPE_CHECKING:
    from kdcore.tasks.finished_run import FinishedRun


logger = logging.getLogger("kdcore")

_fraction: ContextVar[float] = ContextVar("fraction", default=1.0)
"""Fraction of the budget at which this thread draws a batch; validation may draw another one at the same time."""

_MANY_UNKNOWN = 0.01
_CHECKED_FOR_LONG_WORDS = 1000


class MaskedLM(Task):
    """Mask running text, with new masks in every epoch. Masks depend only on the seed, the epoch and the sample.

    If the data contains the tokens of a teacher with another tokenizer, the same text is hidden in the teacher's batch:
    see `kdcore.tasks.views`.
    """

    class Config(ComponentConfig):
        """Keys of the task `masked_lm`."""

        data: DataSource = Field(
            description="A prepared folder; or a data recipe or its file, prepared on first use and then cached."
        )
        masking: Literal["static"] | Masking = Field(
            Masking(),
            description="How masks are drawn; `static` uses the masks that are stored with the prepared data.",
        )
        order: Order = Field(
            "global",
            description="`global`: one random order of all sequences for any number of processes; `per_process`: "
            "each process reads its own part of the data.",
        )

    config: Config

    columns: ClassVar = {"sample_ids": "sequence"}

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        with _located():
            self.data = open_data(config.data, cache)
        self._fingerprint = self.data.fingerprint
        self._source = config.data
        self._splits: dict[Split, Sequences] = {split: self.data.split(split) for split in SPLITS}
        self._samples: dict[Split, WeightedRows] = {
            split: WeightedRows(self.data.manifest, split, weighted=split == "train") for split in SPLITS
        }
        self.order = config.order
        self._drawer = None if config.masking == "static" else MaskDrawer(config.masking, self.data, seed)
        if self._drawer is None:
            self._refuse_missing_masks()

    @classmethod
    def resumed(cls, config: ComponentConfig, seed: int, cache: Path, stored: StoredData) -> Self:
        """Open the data folder recorded by the run, even if the recipe's data is now prepared in another folder."""
        assert isinstance(config, cls.Config)
        with _located():
            data, fingerprint = reopen_data(config.data, cache, stored.folder, stored.fingerprint)
        task = cls(config.model_copy(update={"data": str(data.folder)}), seed, cache)
        task._fingerprint = fingerprint
        task._source = config.data
        return task

    @property
    def data_folder(self) -> Path:
        """The folder of prepared data."""
        return self.data.folder.absolute()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the prepared data; for a resumed run, the fingerprint that the run stored for this data."""
        return self._fingerprint

    def check(self, student: Model, teacher: Model | None) -> None:
        """Check that the data's length and vocabulary are compatible with both models.

        Raises:
            DataError: they are not compatible, or the manifest of the data does not match its tokenizer.
        """
        if self.data.manifest.format_version < FIRST_WITH_HASH:  # the others are compared by their hash
            problems = self.data.tokenizer_problems()
            if problems:
                raise DataError(problems)
        views = self.data.teacher
        tokenizer = cache(lambda: load_tokenizer(str(self.data.tokenizer_folder)))
        check_fit(
            student,
            None if views else teacher,
            vocabulary=lambda: tokenizer().get_vocab(),
            vocab_size=self.data.vocab_size,
            longest=self.data.sequence_length,
            where=str(self.data.folder),
            shorter="prepare the data with a smaller sequence_length",
            own_tokenizer="prepare the data with the {whose}'s own tokenizer"
            + ("" if views else "; if the models' tokenizers differ, name the teacher's as `teacher_tokenizer`"),
            pad_id=self.data.pad_id,
            tokenizer=tokenizer,
        )
        self._warn_of_problems()
        self._warn_of_long_words()
        if views is not None and teacher is not None:
            lengths = [self._splits[split].teacher_lengths for split in SPLITS]
            theirs = cache(lambda: load_tokenizer(str(self.data.teacher_tokenizer_folder)))
            check_fit(
                None,
                teacher,
                vocabulary=lambda: theirs().get_vocab(),
                vocab_size=views.vocab_size,
                longest=max(int(one.max(initial=0)) for one in lengths if one is not None),
                where=str(self.data.teacher_tokenizer_folder),
                shorter="prepare the data with a smaller teacher_sequence_length",
                own_tokenizer="prepare the data with the {whose}'s own tokenizer as `teacher_tokenizer`",
                pad_id=views.special_tokens.pad,
                tokenizer=theirs,
            )

    def _warn_of_problems(self) -> None:
        problems = self.data.manifest.problems
        if problems is None:
            shares = {name: one.unknown_tokens / max(1, one.tokens) for name, one in self.data.manifest.splits.items()}
            what = "of the tokens are unknown to the tokenizer; `kdcore data inspect` shows samples"
            problems = [f"{name}: {share:.1%} {what}" for name, share in shares.items() if share > _MANY_UNKNOWN]
        for problem in problems:
            logger.warning(f"{self.data.folder}: {problem}")

    def _warn_of_long_words(self) -> None:
        """Warn if some training sequences contain words with more tokens than may be predicted."""
        samples = np.unique(np.linspace(0, self.num_samples("train") - 1, _CHECKED_FOR_LONG_WORDS).astype(np.int64))
        rows, lengths = self.sequences("train", samples)
        real = np.arange(rows.shape[1]) < lengths[:, None]
        if self._drawer is None or not (long := self._drawer.too_long(rows, real)).any():
            return
        masked = self._drawer.draw(rows, real, samples, np.zeros_like(samples), SPLITS.index("train"))
        logger.warning(
            f"{self.data.folder}: {long.mean():.1%} of {len(samples):,} sequences contain words with more tokens than "
            f"`max_predictions` allows, which are never predicted; {1 - masked.predicted.any(1).mean():.1%} have no "
            "predictions. Hint: raise task.masking.max_predictions, or remove `whole_word`"
        )

    @property
    def batch_identity(self) -> dict[str, str]:
        """The tokenizers, the data, and the masks with the seed from which they are drawn."""
        theirs, masking = self.data.teacher, self.config.masking
        masks = masking if isinstance(masking, str) else masking.model_dump_json(exclude_defaults=True)
        tokenizer = self.data.tokenizer_fingerprint
        return {
            "tokenizer": tokenizer if theirs is None else f"{tokenizer}, {theirs.tokenizer_fingerprint}",
            "data": self.data.fingerprint,
            "masks": masks if self._drawer is None else f"{masks}, seed {self.seed}",
        }

    @property
    def distinct_epochs(self) -> int | None:
        """The number of stored or drawn masks per sequence; None if masks or rows never repeat, as with a schedule."""
        if not self._samples["train"].repeats:
            return None
        masking = self.config.masking
        if isinstance(masking, str):
            return 1
        return None if isinstance(masking.probability, list) else masking.duplicates

    @property
    def separate_views(self) -> bool:
        """Whether the data contains the teacher's tokens in addition to the student's."""
        return self.data.teacher is not None

    def num_samples(self, split: Split) -> int:
        """Return the number of sequences, each counted by the weight of its corpus."""
        return self._samples[split].num_samples

    def scheduled(self, fraction: float) -> dict[str, float]:
        """Return the probability of masks, if it is a schedule."""
        masking = self.config.masking
        if isinstance(masking, str) or not isinstance(masking.probability, list):
            return {}
        return {"mask_probability": value_at(masking.probability, fraction)}

    def batch_at(self, split: Split, samples: np.ndarray, epochs: np.ndarray, fraction: float) -> Batch:
        """Call `batch`, which packages may override, with the masking probability at a fraction of the budget."""
        token = _fraction.set(fraction)
        try:
            return self.batch(split, samples, epochs)
        finally:
            _fraction.reset(token)

    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Read sequences, remove padding beyond the longest one, and mask them.

        Unless called by `batch_at`, this uses the last value of the masking probability.
        """
        numbers = self._samples[split].rows(np.asarray(samples, dtype=np.int64), epochs)
        rows, lengths = self._splits[split].rows(numbers)
        longest = int(lengths.max())
        tokens = rows[:, :longest].astype(np.int64)
        real = np.arange(longest) < lengths[:, None]
        if self._drawer is None:
            masked = stored_masks(tokens, self._splits[split].masks(numbers))
        else:
            masked = self._drawer.draw(tokens, real, samples, epochs, SPLITS.index(split), _fraction.get())
        predicted = np.flatnonzero(masked.predicted)
        columns = {"sample_ids": torch.from_numpy(numbers)}
        units = teacher = None
        if self.data.teacher is not None:
            view = self._splits[split].teacher_view(numbers)
            hidden = masked.inputs != tokens
            units, teacher = teacher_batch(view, real, hidden, self.data.teacher.special_tokens.mask)
            teacher = replace(teacher, columns=columns)
        return Batch(
            input_ids=torch.from_numpy(masked.inputs),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=lengths.astype(np.int64),
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=torch.from_numpy(predicted),
            masked_labels=torch.from_numpy(tokens.reshape(-1)[predicted]),
            columns=columns,
            units=units,
            teacher=teacher,
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer that was used to prepare the data, with the settings of the recipe's own tokenizer.

        Prepared data is shared by tokenizers that differ only in settings such as the maximum length.
        """
        with suppress(InputError):  # a run may outlive the tokenizer that its recipe names
            stated = stated_tokenizer(self._source)
            tokenizer = None if stated is None else load_tokenizer(stated)
            if tokenizer is not None and tokenizer_fingerprint(tokenizer) == self.data.tokenizer_fingerprint:
                tokenizer.save_pretrained(folder)
                return
        for file in self.data.tokenizer_folder.iterdir():
            shutil.copyfile(file, folder / file.name)

    def sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return unmasked sequences: (B, L) ids padded to the data's length, and (B,) lengths."""
        numbers = self._samples[split].rows(np.asarray(samples, dtype=np.int64), np.zeros(len(samples), dtype=np.int64))
        return self._splits[split].rows(numbers)

    def teacher_sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the teacher's tokens of unmasked sequences: (B, L) ids and (B,) lengths."""
        if self.data.teacher is None:
            return None
        numbers = self._samples[split].rows(np.asarray(samples, dtype=np.int64), np.zeros(len(samples), dtype=np.int64))
        view = self._splits[split].teacher_view(numbers)
        return view.tokens, view.lengths

    def summary_rows(self, run: FinishedRun) -> dict[str, str]:
        """Check that the student can be compared with a teacher on held-out text; add no rows.

        Raises:
            InputError: the run has no teacher, or fewer than two held-out sequences.
        """
        if run.teacher_source is None:
            raise InputError("the run has no teacher to compare its student with", where=str(run.folder))
        if self.num_samples("held_out") < 2:
            raise InputError("the run has no held-out text", where=str(run.folder), hint="set task.data.held_out: 0.1")
        return {}

    def _refuse_missing_masks(self) -> None:
        for split, sequences in self._splits.items():
            if len(sequences) and not sequences.has_masks:
                raise DataError(
                    f"`static` needs stored masks, but sequences of the split `{split}` have none",
                    where=str(self.data.folder),
                    key="task.masking",
                    allowed="`static` only for data that another program has masked",
                    hint="remove `task.masking`: masks are then drawn during training",
                )


def _place(key: str | None) -> str:
    """Return the recipe key of a problem with the data."""
    return "task.data" if key is None else key if key.startswith("task.") else f"task.data.{key}"


@contextmanager
def _located() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise type(error)(replace(problem, key=_place(problem.key)) for problem in error.problems) from error
