"""The task `veteran`: which of two classes a line of a file has."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from transformers import AutoTokenizer

from kdcore import Batch, ClassHead, ComponentConfig, DataError, Model, PathOrHubName, PathString, Task

LABELS = ("calm", "loud")
HELD_OUT = 8


class VeteranTask(Task):
    """Lines `label<TAB>text`; the last eight are held out."""

    class Config(ComponentConfig):
        """Keys of the section `task`."""

        data: PathString = Field(description="A file.")
        tokenizer: PathOrHubName = Field(description="Folder or hub name.")

    config: Config

    masks_tokens = False

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        self.tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        try:
            lines = Path(config.data).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError("the file cannot be read", where=config.data) from error
        labels, texts = zip(*(line.split("\t") for line in lines), strict=True)
        self.labels = np.array([LABELS.index(label) for label in labels])
        encoded = self.tokenizer(list(texts), truncation=True, max_length=32)["input_ids"]
        self.rows = [np.array(row, dtype=np.int64) for row in encoded]

    @classmethod
    def class_head(cls, config: ComponentConfig) -> ClassHead:
        """The two classes."""
        return ClassHead(LABELS)

    @property
    def fingerprint(self) -> str:
        """Over the file."""
        return hashlib.sha256(Path(self.config.data).read_bytes()).hexdigest()

    @property
    def metric(self) -> str:
        """Share of right answers."""
        return "accuracy"

    def check(self, student: Model, teacher: Model | None) -> None:
        """Compare the vocabulary's size."""
        if student.info.vocab_size < len(self.tokenizer):
            raise DataError("the tokenizer has more tokens than the student", where=self.config.tokenizer)

    def _range(self, split: str) -> range:
        cut = len(self.rows) - HELD_OUT
        return {"train": range(cut), "held_out": range(cut, len(self.rows))}.get(split, range(0))

    def num_samples(self, split: Literal["train", "held_out", "test"]) -> int:
        """Lines of a split."""
        return len(self._range(split))

    def batch(self, split: Literal["train", "held_out", "test"], samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Padded lines with the columns `labels` and `sample_ids`."""
        chosen = [self._range(split)[int(sample)] for sample in samples]
        lengths = np.array([len(self.rows[line]) for line in chosen])
        ids = np.zeros((len(chosen), lengths.max()), dtype=np.int64)
        for row, line in enumerate(chosen):
            ids[row, : lengths[row]] = self.rows[line]
        real = np.arange(ids.shape[1]) < lengths[:, None]
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=lengths,
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=nothing,
            masked_labels=nothing,
            columns={
                "labels": torch.from_numpy(self.labels[chosen]),
                "sample_ids": torch.from_numpy(np.asarray(samples, dtype=np.int64)),
            },
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Beside the student."""
        self.tokenizer.save_pretrained(folder)

    def scores(self, split: Literal["train", "held_out", "test"], outputs: np.ndarray) -> dict[str, float]:
        """Accuracy."""
        labels = self.labels[list(self._range(split))]
        return {"accuracy": float((outputs.argmax(1) == labels).mean())}

    def write_predictions(self, folder: Path, split: Literal["train", "held_out", "test"], outputs: np.ndarray) -> None:
        """One class a line."""
        names = [LABELS[index] for index in outputs.argmax(1)]
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
