"""Choose the documents that a teacher finds most similar to a query, among those that do not belong to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcore_embeddings.search_scores import similarity_blocks


@dataclass(frozen=True)
class MinedNegatives:
    """Negatives of one query.

    Attributes:
        documents: (k,) their numbers, the most similar first.
        scores: (1 + k,) float32 similarities to the query: of its positive document, then of the negatives.
    """

    documents: NDArray[np.int64]
    scores: NDArray[np.float32]


def hard_negatives(
    queries: NDArray[Any],
    documents: NDArray[Any],
    positives: Sequence[int],
    excluded: Sequence[Collection[int]],
    *,
    count: int,
    margin: float,
    similarity: str = "cosine",
) -> list[MinedNegatives]:
    """Search every query among all documents.

    Negatives have a score of at most `s - margin * |s|`, with the score s of the query's positive document: at most
    `1 - margin` of it, if it is positive. Of equal scores, the document with the lower number comes first.

    Args:
        queries: (n, C) embeddings.
        documents: (m, C) embeddings.
        positives: number of the positive document of each query.
        excluded: numbers of the documents that are not negatives of each query, such as its other positive ones.
        count: number of negatives of a query; fewer where no others are eligible.
        margin: relative margin, at least 0 and below 1.
        similarity: `cosine`, `dot`, `euclidean` or `manhattan`.

    Raises:
        DataError: vectors are not finite.
    """
    found: list[MinedNegatives] = []
    for block in similarity_blocks(queries, documents, similarity):
        for similarities in block:
            row = similarities.astype(np.float32)  # equal vectors have equal products only to rounding
            number = len(found)
            own = row[positives[number]].copy()
            row[row > own - margin * abs(own)] = -np.inf
            row[[positives[number], *excluded[number]]] = -np.inf
            least = np.partition(row, -min(count, len(row)))[-min(count, len(row))]
            candidates = np.flatnonzero((row >= least) & (row > -np.inf))
            chosen = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
            found.append(MinedNegatives(chosen, np.concatenate([own[None], row[chosen]])))
    return found
