"""Masked language modelling on prepared text."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator

from kdcore.data.prepare import DataRecipe, PreparationProgress, find_or_prepare
from kdcore.data.shards import PreparedData, Sequences
from kdcore.data.tokenizers import load_tokenizer
from kdcore.errors import DataError, InputError
from kdcore.models.base import Model
from kdcore.recipe.loading import load_config
from kdcore.recipe.schema import ComponentConfig, PathString
from kdcore.signals import Batch
from kdcore.tasks.base import Split, Task

logger = logging.getLogger("kdcore")

_SECONDS_BETWEEN_LINES = 10.0
_MASKING_STREAM = 1  # second word of the random key: other users of the recipe's seed take other streams


class Masking(ComponentConfig):
    """Which tokens are hidden, and by what (Devlin et al. 2019, section 3.1). Special tokens never are."""

    probability: float = Field(0.15, ge=0, le=1, description="Chance of each token to be predicted.")
    mask: float = Field(0.8, ge=0, le=1, description="Share of those that become the mask token.")
    random: float = Field(0.1, ge=0, le=1, description="Share of those that become a random token; the rest stay.")

    @model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask + self.random > 1:
            raise ValueError("`mask` and `random` are shares of the same tokens and may not exceed 1 together")
        return self


class MaskedLM(Task):
    """Sequences of running text, masked anew in every epoch; the masks depend on seed, epoch and sample alone."""

    class Config(ComponentConfig):
        """Keys of the task `masked_lm`."""

        data: PathString | DataRecipe = Field(
            description="A prepared folder, or a data recipe or its file: prepared on first use, then found again."
        )
        masking: Masking = Masking()

    config: Config

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        try:
            self.data = open_data(config.data, cache)
        except InputError as error:
            raise type(error)(replace(problem, key=_place(problem.key)) for problem in error.problems) from error
        self._splits: dict[Split, Sequences] = {
            "train": self.data.split("train"),
            "held_out": self.data.split("held_out"),
        }
        self._ordinary_ids = np.setdiff1d(
            np.arange(self.data.vocab_size, dtype=np.int64), np.asarray(self.data.special_ids, dtype=np.int64)
        )

    @property
    def fingerprint(self) -> str:
        """The prepared data's fingerprint."""
        return self.data.fingerprint

    def check(self, student: Model, teacher: Model | None) -> None:
        """Compare length and vocabulary with both models."""
        for whose, model in (("teacher", teacher), ("student", student)):
            if model is None:
                continue
            if self.data.vocab_size > model.info.vocab_size:
                raise DataError(
                    f"the data's tokenizer has {self.data.vocab_size} tokens, the {whose} embeds "
                    f"{model.info.vocab_size}",
                    where=str(self.data.folder),
                    key="task.data",
                    hint=f"prepare the data with the {whose}'s own tokenizer",
                )
            if self.data.sequence_length > model.info.max_length:
                raise DataError(
                    f"sequences have up to {self.data.sequence_length} tokens, the {whose} takes "
                    f"{model.info.max_length}",
                    where=str(self.data.folder),
                    key="task.data",
                    hint="prepare the data with a smaller sequence_length",
                )
        sources = {
            model.source: (whose, model) for whose, model in (("student", student), ("teacher", teacher)) if model
        }
        for whose, model in sources.values():
            self._compare_vocabulary(whose, model.vocabulary())

    def _compare_vocabulary(self, whose: str, theirs: Mapping[str, int] | None) -> None:
        """Every id must mean the same token to data and weights; random weights mean nothing yet."""
        if theirs is None:
            return
        ours: Mapping[str, int] = load_tokenizer(str(self.data.tokenizer_folder)).get_vocab()
        different = [(number, token) for token, number in ours.items() ^ theirs.items()]
        if not different:
            return
        first = min(number for number, _ in different)

        def token(vocabulary: Mapping[str, int]) -> str:
            return next((f"`{token}`" for token, number in vocabulary.items() if number == first), "nothing")

        raise DataError(
            f"the data was made with another vocabulary than the {whose}'s: id {first} is {token(ours)} to the data "
            f"and {token(theirs)} to the {whose}",
            where=str(self.data.folder),
            key="task.data",
            hint=f"prepare the data with the {whose}'s own tokenizer",
        )

    def num_samples(self, split: Split) -> int:
        """Number of sequences."""
        return len(self._splits[split])

    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Read, trim to the longest sequence, and mask."""
        rows, lengths = self._splits[split].rows(samples)
        longest = int(lengths.max())
        tokens = rows[:, :longest].astype(np.int64)
        real = np.arange(longest) < lengths[:, None]
        corrupted, predicted = self._mask(split, samples, epochs, tokens, real)
        flat_predicted = np.flatnonzero(predicted)
        return Batch(
            input_ids=torch.from_numpy(corrupted),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=lengths.astype(np.int64),
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=torch.from_numpy(flat_predicted),
            masked_labels=torch.from_numpy(tokens.reshape(-1)[flat_predicted]),
            columns={"sample_ids": torch.from_numpy(np.asarray(samples, dtype=np.int64))},
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer that the data was prepared with."""
        for file in self.data.tokenizer_folder.iterdir():
            shutil.copyfile(file, folder / file.name)

    def _mask(
        self, split: Split, samples: np.ndarray, epochs: np.ndarray, tokens: np.ndarray, real: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corrupted tokens and where the originals are to be predicted; both (B, L)."""
        draws = np.empty((len(samples), 3, self.data.sequence_length))
        for row, (sample, epoch) in enumerate(zip(samples.tolist(), epochs.tolist(), strict=True)):
            generator = np.random.Philox(
                key=[self.seed, _MASKING_STREAM], counter=[0, sample, epoch, 0 if split == "train" else 1]
            )
            np.random.Generator(generator).random(out=draws[row])
        choose, replace, which = (draws[:, part, : tokens.shape[1]] for part in range(3))
        masking = self.config.masking
        predicted = (choose < masking.probability) & real & ~np.isin(tokens, self.data.special_ids)
        random_ids = self._ordinary_ids[(which * len(self._ordinary_ids)).astype(np.int64)]
        corrupted = np.where(predicted & (replace < masking.mask), self.data.mask_id, tokens)
        is_random = predicted & (replace >= masking.mask) & (replace < masking.mask + masking.random)
        return np.where(is_random, random_ids, corrupted), predicted


def _place(key: str | None) -> str:
    """Where in a recipe a problem with its data stands."""
    return "task.data" if key is None else key if key.startswith("task.") else f"task.data.{key}"


def open_data(data: str | DataRecipe, cache: Path) -> PreparedData:
    """Open a prepared folder, or prepare a data recipe once and find it again."""
    if isinstance(data, str):
        path = Path(data)
        if not path.is_file():
            return PreparedData.open(path)
        data = load_config(path, DataRecipe)
    return find_or_prepare(data, cache, progress=_Teller())


class _Teller:
    """Says now and then how far a preparation has come; nothing if the data is found ready."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: PreparationProgress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
            logger.info(f"preparing data: {progress.documents:,} documents, {progress.sequences:,} sequences")
