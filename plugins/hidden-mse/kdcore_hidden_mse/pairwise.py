"""Share the code of losses that compare hidden states of pairs of blocks."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from kdcore import (
    Batch,
    LayerPairs,
    Loss,
    LossConfig,
    ModelInfo,
    ProjectionMode,
    Projections,
    Requests,
    Signals,
    at_least_float32,
    require_teacher,
    resolve_pairs,
)


class PairwiseHiddenLoss(Loss):
    """The sum over pairs (t, s) of blocks of a distance between rows of `P h_s` and `h_t`, in one term.

    P is a learned linear map if the widths differ, otherwise the identity.
    """

    class Config(LossConfig):
        """Keys of an entry."""

        layers: LayerPairs = Field("last", description="Pairs of teacher and student blocks.")
        projection: ProjectionMode = Field(
            "auto", description="How to compare states of different widths: a learned map, or an error."
        )

    config: Config

    term: ClassVar[str]
    """Name of the only term."""

    first_only: ClassVar[bool] = False
    """Whether rows are the first tokens of the sequences, not all real tokens."""

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.width = teacher.hidden_size
        self.pairs = resolve_pairs(config.layers, teacher.num_layers, student.num_layers)
        self.project = Projections(self.pairs, student.hidden_size, teacher.hidden_size, config.projection)

    def requests(self) -> Requests:
        """Request the hidden states of the paired blocks."""
        return Requests(teacher=Signals.hidden(self.pairs.teacher), student=Signals.hidden(self.pairs.student))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of compared items."""
        return {self.term: self.count(batch.num_sequences if self.first_only else batch.num_tokens)}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of distances."""
        assert teacher is not None
        own_rows, their_rows = (side.first if self.first_only else side.tokens for side in (student, teacher))
        distances = [
            self.distance(self.project(own_rows(own), pair), at_least_float32(their_rows(theirs)))
            for pair, (theirs, own) in enumerate(self.pairs)
        ]
        return {self.term: torch.stack(distances).sum()}

    @abstractmethod
    def count(self, rows: int) -> int:
        """Return the number of items that `distance` sums over for a number of rows."""

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum the distance between student and teacher over rows; both are (rows, d_t) and at least float32."""


def squared_distance_of_directions(one: Tensor, other: Tensor) -> Tensor:
    """Sum `|a/|a| - b/|b||^2` over rows, which is `2 - 2 cos(a, b)` and exactly 0 for equal rows."""
    return (normalize(one, dim=-1) - normalize(other, dim=-1)).square().sum()
