"""Which documents are held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from kdcore import DataError, PreparedSplit


def points_of(corpus: int, documents: Iterable[str], seed: int) -> NDArray[np.float64]:
    """Map documents to evenly spread numbers in [0, 1); those below `held_out` are held out.

    They depend on the documents' names and the seed alone, so a document stays where it is when others come or go.
    """
    start = f"{seed}\0{corpus}:".encode()
    digests = [blake2b(start + name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in documents]
    return np.frombuffer(b"".join(digests), ">u8") / 2.0**64


@dataclass(frozen=True)
class Nearest:
    """The document of some text that is the next to change its split if the share were changed.

    Attributes:
        distance: between its point and the share.
        document: its number in that text.
    """

    distance: float
    document: int


def document_to_move(
    documents: dict[PreparedSplit, int], nearest: Sequence[Nearest | None], share: float
) -> tuple[int, int] | None:
    """Choose a document to move to a split that would otherwise be empty.

    Args:
        documents: how many each split has.
        nearest: the nearest document of each unit of text, None for one without documents to choose from.
        share: fraction of the documents to be held out.

    Returns:
        The unit and the document's number in it; None if both splits have a document, or none shall be held out.

    Raises:
        DataError: there are too few documents to fill the splits.
    """
    total = sum(documents.values())
    if not total:
        raise DataError("the corpora hold no text", hint="check the paths of the data recipe's `corpora`")
    if share == 0 or all(documents.values()):
        return None
    if total == 1:
        raise DataError(
            "the corpora hold a single document: none can be held out without leaving training empty",
            key="held_out",
            hint="set held_out to 0, or separate documents, such as with `documents: lines` of the corpus text",
        )
    candidates = [(one.distance, unit, one.document) for unit, one in enumerate(nearest) if one is not None]
    if not candidates:
        empty = next(split for split, count in documents.items() if not count)
        raise DataError(f"the corpora name a split for every sequence, and none for `{empty}`", key="held_out")
    _, unit, document = min(candidates)
    return unit, document
