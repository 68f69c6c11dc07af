"""Scores of exhaustive search with embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcore import DataError

DEPTH = 10
"""Number of documents retrieved for each query."""

MAIN_SCORE = f"ndcg_at_{DEPTH}"
_TIE = 1e-9  # relative to the largest similarity; the products of equal vectors are equal only up to rounding
_BLOCK_VALUES = 2**23  # number of similarities in a block: 64 MiB in float64


def retrieval_scores(
    queries: NDArray[Any], documents: NDArray[Any], relevant: Sequence[set[int]], similarity: str = "cosine"
) -> dict[str, float]:
    """Search all documents for each query, and average the scores over the queries.

    Arguments, names of scores and errors are the same as for `retrieval_values`.
    """
    values = retrieval_values(queries, documents, relevant, similarity)
    return {name: float(np.mean(own)) for name, own in values.items()}


def retrieval_values(
    queries: NDArray[Any], documents: NDArray[Any], relevant: Sequence[set[int]], similarity: str = "cosine"
) -> dict[str, list[float]]:
    """Search all documents for each query.

    Args:
        queries: (n, C) embeddings.
        documents: (m, C) embeddings.
        relevant: for each query, the indices of its relevant documents, at least one.
        similarity: `cosine`, `dot`, `euclidean` or `manhattan`.

    Returns:
        `ndcg_at_10`, `mrr_at_10`, `recall_at_1` and `recall_at_10` of each query. Among documents with equal
        similarity, irrelevant documents are ranked first, so that equal vectors get no credit.

    Raises:
        DataError: vectors are not finite.
    """
    depth = min(DEPTH, len(documents))
    gains = 1 / np.log2(np.arange(2, DEPTH + 2))
    found: dict[str, list[float]] = {name: [] for name in (MAIN_SCORE, "mrr_at_10", "recall_at_1", "recall_at_10")}
    start = 0
    for similarities in similarity_blocks(queries, documents, similarity):
        for row, known in zip(similarities, relevant[start : start + len(similarities)], strict=True):
            hits = _hits(row, np.fromiter(known, np.int64), depth)
            best = gains[: min(len(known), DEPTH)].sum()
            found[MAIN_SCORE].append(float((gains[:depth] * hits).sum() / best))
            found["mrr_at_10"].append(1 / (1 + int(hits.argmax())) if hits.any() else 0.0)
            found["recall_at_1"].append(float(hits[:1].sum()) / len(known))
            found["recall_at_10"].append(float(hits.sum()) / len(known))
        start += len(similarities)
    return found


def similarity_blocks(queries: NDArray[Any], documents: NDArray[Any], similarity: str) -> Iterator[NDArray[np.float64]]:
    """Yield the similarities (b, m) of blocks of the queries (n, C) to all documents (m, C).

    Raises:
        DataError: vectors are not finite.
    """
    own, theirs = (
        _prepared(side, whose, similarity) for side, whose in ((queries, "queries"), (documents, "documents"))
    )
    block = max(1, _BLOCK_VALUES // max(1, len(theirs)))
    for start in range(0, len(own), block):
        yield _similarities(own[start : start + block], theirs, similarity)


def _hits(similarities: NDArray[np.float64], known: NDArray[np.int64], depth: int) -> NDArray[np.bool_]:
    """Return whether each of the first `depth` documents is relevant; among ties, relevant documents are last."""
    belongs = np.zeros(len(similarities), np.bool_)
    belongs[known] = True
    step = _TIE * max(float(np.abs(similarities).max()), np.finfo(np.float64).tiny)
    margin = np.partition(similarities, -depth)[-depth]
    candidates = np.flatnonzero(similarities >= margin - step)
    levels = np.round(similarities[candidates] / step)
    order = candidates[np.lexsort((belongs[candidates], -levels))]
    hits: NDArray[np.bool_] = belongs[order[:depth]]
    return hits


def random_scores(documents: int) -> dict[str, float]:
    """Return the expected scores of a random order of the documents, with one relevant document per query."""
    ranks = np.arange(1, min(DEPTH, documents) + 1)
    return {
        MAIN_SCORE: float((1 / np.log2(ranks + 1)).sum() / documents),
        "mrr_at_10": float((1 / ranks).sum() / documents),
        "recall_at_1": 1 / documents,
        "recall_at_10": len(ranks) / documents,
    }


def _prepared(vectors: NDArray[Any], whose: str, similarity: str) -> NDArray[np.float64]:
    """Return finite vectors in float64, scaled to length 1 for the cosine."""
    made = vectors.astype(np.float64)
    broken = int((~np.isfinite(made)).any(-1).sum())
    if broken:
        raise DataError(
            f"the embeddings of {broken} of {len(made)} {whose} are not finite (found NaN or infinity)",
            hint="the student has diverged: lower optimizer.lr, or set training.gradient_clipping",
        )
    if similarity == "cosine":
        made /= np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-12)
    return made


def _similarities(queries: NDArray[np.float64], documents: NDArray[np.float64], similarity: str) -> NDArray[np.float64]:
    if similarity == "manhattan":
        return np.stack([-np.abs(documents - query).sum(-1) for query in queries])
    products: NDArray[np.float64] = queries @ documents.T
    if similarity == "euclidean":
        products = 2 * products - (documents**2).sum(-1) - (queries**2).sum(-1)[:, None]
    return products
