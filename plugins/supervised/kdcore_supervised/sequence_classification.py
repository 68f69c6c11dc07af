"""The task `sequence_classification`: texts, or pairs of texts, with a class or a number each."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator

from kdcore import (
    Batch,
    ComponentConfig,
    DataError,
    FinishedRun,
    Head,
    InputError,
    Model,
    Split,
    Task,
    TaskOutputs,
    check_fit,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from kdcore_supervised.data.glue import submission_rows
from kdcore_supervised.data.labelled import LabelledData, LabelledTexts, majority_fraction, overlap, read_labelled
from kdcore_supervised.data.labelled_tokens import TokenizedTexts, tokenize
from kdcore_supervised.metrics import CLASS_METRICS, NUMBER_METRICS, Metric, metrics_of, require_libraries

logger = logging.getLogger("kdcore")

_PARTS: dict[Split, str] = {"train": "train", "held_out": "validation", "test": "test"}
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class _Samples:
    """One split: its parts concatenated, with their tokens."""

    parts: list[LabelledTexts]
    tokens: TokenizedTexts
    labels: np.ndarray | None

    def slices(self) -> list[tuple[LabelledTexts, slice]]:
        """Return the samples of each part."""
        ends = np.cumsum([0, *map(len, self.parts)])
        return [(part, slice(ends[index], ends[index + 1])) for index, part in enumerate(self.parts)]


class SequenceClassification(Task):
    """Train on texts, or pairs of texts, with a class or a number each; all are tokenised once, at the start.

    Validation computes every metric of the labels' kind on all held-out texts: accuracy, F1 and Matthews' correlation
    of classes, Pearson's and Spearman's correlation of numbers.
    """

    class Config(ComponentConfig):
        """Keys of the task `sequence_classification`."""

        data: LabelledData
        metric: Metric | None = Field(
            None,
            description="Score that selects the best student; default: GLUE's own, else accuracy, or pearson of "
            "numbers.",
        )

        @model_validator(mode="after")
        def _metric_fits(self) -> SequenceClassification.Config:
            fitting = CLASS_METRICS if self.data.classes else NUMBER_METRICS
            if self.metric is not None and self.metric not in fitting:
                kind = "classes" if self.data.classes else "numbers"
                raise ValueError(
                    f"`metric: {self.metric}` does not fit labels that are {kind}: {', '.join(fitting)} do"
                )
            return self

    config: Config

    masks_tokens = False
    columns: ClassVar = {"sample_ids": "sequence", "labels": "sequence"}

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        require_libraries()
        data = config.data
        if data.tokenizer is None:
            raise InputError(
                "no tokenizer is set, and the models have no weights to take one from",
                key="task.data.tokenizer",
                hint="set it to a folder or hub name",
            )
        self.tokenizer = load_tokenizer(data.tokenizer)
        report: Counter[str] = Counter()
        parts = read_labelled(data, report)
        self._splits = {split: self._tokenized(parts, name) for split, name in _PARTS.items()}
        self._fingerprint = self._identify()
        self._log_texts(parts, report)

    @classmethod
    def heads(cls, config: ComponentConfig) -> tuple[Head, ...]:
        """Return the head `sequence_classes` with the recipe's classes, or one number for regression."""
        assert isinstance(config, cls.Config)
        return (Head.sequence_classes(config.data.classes),)

    @classmethod
    def completed(cls, config: ComponentConfig, student: Model, teacher: Model | None) -> ComponentConfig:
        """Take the tokenizer of the weights that the student starts from, else the teacher's."""
        assert isinstance(config, cls.Config)
        source = student.source or (teacher.source if teacher else None)
        if config.data.tokenizer is not None or source is None:
            return config
        return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": source})})

    @property
    def fingerprint(self) -> str:
        """Hash of tokens, labels, classes and tokenizer, independent of where the files are stored."""
        return self._fingerprint

    @property
    def metric(self) -> str | None:
        """The recipe's metric, else GLUE's own, else accuracy or pearson."""
        if self.config.metric is not None:
            return self.config.metric
        if self.config.data.glue_task is not None:
            return self.config.data.glue_task.metric
        return "accuracy" if self.config.data.classes else "pearson"

    def check(self, student: Model, teacher: Model | None) -> None:
        """Compare length and vocabulary with both models."""
        lengths = [int(samples.tokens.lengths.max()) for samples in self._splits.values() if len(samples.tokens)]
        check_fit(
            student,
            teacher,
            vocabulary=self.tokenizer.get_vocab,
            vocab_size=vocabulary_size(self.tokenizer),
            longest=max(lengths),
            where=str(self.config.data.tokenizer),
            shorter="lower task.data.max_length",
            own_tokenizer="set task.data.tokenizer to the {whose}'s",
            pad_id=self.tokenizer.pad_token_id,
        )

    def num_samples(self, split: Split) -> int:
        """Return the number of texts or pairs."""
        return len(self._splits[split].tokens)

    def lengths(self, split: Split) -> np.ndarray:
        """Return the number of tokens (n,) of each text or pair, special ones included."""
        return self._splits[split].tokens.lengths

    def labels(self, split: Split) -> np.ndarray | None:
        """Return (n,) int64 classes or float32 numbers; None if some texts are unlabelled."""
        return self._splits[split].labels

    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Return the texts of these samples, equal in every epoch. Columns: `sample_ids`, and `labels` if present."""
        held = self._splits[split]
        ids, lengths, types = held.tokens.rows(samples)
        real = np.arange(ids.shape[1]) < lengths[:, None]
        columns = {"sample_ids": torch.from_numpy(np.asarray(samples, dtype=np.int64))}
        if held.labels is not None:
            columns["labels"] = torch.from_numpy(held.labels[samples])
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=lengths,
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=nothing,
            masked_labels=nothing,
            columns=columns,
            token_types=None if types is None else torch.from_numpy(types),
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)

    def scores(self, split: Split, outputs: TaskOutputs) -> dict[str, float]:
        """Compute every metric on each part; names of a second part end with its name: `accuracy_mismatched`.

        Raises:
            DataError: the split has no labels.
        """
        outputs = np.asarray(outputs)
        found: dict[str, float] = {}
        for part, rows in self._splits[split].slices():
            suffix = part.name.removeprefix(_PARTS[split])
            if part.labels is not None:
                found |= {f"{name}{suffix}": value for name, value in metrics_of(outputs[rows], part.labels).items()}
        if not found:
            raise DataError(
                f"the split `{_PARTS[split]}` has no labels, so predictions cannot be scored",
                key=f"task.data.{_PARTS[split]}",
                hint="score on `validation`; predictions for unlabelled texts are written without scores",
            )
        return found

    def write_predictions(self, folder: Path, split: Split, outputs: TaskOutputs) -> None:
        """Write id, label if present, prediction and outputs of each part as Parquet, and GLUE's submissions."""
        import pyarrow
        from pyarrow import parquet

        outputs = np.asarray(outputs)
        classes, glue = self.config.data.classes, self.config.data.glue_task
        for part, rows in self._splits[split].slices():
            own = outputs[rows].astype(np.float32)
            predictions: list[Any] = [classes[index] for index in own.argmax(1)] if classes else own[:, 0].tolist()
            columns: dict[str, Any] = {"id": part.ids}
            if part.labels is not None:
                columns["label"] = [classes[index] for index in part.labels] if classes else part.labels
            columns |= {"prediction": predictions, "outputs": list(own)}
            parquet.write_table(pyarrow.table(columns), folder / f"{part.name}.parquet")
            if glue is not None and part.name in glue.submission:
                text = submission_rows(glue, part.ids, predictions)
                (folder / glue.submission[part.name]).write_text(text, encoding="utf-8")

    def summary_rows(self, run: FinishedRun) -> dict[str, str]:
        """Return a row for each score, and the accuracy of the majority-class baseline."""
        rows = {}
        for name, (first, *later) in run.held_out.items():
            if later and name.partition("_")[0] in (*CLASS_METRICS, *NUMBER_METRICS):
                rows[f"held-out {name}"] = (
                    f"{first:.4f} at the start, {later[-1]:.4f} at the end, {max(later):.4f} at best"
                )
        labels = self.labels("held_out")
        if self.config.data.classes and labels is not None and len(labels):
            rows["majority-class baseline"] = f"{majority_fraction(labels):.4f} on {len(labels):,} held-out texts"
        return rows

    def _tokenized(self, parts: Sequence[LabelledTexts], name: str) -> _Samples:
        own = [part for part in parts if part.name.startswith(name)]
        pair = range(len(self.config.data.columns))
        texts = [[text for part in own for text in part.texts[which]] for which in pair]
        tokens = tokenize(self.tokenizer, texts, self.config.data.max_length)
        known = [part.labels for part in own if part.labels is not None]
        labels = np.concatenate(known) if own and len(known) == len(own) else None
        return _Samples(own, tokens, labels)

    def _identify(self) -> str:
        digest = hashlib.sha256(tokenizer_fingerprint(self.tokenizer).encode())
        digest.update(repr(self.config.data.classes).encode())
        for samples in self._splits.values():
            digest.update(samples.tokens.fingerprint().encode())
            digest.update(b"" if samples.labels is None else samples.labels.tobytes())
        return digest.hexdigest()

    def _log_texts(self, parts: Sequence[LabelledTexts], report: Counter[str]) -> None:
        """Log the sizes of the parts, repairs, truncation and overlap between parts."""
        sizes = ", ".join(f"{part.name} {len(part):,}" for part in parts)
        logger.info(f"labelled texts: {sizes}")
        for what, count in report.items():
            logger.info(f"labelled texts: {count:,} {what}")
        cut = sum(samples.tokens.cut for samples in self._splits.values())
        if cut:
            limit = self.config.data.max_length
            logger.info(
                f"labelled texts: {cut:,} are longer than {limit} tokens (task.data.max_length) and were truncated"
            )
        for name in ("validation", "test"):
            texts, first, ids = overlap(parts, name)
            if texts:
                shown = str(first)[:_SHOWN_CHARACTERS]
                logger.warning(f"{texts:,} texts of `{name}` are also in `train`, such as {shown!r}")
            if ids and self.config.data.id is not None:
                logger.warning(f"{ids:,} ids of `{name}` are also in `train`")
