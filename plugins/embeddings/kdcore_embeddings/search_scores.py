"""Scores of exact search with embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTH = 10
"""Number of documents that are found for each query."""

MAIN_SCORE = f"ndcg_at_{DEPTH}"
_BLOCK = 1024


def retrieval_scores(
    queries: NDArray[Any], documents: NDArray[Any], relevant: Sequence[set[int]], similarity: str = "cosine"
) -> dict[str, float]:
    """Search every query among all documents, and average the scores of the queries.

    Args:
        queries: (n, C) embeddings.
        documents: (m, C) embeddings.
        relevant: numbers of the documents that belong to each query, at least one.
        similarity: `cosine`, `dot`, `euclidean` or `manhattan`.

    Returns:
        `ndcg_at_10`, `mrr_at_10`, `recall_at_1` and `recall_at_10`. Of documents with equal similarity the first one is
        found first.
    """
    depth = min(DEPTH, len(documents))
    gains = 1 / np.log2(np.arange(2, DEPTH + 2))
    found: dict[str, list[float]] = {name: [] for name in (MAIN_SCORE, "mrr_at_10", "recall_at_1", "recall_at_10")}
    for start in range(0, len(queries), _BLOCK):
        similarities = _similarities(queries[start : start + _BLOCK], documents, similarity)
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :depth]
        for row, known in zip(order, relevant[start : start + _BLOCK], strict=True):
            hits = np.isin(row, list(known))
            best = gains[: min(len(known), DEPTH)].sum()
            found[MAIN_SCORE].append(float((gains[:depth] * hits).sum() / best))
            found["mrr_at_10"].append(1 / (1 + int(hits.argmax())) if hits.any() else 0.0)
            found["recall_at_1"].append(float(hits[:1].sum()) / len(known))
            found["recall_at_10"].append(float(hits.sum()) / len(known))
    return {name: float(np.mean(values)) for name, values in found.items()}


def random_scores(documents: int) -> dict[str, float]:
    """Return the expected scores of a random order of the documents, one of which belongs to each query."""
    ranks = np.arange(1, min(DEPTH, documents) + 1)
    return {
        MAIN_SCORE: float((1 / np.log2(ranks + 1)).sum() / documents),
        "mrr_at_10": float((1 / ranks).sum() / documents),
        "recall_at_1": 1 / documents,
        "recall_at_10": len(ranks) / documents,
    }


def _similarities(queries: NDArray[Any], documents: NDArray[Any], similarity: str) -> NDArray[np.float64]:
    own, theirs = queries.astype(np.float64), documents.astype(np.float64)
    if similarity == "manhattan":
        return np.stack([-np.abs(theirs - query).sum(-1) for query in own])
    if similarity == "cosine":
        own, theirs = (side / np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-12) for side in (own, theirs))
    products: NDArray[np.float64] = own @ theirs.T
    if similarity == "euclidean":
        products = 2 * products - (theirs**2).sum(-1) - (own**2).sum(-1)[:, None]
    return products
