"""Share the code of losses that compare hidden states of pairs of blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Block,
    LayerPairs,
    Loss,
    LossConfig,
    ModelInfo,
    ProjectionMode,
    Projections,
    Requests,
    Signals,
    Total,
    require_teacher,
    resolve_pairs,
)

UnitKey = Literal["token", "aligned"]
UNIT_DESCRIPTION = (
    "Compared states: of all real tokens, or, for models with different tokenizers, averages over the spans of text "
    "between common token boundaries (`aligned`)."
)


class PairwiseHiddenLoss(Loss):
    """The sum over pairs (t, s) of blocks of a distance between rows of `P h_s` and `h_t`, in one term.

    P is a learned linear map if the widths differ, otherwise the identity.
    """

    class Config(LossConfig):
        """Keys of an entry."""

        layers: LayerPairs = Field("last", description="Pairs of teacher and student blocks.")
        projection: ProjectionMode = Field(
            "auto", description="If the widths differ, `auto` maps the student's states, and `none` is an error."
        )

    config: Config

    term: ClassVar[str]
    """Name of the only term."""
    function: ClassVar[Callable[..., Total]]

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
        return {self.term: self.count(self.num_rows(batch))}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of distances."""
        assert teacher is not None
        distances = [
            self.function(self.project(self.rows(student, own), pair), self.rows(teacher, theirs)).sum
            for pair, (theirs, own) in enumerate(self.pairs)
        ]
        return {self.term: torch.stack(distances).sum()}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the teacher's states (d_t) and their squares for each pair, and count rows."""
        assert teacher is not None
        states = [self.compared(self.rows(teacher, block).double()) for block in self.pairs.teacher]
        return {
            "rows": torch.tensor(float(len(states[0])), dtype=torch.float64),
            "states": torch.stack([rows.sum(0) for rows in states]),
            "squares": torch.stack([rows.square().sum() for rows in states]),
        }

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the term's value for the best constant state of each pair."""
        rows = float(sums["rows"])
        distances = self.constant_distance(rows, sums["states"], sums["squares"])
        return {self.term: float(distances.sum()) / self.count(int(rows))} if rows else {}

    def compared(self, states: Tensor) -> Tensor:
        """Return the part of states (rows, d_t) that the distance depends on."""
        return states

    @abstractmethod
    def constant_distance(self, rows: float, total: Tensor, squares: Tensor) -> Tensor:
        """Return the sum of distances (pairs,) between the best constant and all rows.

        Args:
            rows: number of rows.
            total: (pairs, d_t) sum of the teacher's compared states.
            squares: (pairs,) sum of their squared norms.
        """

    @abstractmethod
    def num_rows(self, batch: Batch) -> int:
        """Return the number of rows that are compared."""

    @abstractmethod
    def rows(self, signals: Signals, block: Block) -> Tensor:
        """Return the states after a block that are compared: (rows, d)."""

    @abstractmethod
    def count(self, rows: int) -> int:
        """Return the count that `function` returns for a number of rows."""


class FirstTokenLoss(PairwiseHiddenLoss):
    """A distance between states of the first tokens of the sequences, which need no alignment."""

    compares_tokens = False

    def num_rows(self, batch: Batch) -> int:
        """Return B."""
        return batch.num_sequences

    def rows(self, signals: Signals, block: Block) -> Tensor:
        """Return the states of the first tokens: (B, d)."""
        return signals.first(block)


class TokenLoss(PairwiseHiddenLoss):
    """A distance between states of all real tokens, or of the units of models with different tokenizers."""

    class Config(PairwiseHiddenLoss.Config):
        """Keys of an entry."""

        unit: UnitKey = Field("token", description=UNIT_DESCRIPTION)

    config: Config

    @property
    def compares_tokens(self) -> bool:
        """Whether `unit` is `token`."""
        return self.config.unit == "token"

    def num_rows(self, batch: Batch) -> int:
        """Return N, or U for units."""
        return batch.num_tokens if self.config.unit == "token" else batch.num_units

    def rows(self, signals: Signals, block: Block) -> Tensor:
        """Return the states of tokens (N, d), or of units (U, d)."""
        return signals.tokens(block) if self.config.unit == "token" else signals.units(block)
