"""Scores of a sentence encoder's embeddings: STS, pair classification, retrieval."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from kdcore_embeddings import EmbeddingTexts, SentenceEncoder, TextPairs, TextQueries, retrieval_values
from numpy.typing import NDArray

from kdcore_evaluation.probes.probes import device_name
from kdcore_evaluation.probes.similarity import fastest_device
from kdcore_evaluation.run.outcomes import Outcome

_SPLIT = "test"
_FEWEST_PAIRS = 4  # for jackknife values: without one pair, three are left

ScoreValues = dict[str, tuple[float, NDArray[np.float64] | None]]
"""Each score with the values of which it is the mean; None if it is not a mean over texts."""


def embeddings(source: str, texts: EmbeddingTexts) -> Outcome:
    """Measure the scores of one task.

    Raises:
        InputError: the model's folder cannot be read, or its embeddings are not finite.
    """
    import pyarrow

    device = fastest_device()
    encoder, read = SentenceEncoder(source, device), texts.read(Counter())
    found = _pair_values(encoder, read) if isinstance(read, TextPairs) else _search_values(encoder, read)
    count = len(read.first) if isinstance(read, TextPairs) else len(read.queries)
    measured: list[dict[str, Any]] = [
        {"metric": name, "value": value, "higher_is_better": True, "split": _SPLIT, "examples": count}
        for name, (value, _) in found.items()
    ]
    items = {name: values for name, (_, values) in found.items() if values is not None}
    table = pyarrow.table({"id": np.arange(count), **items})
    return {"measured": measured, "device": device_name(device), "items": {_SPLIT: table}}


def _pair_values(encoder: SentenceEncoder, pairs: TextPairs) -> ScoreValues:
    texts = list(dict.fromkeys([*pairs.first, *pairs.second]))
    rows = {text: row for row, text in enumerate(texts)}
    vectors = encoder.encode(texts, encoder.prompt).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    first, second = (vectors[[rows[text] for text in side]] for side in (pairs.first, pairs.second))
    cosines = (first * second).sum(1)
    return classification_values(cosines, pairs.values) if pairs.labelled else correlation_values(cosines, pairs.values)


def _search_values(encoder: SentenceEncoder, texts: TextQueries) -> ScoreValues:
    queries = encoder.encode(texts.queries, encoder.query_prompt)
    documents = encoder.encode(texts.documents, encoder.document_prompt)
    values = retrieval_values(queries, documents, texts.relevant, encoder.similarity)
    return {name: (float(np.mean(own)), np.array(own)) for name, own in values.items()}


def correlation_values(cosines: NDArray[np.float64], scores: NDArray[np.float64]) -> ScoreValues:
    """Return Spearman's rank correlation of cosines (n,) and scores (n,), 0 if all cosines are equal.

    The values are jackknife values, so their standard error is the standard error of the correlation.
    """
    from scipy.stats import rankdata

    if np.ptp(cosines) == 0:
        return {"spearman": (0.0, None)}
    sides = cosines, scores
    ranks = [rankdata(side) for side in sides]
    whole, count = float(np.corrcoef(*ranks)[0, 1]), len(scores)
    if count < _FEWEST_PAIRS:
        return {"spearman": (whole, None)}
    without = np.empty(count)
    kept = np.ones(count, np.bool_)
    with np.errstate(invalid="ignore"):
        for pair in range(count):
            kept[pair] = False
            left = [
                (own - (side > side[pair]) - 0.5 * (side == side[pair]))[kept]
                for own, side in zip(ranks, sides, strict=True)
            ]
            without[pair] = np.corrcoef(*left)[0, 1]
            kept[pair] = True
    values = whole + (count - 1) * (without.mean() - without)
    return {"spearman": (whole, values if np.isfinite(values).all() else None)}


def classification_values(cosines: NDArray[np.float64], labels: NDArray[np.float64]) -> ScoreValues:
    """Return the accuracy at the best threshold of cosines (n,) and the average precision, for labels 0 and 1 (n,)."""
    from sklearn.metrics import average_precision_score, roc_curve

    false, true, thresholds = roc_curve(labels, cosines, drop_intermediate=False)
    positive = labels.sum()
    right = true * positive + (1 - false) * (len(labels) - positive)
    correct = ((cosines >= thresholds[int(right.argmax())]) == (labels == 1)).astype(np.float64)
    precision = float(average_precision_score(labels, cosines))
    return {"accuracy": (float(correct.mean()), correct), "average_precision": (precision, None)}
