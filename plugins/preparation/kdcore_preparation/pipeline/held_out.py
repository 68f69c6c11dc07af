"""Select the held-out documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from kdcore import DataError, PreparedSplit

_NONE_LEFT = "holding it out would leave none for training"
_SEPARATE = "set held_out to 0, or separate documents, such as with `documents: lines` of the corpus text"


def points_of(corpus: int, documents: Iterable[str], seed: int) -> NDArray[np.float64]:
    """Map groups of sequences to evenly spread numbers in [0, 1); those below `held_out` are held out.

    The numbers depend only on the groups' names and the seed, so a group keeps its split when others are added or
    removed.
    """
    start = f"{seed}\0{corpus}:".encode()
    digests = [blake2b(start + name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in documents]
    return np.frombuffer(b"".join(digests), ">u8") / 2.0**64


def points_of_contents(keys: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """Map documents to evenly spread numbers in [0, 1) like `points_of`, using the texts instead of names.

    Documents with the same content have the same point, regardless of their location.

    Args:
        keys: (documents,) the `content_keys` of each text.
        seed: the recipe's seed.
    """
    # The finalizer of SplitMix64, which spreads every bit of its input over all bits of the result.
    mixed = keys ^ np.uint64(int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest()))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) / 2.0**53


def point_to_move(
    documents: dict[PreparedSplit, int], nearest: Sequence[float | None], held_out: float
) -> float | None:
    """Choose the documents to move to a split that would otherwise be empty.

    Args:
        documents: number of documents of each split.
        nearest: for each unit, the point nearest to `held_out` among its documents; None for units without candidates.
        held_out: fraction of the documents to be held out.

    Returns:
        The point of the documents to move; None if both splits have documents, or if nothing is held out.

    Raises:
        DataError: there are too few documents to fill the splits.
    """
    total = sum(documents.values())
    if not total:
        raise DataError("the corpora contain no text", hint="check the paths of the data recipe's `corpora`")
    if held_out == 0 or all(documents.values()):
        return None
    if total == 1:
        raise DataError(f"the corpora contain a single document: {_NONE_LEFT}", key="held_out", hint=_SEPARATE)
    candidates = [point for point in nearest if point is not None]
    if not candidates:
        empty = next(split for split, count in documents.items() if not count)
        raise DataError(
            f"neither file names nor `held_out` selects sequences for the split `{empty}`",
            key="held_out",
            hint="raise held_out or set it to 0, or name shards train_shard_0.hdf5 and test_shard_0.hdf5",
        )
    return min(candidates, key=lambda point: abs(point - held_out))


def refuse_single_content(documents: dict[PreparedSplit, int]) -> None:
    """Raise an error if a split is still empty after documents were moved.

    Raises:
        DataError: all documents have the same content.
    """
    if not all(documents.values()):
        what = f"the {sum(documents.values()):,} documents differ in case, white space and punctuation at most"
        raise DataError(f"{what}: {_NONE_LEFT}", key="held_out", hint=_SEPARATE)
