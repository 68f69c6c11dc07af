"""Scores as means over test texts, from stored predictions, so that two models can be compared text by text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from unicodedata import normalize

import numpy as np
from kdcore_supervised import SpanScores, spans_of

from kdcore_evaluation.statistics.intervals import SampleValues

if TYPE_CHECKING:
    from pyarrow import Table

METRICS_OF_ALL_TEXTS = ("matthews", "pearson", "spearman")
"""Metrics that are not ratios of sums over texts, so that single texts have no scores."""

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ItemScores:
    """Score of each text.

    Attributes:
        texts: SHA-256 of names and labels of the texts in order; models are compared only on equal texts.
        values: (m,) values whose mean is the score. For a ratio of sums, such as F1, each value is the score plus the
            influence of the text on it (the linear term of the delta method).
    """

    texts: str
    values: SampleValues


class StoredItems(Protocol):
    """A file from which the scores of texts are computed."""

    def item_scores(self, metric: str, score: float) -> ItemScores | None:
        """Return the scores of texts whose mean is `score`; None if they cannot be computed from the file."""


@dataclass(frozen=True)
class StoredValues:
    """Values of texts or passages in a Parquet file, with the column `id` and a column for each metric.

    Attributes:
        path: the file.
        data: fingerprint of the data to which the ids belong.
    """

    path: Path
    data: str

    def item_scores(self, metric: str, score: float) -> ItemScores | None:
        """Return the values of a metric whose mean is `score`; None if the file is missing or their mean differs."""
        found = _read_values(self, metric)
        return found if found is not None and abs(found.values.mean() - score) <= _TOLERANCE else None


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions of labelled texts in a Parquet file.

    Attributes:
        path: the file.
        classes: classes in the order of the outputs; empty for numbers.
        spans: whether labels are tags of words.
    """

    path: Path
    classes: tuple[str, ...]
    spans: bool

    def item_scores(self, metric: str, score: float) -> ItemScores | None:
        """Return the scores of texts whose mean is `score`.

        Returns:
            The scores; None if the metric is not a ratio of sums over texts (such as a correlation), or if the file is
            missing, damaged or belongs to a different score.
        """
        read = _read(self)
        sums = None if read is None else read.sums(metric)
        if read is None or sums is None:
            return None
        values = ratio_values(*sums)
        return ItemScores(read.texts, values) if abs(values.mean() - score) <= _TOLERANCE else None


def ratio_values(parts: SampleValues, wholes: SampleValues) -> SampleValues:
    """Return values (m,) whose mean is the mean of k ratios of sums.

    Args:
        parts: (k, m) numerators of each ratio by text.
        wholes: (k, m) denominators; a ratio whose denominator is 0 is 0.
    """
    found = np.zeros(parts.shape[1])
    for part, whole in zip(parts, wholes, strict=True):
        if whole.sum() > 0:
            ratio = part.sum() / whole.sum()
            found += ratio + (part - ratio * whole) / whole.mean()
    return found / len(parts)


@dataclass(frozen=True)
class _Predictions:
    texts: str
    sums: Callable[[str], tuple[SampleValues, SampleValues] | None]


@lru_cache(maxsize=512)
def _read(stored: StoredPredictions) -> _Predictions | None:
    import pyarrow
    from pyarrow import parquet

    try:
        table = with_composed_labels(parquet.read_table(stored.path, columns=["id", "label", "prediction"]))
    except (OSError, pyarrow.ArrowException):
        return None
    labels, predicted = (table.column(name).to_pylist() for name in ("label", "prediction"))
    if not labels or None in labels:
        return None
    sums = _span_sums(labels, predicted) if stored.spans else _class_sums(labels, predicted, stored.classes)
    return _Predictions(digest_of_texts(table), sums)


@lru_cache(maxsize=512)
def _read_values(stored: StoredValues, metric: str) -> ItemScores | None:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(stored.path, columns=["id", metric])
        values = np.array(table.column(metric).to_pylist(), dtype=np.float64)
        texts = hashlib.sha256(repr((stored.data, table.column("id").to_pylist())).encode()).hexdigest()
    except (OSError, KeyError, ValueError, TypeError, pyarrow.ArrowException):
        return None
    return ItemScores(texts, values) if len(values) else None


def with_composed_labels(predictions: Table) -> Table:
    """Return predictions whose classes or tags are in Unicode normal form C, as in tasks.

    In files of version 0.1, classes are spelled as in the recipe.
    """
    import pyarrow

    for name in {"label", "prediction"}.intersection(predictions.column_names):
        column = predictions.column(name)
        values = pyarrow.array([_composed(value) for value in column.to_pylist()], column.type)
        predictions = predictions.set_column(predictions.column_names.index(name), name, values)
    return predictions


def _composed(value: Any) -> Any:
    if isinstance(value, list):
        return [_composed(one) for one in value]
    return normalize("NFC", value) if isinstance(value, str) else value


def digest_of_texts(predictions: Table) -> str:
    """Return the SHA-256 of names and labels of predicted texts, in order."""
    rows = zip(*(predictions.column(name).to_pylist() for name in ("id", "label")), strict=True)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _class_sums(
    labels: Sequence[Any], predicted: Sequence[Any], classes: Sequence[str]
) -> Callable[[str], tuple[SampleValues, SampleValues] | None]:
    several = isinstance(labels[0], list)
    sides = [[set(one) if several else {one} for one in side] for side in (labels, predicted)]
    true, found = (np.array([[name in one for one in side] for name in classes], dtype=np.float64) for side in sides)

    def sums(metric: str) -> tuple[SampleValues, SampleValues] | None:
        if not classes:
            return None
        if metric == "accuracy" and not several:
            return (true * found).sum(0)[None], np.ones((1, len(labels)))
        hits, all_ = 2 * true * found, true + found
        if metric == "f1_micro":
            return hits.sum(0)[None], all_.sum(0)[None]
        if metric == "f1_macro":
            return hits, all_
        if metric == "f1" and len(classes) > 2:
            occur = all_.any(axis=1)
            return hits[occur], all_[occur]
        return (hits[1:], all_[1:]) if metric == "f1" else None

    return sums


def _span_sums(
    labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> Callable[[str], tuple[SampleValues, SampleValues] | None]:
    counts = []
    for one, other in zip(labels, predicted, strict=True):
        scores = SpanScores(())
        scores.add(spans_of(one), spans_of(other), len(one))
        counts.append(
            (scores.correct.total(), scores.predicted.total(), scores.true.total(), scores.equal, scores.words)
        )
    correct, found, true, equal, words = np.array(counts, dtype=np.float64).T[:, None]
    ratios = {
        "f1": (2 * correct, found + true),
        "precision": (correct, found),
        "recall": (correct, true),
        "accuracy": (equal, words),
    }
    return ratios.get
