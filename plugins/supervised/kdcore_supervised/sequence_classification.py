"""The task `sequence_classification`: texts or pairs of texts, each with a class, a list of classes or a number."""

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
    FinishedRun,
    Head,
    Split,
    TaskOutputs,
    tokenizer_fingerprint,
)
from kdcore_supervised.data.glue import submission_rows
from kdcore_supervised.data.labelled import LabelledData, LabelledTexts, overlap, read_labelled
from kdcore_supervised.data.labelled_problems import problem_of_unknown_text, problems_of_part
from kdcore_supervised.data.labelled_tokens import TokenizedTexts, tokenize
from kdcore_supervised.labelled_task import (
    PARTS,
    LabelledTask,
    log_parts,
    no_labels,
    score_rows,
    warn_of_overlap,
    warn_of_problems,
)
from kdcore_supervised.metrics import Metric, metrics_of, require_libraries

logger = logging.getLogger("kdcore")


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


class SequenceClassification(LabelledTask):
    """Train on texts or pairs of texts, each with a class, a list of classes or a number.

    Validation computes all metrics for the kind of labels on all held-out texts: accuracy, F1 and Matthews' correlation
    for classes, Pearson's and Spearman's correlation for numbers, micro- and macro-averaged F1 for lists of classes.
    """

    class Config(ComponentConfig):
        """Keys of the task `sequence_classification`."""

        data: LabelledData
        metric: Metric | None = Field(
            None,
            description="Score that selects the best student; default: the GLUE task's metric, otherwise accuracy, "
            "pearson for numbers, or f1_micro for lists of classes.",
        )

        @model_validator(mode="after")
        def _metric_fits(self) -> SequenceClassification.Config:
            if self.metric is not None and self.metric not in self.data.metrics:
                raise ValueError(
                    f"`metric: {self.metric}` cannot be used with labels that are {self.data.kind} "
                    f"(expected one of {', '.join(self.data.metrics)})"
                )
            return self

    config: Config

    columns: ClassVar = {"sample_ids": "sequence", "labels": "sequence"}

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        require_libraries()
        report: Counter[str] = Counter()
        parts = read_labelled(config.data, report)
        self._splits = {split: self._tokenized(parts, name) for split, name in PARTS.items()}
        self._fingerprint = self._identify()
        self._log_texts(parts, report)

    @classmethod
    def heads(cls, config: ComponentConfig) -> tuple[Head, ...]:
        """Return the head `sequence_classes` with the recipe's classes, or one number for regression."""
        assert isinstance(config, cls.Config)
        kind = "multi_label_classification" if config.data.multi_label else None
        return (Head.sequence_classes(config.data.classes, kind),)

    @property
    def fingerprint(self) -> str:
        """Hash of tokens, labels, classes and tokenizer, independent of where the files are stored."""
        return self._fingerprint

    @property
    def metric(self) -> str | None:
        """The metric set in the recipe, or the metric of the GLUE task, or accuracy, pearson or f1_micro."""
        return self.config.metric or self.config.data.main_metric

    def tokens(self, split: Split) -> TokenizedTexts:
        """Return the texts or pairs of a split."""
        return self._splits[split].tokens

    def labels(self, split: Split) -> np.ndarray | None:
        """Return (n,) int64 classes or float32 numbers, or (n, C) float32; None if some texts are unlabelled."""
        return self._splits[split].labels

    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Return these samples' texts, the same in every epoch. Columns: `sample_ids`, and `labels` if present."""
        labels = self._splits[split].labels
        return self._batch(split, samples, {} if labels is None else {"labels": torch.from_numpy(labels[samples])})

    def scores(self, split: Split, outputs: TaskOutputs) -> dict[str, float]:
        """Compute all metrics on each part; a second part's metrics end with its name, as in `accuracy_mismatched`.

        Raises:
            DataError: the split has no labels.
        """
        outputs = np.asarray(outputs)
        found: dict[str, float] = {}
        for part, rows in self._splits[split].slices():
            suffix = part.name.removeprefix(PARTS[split])
            if part.labels is not None:
                found |= {f"{name}{suffix}": value for name, value in metrics_of(outputs[rows], part.labels).items()}
        if not found:
            raise no_labels(split)
        return found

    def write_predictions(self, folder: Path, split: Split, outputs: TaskOutputs) -> None:
        """Write id, label if present, prediction and outputs of each part as Parquet, and GLUE's submissions."""
        import pyarrow
        from pyarrow import parquet

        outputs = np.asarray(outputs)
        classes, multi, glue = self.config.data.classes, self.config.data.multi_label, self.config.data.glue_task
        for part, rows in self._splits[split].slices():
            own = outputs[rows].astype(np.float32)
            predictions = self._named(own > 0 if multi else own.argmax(1)) if classes else own[:, 0].tolist()
            columns: dict[str, Any] = {"id": part.ids}
            if part.labels is not None:
                columns["label"] = self._named(part.labels) if classes else part.labels
            columns |= {"prediction": predictions, "outputs": list(own)}
            parquet.write_table(pyarrow.table(columns), folder / f"{part.name}.parquet")
            if glue is not None and part.name in glue.submission:
                text = submission_rows(glue, part.ids, predictions)
                (folder / glue.submission[part.name]).write_text(text, encoding="utf-8")

    def baselines(self, split: Split) -> dict[str, float]:
        """Return the scores of the best predictions that ignore the text, named as in `scores`; empty for numbers."""
        found: dict[str, float] = {}
        for part in self._splits[split].parts:
            if part.labels is not None:
                suffix = part.name.removeprefix(PARTS[split])
                found |= {f"{name}{suffix}": value for name, value in part.baselines().items()}
        return found

    def summary_rows(self, run: FinishedRun) -> dict[str, str]:
        """Return a row for each score, and the accuracy of the majority-class baseline."""
        rows = score_rows(run, lambda name: name.startswith(self.config.data.metrics))
        labels, found = self.labels("held_out"), self.baselines("held_out")
        if labels is not None and "accuracy" in found:
            rows["majority-class baseline"] = f"{found['accuracy']:.4f} on {len(labels):,} held-out texts"
        return rows

    def _named(self, labels: np.ndarray) -> list[Any]:
        """Return the names of classes (n,), or the list of names of each row of (n, C)."""
        classes = self.config.data.classes
        if labels.ndim == 2:
            return [[classes[index] for index in np.flatnonzero(row)] for row in labels]
        return [classes[index] for index in labels]

    def _comparable(self, labels: np.ndarray) -> list[Any]:
        named: list[Any] = self._named(labels) if self.config.data.classes else labels.tolist()
        return [tuple(one) if isinstance(one, list) else one for one in named]

    def _tokenized(self, parts: Sequence[LabelledTexts], name: str) -> _Samples:
        own = [part for part in parts if part.name.startswith(name)]
        pair = range(len(self.config.data.columns))
        texts = [[text for part in own for text in part.texts[which]] for which in pair]
        tokens = tokenize(self.tokenizer, texts, self.config.data.max_length, cleaned=True)
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
        log_parts(parts, report)
        cut = sum(samples.tokens.cut for samples in self._splits.values())
        if cut:
            limit = self.config.data.max_length
            logger.info(
                f"labelled texts: {cut:,} are longer than {limit} tokens (task.data.max_length) and were truncated"
            )
        classes = () if self.config.data.multi_label else self.config.data.classes
        for part in parts:
            texts_of_part = list(zip(*part.texts, strict=True))
            labels = None if part.labels is None else self._comparable(part.labels)
            warn_of_problems(
                part.name, problems_of_part(texts_of_part, labels, classes, trained=part.name == PARTS["train"])
            )
        for split, samples in self._splits.items():
            warn_of_problems(PARTS[split], problem_of_unknown_text(samples.tokens.unknown))
        for name in ("validation", "test"):
            texts, first, ids = overlap(parts, name)
            warn_of_overlap(name, texts, first)
            if ids and self.config.data.id is not None:
                logger.warning(f"{ids:,} ids of `{name}` are also in `train`")
