"""Retrieval without training: given the first half of a passage, find its second half among all second halves."""

from __future__ import annotations

import numpy as np

from kdcore import PreparedData, load_tokenizer

_FARTHEST = 0.25
"""Largest distance of white space from the middle, as a fraction of the text; otherwise a word is cut."""


def passages_of(data: PreparedData, count: int) -> tuple[list[str], list[str], np.ndarray]:
    """Cut held-out sequences into halves.

    Sequences are left out if they are less than half full, contain parts of several documents, or share a half with an
    earlier sequence. The others are sampled evenly over the split.

    Args:
        data: the prepared data.
        count: maximum number of passages.

    Returns:
        First halves, second halves, and indices of the n sequences (n,).
    """
    held_out = data.split("held_out")
    numbers = np.flatnonzero(held_out.lengths * 2 >= data.sequence_length)
    tokenizer = load_tokenizer(str(data.tokenizer_folder))
    found: tuple[list[str], list[str]] = ([], [])
    seen: tuple[set[str], set[str]] = (set(), set())
    kept = []
    for number, row, length in zip(numbers, *held_out.rows(numbers), strict=True):
        inner = row[1 : length - 1]
        if (inner == data.manifest.special_tokens.sep).any():
            continue
        parts = halves(tokenizer.decode(inner, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if not all(parts) or any(part in before for part, before in zip(parts, seen, strict=True)):
            continue
        for part, before, sides in zip(parts, seen, found, strict=True):
            before.add(part)
            sides.append(part)
        kept.append(number)
    chosen = np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(np.int64)).tolist()
    first, second = ([side[index] for index in chosen] for side in found)
    return first, second, np.array([kept[index] for index in chosen], dtype=np.int64)


def halves(text: str) -> tuple[str, str]:
    """Cut a text at the white space nearest to its middle, or exactly in the middle if there is none nearby."""
    middle = len(text) / 2
    spaces = [index for index, character in enumerate(text) if character.isspace()]
    nearest = min(spaces, key=lambda index: abs(index - middle), default=0)
    cut = nearest if abs(nearest - middle) <= _FARTHEST * len(text) else len(text) // 2
    return text[:cut].strip(), text[cut:].strip()


def ranks(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the rank (n,) of candidate i for query i by cosine, starting at 1; tied candidates rank before it.

    Args:
        queries: (n, d) embeddings.
        candidates: (n, d) embeddings.
    """
    first, second = (side.astype(np.float64) for side in (queries, candidates))
    first, second = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (first, second))
    similarities = first @ second.T
    return np.asarray((similarities >= np.diagonal(similarities)[:, None]).sum(1))
