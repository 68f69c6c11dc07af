"""Scores of predictions for sequences, computed by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from kdcore import InputError

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "f1_micro", "f1_macro"]
"""Higher is better for all of them."""

CLASS_METRICS: tuple[Metric, ...] = ("accuracy", "f1", "matthews")
NUMBER_METRICS: tuple[Metric, ...] = ("pearson", "spearman")
LABEL_SET_METRICS: tuple[Metric, ...] = ("f1_micro", "f1_macro")
"""Metrics of sets of labels: F1 over all decisions, and the mean of the labels' F1."""


def require_libraries() -> None:
    """Require scikit-learn and SciPy before starting work whose scores depend on them.

    Raises:
        InputError: scikit-learn or SciPy is missing.
    """
    try:
        import scipy.stats  # noqa: F401
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the scores of this task need a package that is not installed: {error.name or error}",
            hint="pip install kdcore-supervised",
        ) from error


def metrics_of(outputs: np.ndarray, labels: np.ndarray) -> Mapping[Metric, float]:
    """Compute all metrics for the kind of labels.

    With two classes, `f1` is the F1 of the second class, as in GLUE. Otherwise it is the macro average over the classes
    that occur in `labels` or are predicted, as in scikit-learn, so that a class missing from a split does not lower it.
    An undefined correlation (constant predictions or labels) is 0. With multiple labels per text, the labels with a
    positive logit are predicted.

    Args:
        outputs: (n, C) logits of C classes, or (n, 1) numbers.
        labels: (n,) int64 classes, or float32 numbers; or (n, C) with 1 for each label of a text and 0 otherwise.
    """
    if labels.ndim == 2:
        return _of_label_sets(outputs > 0, labels > 0)
    if outputs.shape[1] == 1:
        return _of_numbers(outputs[:, 0].astype(np.float64), labels.astype(np.float64))
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = outputs.argmax(1)
    average = "binary" if outputs.shape[1] == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average=average, zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, predicted)),
    }


def _of_numbers(predicted: np.ndarray, labels: np.ndarray) -> Mapping[Metric, float]:
    from scipy.stats import pearsonr, spearmanr

    if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(predicted, labels).statistic),
        "spearman": float(spearmanr(predicted, labels).statistic),
    }


def _of_label_sets(predicted: np.ndarray, labels: np.ndarray) -> Mapping[Metric, float]:
    from sklearn.metrics import f1_score

    averages: dict[Metric, str] = {"f1_micro": "micro", "f1_macro": "macro"}
    return {
        name: float(f1_score(labels, predicted, average=average, zero_division=0.0))
        for name, average in averages.items()
    }


def majority_fraction(labels: np.ndarray) -> float:
    """Return the fraction of the most frequent class."""
    return float(np.bincount(labels).max() / len(labels))


def constant_scores(labels: np.ndarray) -> dict[str, float]:
    """Return the scores of the best predictions that ignore the text; empty for numbers.

    `accuracy` is the score of always predicting the most frequent class. With multiple labels per text, `f1_micro` is
    the score of always predicting the k most frequent labels, for the best k, and `f1_macro` is the score of always
    predicting all labels.

    Args:
        labels: as for `metrics_of`.
    """
    if labels.ndim == 1:
        return {} if labels.dtype.kind == "f" else {"accuracy": majority_fraction(labels)}
    texts, frequent = len(labels), np.sort((labels > 0).sum(0))[::-1]
    found = frequent.cumsum()
    micro = 2 * found / (texts * np.arange(1, len(frequent) + 1) + frequent.sum())
    macro = 2 * frequent / (texts + frequent)
    return {"f1_micro": float(micro.max()), "f1_macro": float(macro.mean())}
