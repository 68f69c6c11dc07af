"""Scores of predictions for whole sequences, computed by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from kdcore import InputError

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
"""Higher is better for all of them."""

CLASS_METRICS: tuple[Metric, ...] = ("accuracy", "f1", "matthews")
NUMBER_METRICS: tuple[Metric, ...] = ("pearson", "spearman")


def require_libraries() -> None:
    """Require scikit-learn and SciPy before work starts that they have to score.

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
    """Compute every metric of the labels' kind.

    `f1` is that of the second class where there are two, as in GLUE, else the macro average. An undefined correlation
    (constant predictions or labels) is 0.

    Args:
        outputs: (n, C) logits of C classes, or (n, 1) numbers.
        labels: (n,) int64 classes, or float32 numbers.
    """
    if outputs.shape[1] == 1:
        return _of_numbers(outputs[:, 0].astype(np.float64), labels.astype(np.float64))
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted, classes = outputs.argmax(1), range(outputs.shape[1])
    average = "binary" if len(classes) == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, labels=classes, average=average, zero_division=0.0)),
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
