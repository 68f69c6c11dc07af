"""Select the held-out documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from kdcore import DataError, PreparedSplit


def points_of(corpus: int, documents: Iterable[str], seed: int) -> NDArray[np.float64]:
    """Map documents to evenly spread numbers in [0, 1); those below `held_out` are held out.

    They depend only on the documents' names and the seed, so a document keeps its split when others
    are added or removed.
    """
    start = f"{seed}\0{corpus}:".encode()
    digests = [blake2b(start + name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in documents]
    return np.frombuffer(b"".join(digests), ">u8") / 2.0**64


@dataclass(frozen=True)
class Nearest:
    """The document of a unit that would change its split first if `held_out` were changed.

    Attributes:
        distance: distance between its point and `held_out`.
        document: its number in that text.
    """

    distance: float
    document: int


def document_to_move(
    documents: dict[PreparedSplit, int], nearest: Sequence[Nearest | None], share: float
) -> tuple[int, int] | None:
    """Choose a document to move to a split that would otherwise be empty.

    Args:
        documents: number of documents of each split.
        nearest: the nearest document of each unit; None for units without candidates.
        share: fraction of the documents to be held out.

    Returns:
        The unit and the document's number in it; None if both splits have a document, or nothing is held out.

    Raises:
        DataError: there are too few documents to fill the splits.
    """
    total = sum(documents.values())
    if not total:
        raise DataError("the corpora contain no text", hint="check the paths of the data recipe's `corpora`")
    if share == 0 or all(documents.values()):
        return None
    if total == 1:
        raise DataError(
            "the corpora contain a single document: holding it out would leave none for training",
            key="held_out",
            hint="set held_out to 0, or separate documents, such as with `documents: lines` of the corpus text",
        )
    candidates = [(one.distance, unit, one.document) for unit, one in enumerate(nearest) if one is not None]
    if not candidates:
        empty = next(split for split, count in documents.items() if not count)
        raise DataError(f"the corpora assign a split to every sequence, but none to `{empty}`", key="held_out")
    _, unit, document = min(candidates)
    return unit, document
