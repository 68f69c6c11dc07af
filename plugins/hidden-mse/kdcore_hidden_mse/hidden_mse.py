"""Mean squared error between hidden states."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

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


class HiddenMSE(Loss):
    """Mean squared error between student and teacher hidden states (How to Distill your BERT, section 3; TinyBERT).

    Term `hidden_mse`: sum over pairs (t, s) of blocks of `|P h_s - h_t|^2` over real tokens, counted in N * d_t, where
    P is a learned linear map if the widths differ and nothing otherwise.
    """

    class Config(LossConfig):
        """Keys of a `hidden_mse` entry."""

        layers: LayerPairs = Field("last", description="Which teacher block teaches which student block.")
        projection: ProjectionMode = Field("auto", description="What to do where the widths differ.")

    config: Config

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.width = teacher.hidden_size
        self.pairs = resolve_pairs(config.layers, teacher.num_layers, student.num_layers)
        self.project = Projections(self.pairs, student.hidden_size, teacher.hidden_size, config.projection)

    def requests(self) -> Requests:
        """Hidden states of the paired blocks."""
        return Requests(teacher=Signals.hidden(self.pairs.teacher), student=Signals.hidden(self.pairs.student))

    def counts(self, batch: Batch) -> dict[str, int]:
        """N * d_t: every component of every real token."""
        return {"hidden_mse": batch.num_tokens * self.width}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Summed squared differences."""
        assert teacher is not None
        distances = [
            (self.project(student.tokens(own), pair) - at_least_float32(teacher.tokens(theirs))).square().sum()
            for pair, (theirs, own) in enumerate(self.pairs)
        ]
        return {"hidden_mse": torch.stack(distances).sum()}
