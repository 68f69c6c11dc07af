"""Divide one part of labelled texts by a hash of each text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from kdcore import ComponentConfig

OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class SplitFractions(ComponentConfig):
    """Fractions of a single file for validation and testing."""

    validation: OpenFraction = Field(description="Fraction for validation.")
    test: float = Field(0.0, ge=0, lt=1, description="Fraction for testing.")

    @model_validator(mode="after")
    def _leaves_something(self) -> SplitFractions:
        if self.validation + self.test >= 1:
            raise ValueError(f"`validation` ({self.validation:g}) and `test` ({self.test:g}) leave nothing to train on")
        return self

    def divide(self, texts: Iterable[tuple[str, ...]]) -> dict[str, np.ndarray]:
        """Return the indices of each part's texts; equal texts stay together."""
        places = np.array([_place(text) for text in texts])
        which = np.searchsorted([self.test, self.test + self.validation], places, side="right")
        found = [("train", 2), ("validation", 1), *([("test", 0)] if self.test else [])]
        return {name: np.flatnonzero(which == number) for name, number in found}


def _place(texts: tuple[str, ...]) -> float:
    """Map texts to a pseudorandom number from 0 to 1 by a hash, which is the same for equal texts."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", errors="replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64
