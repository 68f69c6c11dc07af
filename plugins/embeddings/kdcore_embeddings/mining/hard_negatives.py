"""Choose the documents that are most similar to a query according to a teacher, but do not belong to it."""

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
        documents: (k,) indices of the negative documents, the most similar first.
        scores: (1 + k,) float32 similarities of the query to its positive document and then to the negatives.
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
    """Search all documents for hard negatives of each query.

    Negatives have a score of at most `s - margin * |s|`, where s is the score of the query's positive document; for a
    positive s, this is `(1 - margin) * s`. Among equal scores, the document with the lower index comes first.

    Args:
        queries: (n, C) embeddings.
        documents: (m, C) embeddings.
        positives: index of the positive document of each query.
        excluded: for each query, indices of the documents that are not negatives, such as its other positives.
        count: number of negatives per query; fewer if not enough documents are eligible.
        margin: relative margin, at least 0 and below 1.
        similarity: `cosine`, `dot`, `euclidean` or `manhattan`.

    Raises:
        DataError: vectors are not finite.
    """
    found: list[MinedNegatives] = []
    for block in similarity_blocks(queries, documents, similarity):
        for similarities in block:
            row = similarities.astype(np.float32)  # equal vectors have equal products only up to rounding
            number = len(found)
            own = row[positives[number]].copy()
            row[row > own - margin * abs(own)] = -np.inf
            row[[positives[number], *excluded[number]]] = -np.inf
            least = np.partition(row, -min(count, len(row)))[-min(count, len(row))]
            candidates = np.flatnonzero((row >= least) & (row > -np.inf))
            chosen = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
            found.append(MinedNegatives(chosen, np.concatenate([own[None], row[chosen]])))
    return found
