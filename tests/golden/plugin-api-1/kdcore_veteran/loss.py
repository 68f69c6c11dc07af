"""The loss `veteran`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

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


class VeteranLoss(Loss):
    """How far hidden states of student and teacher point into different directions.

    Term `veteran`: sum over pairs (t, s) of blocks of `1 - cos(P h_s, h_t)`
    over real tokens, counted in real tokens, where P is a learned linear map if the widths differ and nothing
    otherwise.
    """

    class Config(LossConfig):
        """Keys of its entry in `losses`, beside `weight` and `active`."""

        layers: LayerPairs = Field("last", description="Which teacher block teaches which student block.")
        projection: ProjectionMode = Field("auto", description="What to do where the widths differ.")

    config: Config

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.pairs = resolve_pairs(config.layers, teacher.num_layers, student.num_layers)
        self.project = Projections(self.pairs, student.hidden_size, teacher.hidden_size, config.projection)

    def requests(self) -> Requests:
        """Hidden states of the paired blocks; nothing else is computed."""
        return Requests(teacher=Signals.hidden(self.pairs.teacher), student=Signals.hidden(self.pairs.student))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Real tokens."""
        return {"veteran": batch.num_tokens}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Summed distances; the trainer divides by the count."""
        assert teacher is not None
        distances = [
            (1 - cosine_similarity(self.project(student.tokens(own), pair), at_least_float32(teacher.tokens(theirs))))
            for pair, (theirs, own) in enumerate(self.pairs)
        ]
        return {"veteran": torch.stack(distances).sum()}
