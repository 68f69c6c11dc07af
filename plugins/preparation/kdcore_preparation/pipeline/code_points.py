"""Texts as arrays of code points, for work on many texts at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the code point of each character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def text_of(points: NDArray[np.uint32]) -> str:
    """Return the text with these code points."""
    return points.tobytes().decode("utf-32-le", "surrogatepass")


def count_in_texts(chosen: NDArray[np.bool_], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Count the chosen characters of each text (texts,).

    Args:
        chosen: (characters,) whether each character of the concatenated texts is counted.
        sizes: number of characters of each text.
    """
    places = np.flatnonzero(chosen)
    return np.diff(np.searchsorted(places, np.cumsum(sizes, dtype=np.int64)), prepend=0).astype(np.int64, copy=False)
