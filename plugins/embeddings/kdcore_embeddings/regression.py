"""Regress the teacher's embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from kdcore import (
    Batch,
    DataError,
    InputError,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    Total,
    at_least_float32,
    paired_rows,
    require_head,
    require_teacher,
)
from kdcore_embeddings.head import EMBEDDING


def embedding(student: Tensor, teacher: Tensor, *, distance: Literal["mse", "cosine"] = "mse") -> Total:
    """Sum `|e_s - e_t|^2` over embeddings, counted in components; or `1 - cos(e_s, e_t)`, counted in texts.

    Args:
        student: e_s (B, C).
        teacher: e_t, like `student`.
        distance: `mse` or `cosine`.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = (at_least_float32(rows) for rows in paired_rows(student, teacher))
    if distance == "mse":
        return Total((own - theirs).square().sum(), own.numel())
    # Half the squared distance of unit vectors is 1 - cos, without cancellation near 0.
    return Total((normalize(own, dim=-1) - normalize(theirs, dim=-1)).square().sum() / 2, len(own))


class EmbeddingLoss(Loss):
    """Distance between the embeddings of student and teacher.

    Term `embedding`: with `distance: mse`, sum over texts of `|e_s - e_t|^2`, counted in B * C; with `cosine`, sum over
    texts of `1 - cos(e_s, e_t)`, counted in B.
    """

    class Config(LossConfig):
        """Keys of an `embedding` entry."""

        distance: Literal["mse", "cosine"] = Field("mse", description="Distance of two embeddings.")

    config: Config
    function = staticmethod(embedding)

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        self.width = require_equal_widths(config, teacher, student)

    def requests(self) -> Requests:
        """Request the embeddings of both models."""
        asked = Signals.head(EMBEDDING)
        return Requests(teacher=asked, student=asked)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count components, or texts."""
        return {"embedding": batch.num_sequences * (self.width if self.config.distance == "mse" else 1)}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the distances."""
        assert teacher is not None
        own, theirs = student.outputs(EMBEDDING), read_teacher(teacher, self.config)
        return {"embedding": embedding(own, theirs, distance=self.config.distance).sum}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the teacher's embeddings (C,), their squares and their number; with `cosine` of unit vectors."""
        assert teacher is not None
        theirs = read_teacher(teacher, self.config).double()
        if self.config.distance == "cosine":
            theirs = normalize(theirs, dim=-1)
        rows = torch.tensor(float(len(theirs)), dtype=torch.float64)
        return {"rows": rows, "total": theirs.sum(0), "squares": theirs.square().sum()}

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the distance of the teacher's embeddings from their mean, or from its direction."""
        rows, total = float(sums["rows"]), sums["total"]
        if not rows:
            return {}
        if self.config.distance == "cosine":
            return {"embedding": 1 - float(total.norm()) / rows}
        return {"embedding": (float(sums["squares"]) - float(total.square().sum()) / rows) / (rows * self.width)}


def require_equal_widths(config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> int:
    """Return the width of embeddings, which must be equal in both models.

    Raises:
        InputError: a model has no embeddings, or the widths differ.
    """
    theirs, own = require_embeddings(config, teacher), require_head(config, student, EMBEDDING, "student").num_outputs
    if theirs != own:
        raise InputError(
            f"`{config.name}` requires embeddings of equal widths (student: {own}, teacher: {theirs})",
            key=f"losses.{config.label}",
            hint="remove task.dimension: the student then has a linear map to the teacher's width",
        )
    return own


def require_embeddings(config: LossConfig, teacher: ModelInfo | None) -> int:
    """Return the width of the teacher's embeddings.

    Raises:
        InputError: there is no teacher, or it has no embeddings.
    """
    head = require_teacher(config, teacher).head(EMBEDDING)
    if head is None:
        raise InputError(
            f"`{config.name}` requires a teacher with embeddings",
            key=f"losses.{config.label}",
            hint="set `teacher.name: sentence_transformer`, and `teacher.path` to a folder of sentence-transformers",
        )
    return head.num_outputs


def read_teacher(teacher: Signals, config: LossConfig) -> Tensor:
    """Return the teacher's embeddings (B, C).

    Raises:
        DataError: some are not finite. Outside a step on an accelerator, which would have to wait for the comparison;
            there the monitor of divergence finds the loss that is not finite.
    """
    theirs = at_least_float32(teacher.outputs(EMBEDDING))
    if theirs.device.type == "cpu" or not torch.is_grad_enabled():
        broken = int((~theirs.isfinite()).any(-1).sum())
        if broken:
            raise DataError(
                f"the teacher's embeddings of {broken} of {len(theirs)} texts are not finite (found NaN or infinity)",
                key=f"losses.{config.label}",
                hint="load the teacher with `dtype: fp32`; if that does not help, its weights are damaged",
            )
    return theirs
