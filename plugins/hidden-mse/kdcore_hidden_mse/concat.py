"""Define the mean squared error between concatenated hidden states of several blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from kdcore import (
    Batch,
    Block,
    LayerPairs,
    Lengths,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    Total,
    at_least_float32,
    real_rows,
    require_shapes,
    require_teacher,
    resolve_pairs,
)
from kdcore_hidden_mse.pairwise import UNIT_DESCRIPTION, UnitKey


def hidden_mse_concat(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    weight: Tensor,
    lengths: Lengths | None = None,
    *,
    project: Literal["student", "teacher"] = "student",
) -> Total:
    """Sum `|W concat_l(h_s^l) - concat_l(h_t^l)|^2` over real tokens, and count the compared components.

    Args:
        student: the states of each block: (B, L, d_s) with `lengths`, or rows (..., d_s) that are all compared.
        teacher: like `student`, of width d_t.
        weight: W, which maps the concatenated states of one model to the width of the other model's states.
        lengths: (B,) number of real tokens of each sequence.
        project: the model whose states are mapped.

    Raises:
        ValueError: the shapes or the lengths do not match.
    """
    for states in (*student, *teacher):
        require_shapes(
            states.shape[:-1] == student[0].shape[:-1], "equal axes but the last", first=student[0], one=states
        )
    own, theirs = (
        torch.cat([at_least_float32(real_rows(states, lengths)) for states in blocks], dim=-1)
        for blocks in (student, [states.detach() for states in teacher])
    )
    mapped, kept = (own, theirs) if project == "student" else (theirs, own)
    fit = weight.shape == (kept.shape[-1], mapped.shape[-1])
    require_shapes(fit, f"{(kept.shape[-1], mapped.shape[-1])}", weight=weight)
    return Total((linear(mapped, weight.to(mapped.dtype)) - kept).square().sum(), kept.numel())


class HiddenMSEConcat(Loss):
    """Mean squared error after one learned map over all paired blocks (How to Distill your BERT, "combine").

    Term `hidden_mse_concat`: sum of `|W concat_l(h_s^l) - concat_l(h_t^l)|^2` over real tokens, divided by the number
    of real tokens, N, times the width of the teacher's concatenated states. With `project: teacher`, as in the authors'
    code, it is the sum of `|concat_l(h_s^l) - W concat_l(h_t^l)|^2`, divided by N times the width of the student's
    concatenated states. This allows a collapse, in which W and the student's states shrink to 0.
    """

    class Config(LossConfig):
        """Keys of a `hidden_mse_concat` entry."""

        layers: LayerPairs = Field("uniform", description="Pairs of teacher and student blocks.")
        project: Literal["student", "teacher"] = Field(
            "student",
            description="Model whose concatenated states are mapped. `teacher` allows a collapse, in which W and the "
            "student's states shrink to 0.",
        )
        unit: UnitKey = Field("token", description=UNIT_DESCRIPTION)

    config: Config
    function = staticmethod(hidden_mse_concat)

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.pairs = resolve_pairs(config.layers, teacher.num_layers, student.num_layers)
        mapped, kept = student.hidden_size, teacher.hidden_size
        if config.project == "teacher":
            mapped, kept = kept, mapped
        self.width = kept * len(self.pairs)
        self.weight = nn.Linear(mapped * len(self.pairs), self.width, bias=False).weight
        if mapped == kept:
            nn.init.eye_(self.weight)  # training starts from the plain difference

    @property
    def compares_tokens(self) -> bool:
        """Whether `unit` is `token`."""
        return self.config.unit == "token"

    def requests(self) -> Requests:
        """Request the hidden states of the paired blocks."""
        return Requests(teacher=Signals.hidden(self.pairs.teacher), student=Signals.hidden(self.pairs.student))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of compared components of all real tokens or units."""
        rows = batch.num_tokens if self.config.unit == "token" else batch.num_units
        return {"hidden_mse_concat": rows * self.width}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of squared differences."""
        assert teacher is not None
        own = [self._rows(student, block) for block in self.pairs.student]
        theirs = [self._rows(teacher, block) for block in self.pairs.teacher]
        total = hidden_mse_concat(own, theirs, self.weight, project=self.config.project)
        return {"hidden_mse_concat": total.sum}

    def _rows(self, signals: Signals, block: Block) -> Tensor:
        return signals.tokens(block) if self.config.unit == "token" else signals.units(block)
