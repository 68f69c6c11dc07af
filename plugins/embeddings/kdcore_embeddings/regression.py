"""Regress the teacher's embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    require_shapes,
    require_teacher,
)
from kdcore_embeddings.head import EMBEDDING


def embedding(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: Literal["mse", "cosine"] = "mse",
    dimensions: Sequence[int] | None = None,
) -> Total:
    """Sum `|e_s - e_t|^2` over texts and count components, or sum `1 - cos(e_s, e_t)` and count texts.

    Args:
        student: e_s (B, C).
        teacher: e_t, like `student`.
        distance: `mse` or `cosine`.
        dimensions: widths to which embeddings are also truncated and then scaled to length 1; the sums are averaged
            over the complete and the truncated embeddings.

    Raises:
        ValueError: the shapes differ, or a dimension is out of range.
    """
    own, theirs = (at_least_float32(rows) for rows in paired_rows(student, teacher))
    sums = [_distance(own, theirs, distance)]
    for width in dimensions or ():
        require_shapes(0 < width <= own.shape[-1], f"at least 1 and {width} components", embeddings=own)
        first, second = (normalize(side[..., :width], dim=-1) for side in (own, theirs))
        sums.append(_distance(first, second, distance))
    return Total(torch.stack(sums).mean(), own.numel() if distance == "mse" else len(own))


def _distance(own: Tensor, theirs: Tensor, distance: str) -> Tensor:
    if distance == "mse":
        return (own - theirs).square().sum()
    # Half the squared distance of unit vectors is 1 - cos, without cancellation near 0.
    return (normalize(own, dim=-1) - normalize(theirs, dim=-1)).square().sum() / 2


class EmbeddingLoss(Loss):
    """Distance between the embeddings of student and teacher.

    Term `embedding`: with `distance: mse`, sum over texts of `|e_s - e_t|^2`, divided by the number of texts times the
    number of components; with `cosine`, sum over texts of `1 - cos(e_s, e_t)`, divided by the number of texts. With
    `dimensions`, the term is the mean of this value and the values for embeddings truncated to these widths and scaled
    to length 1.
    """

    class Config(LossConfig):
        """Keys of an `embedding` entry."""

        distance: Literal["mse", "cosine"] = Field("mse", description="Distance of two embeddings.")
        dimensions: list[int] | None = Field(
            None,
            min_length=1,
            description="Also compute the distance of both embeddings truncated to these widths (Matryoshka); needs "
            "`nested_teacher`.",
        )
        nested_teacher: bool = Field(
            False,
            description="Whether the first components of the teacher's embeddings are embeddings themselves, because "
            "the teacher was trained with Matryoshka losses or rotated to its principal components.",
        )

    config: Config
    function = staticmethod(embedding)

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        self.width = require_equal_widths(config, teacher, student)
        if config.dimensions is not None and not config.nested_teacher:
            raise InputError(
                "`dimensions` needs a teacher whose first components are embeddings themselves",
                key=f"losses.{config.label}.dimensions",
                hint="set `nested_teacher: true` if it was trained with Matryoshka losses or rotated to its principal "
                "components; otherwise use `dimensions` of the loss `similarity`, which works with any teacher",
            )
        require_widths(config, config.dimensions, self.width)

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
        total = embedding(own, theirs, distance=self.config.distance, dimensions=self.config.dimensions)
        return {"embedding": total.sum}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Count the teacher's embeddings, and sum them (C,) and their squares; `cosine` first scales them to norm 1."""
        assert teacher is not None
        theirs = read_teacher(teacher, self.config).double()
        if self.config.distance == "cosine":
            theirs = normalize(theirs, dim=-1)
        rows = torch.tensor(float(len(theirs)), dtype=torch.float64)
        return {"rows": rows, "total": theirs.sum(0), "squares": theirs.square().sum()}

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the average distance of the teacher's embeddings from their mean; `cosine` uses the mean's direction.

        With `dimensions`, there is no baseline.
        """
        rows, total = float(sums["rows"]), sums["total"]
        if not rows or self.config.dimensions is not None:
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


def require_widths(config: LossConfig, dimensions: Sequence[int] | None, width: int) -> None:
    """Reject dimensions to which the student's embeddings, with `width` components, cannot be truncated.

    Raises:
        InputError: a dimension is not smaller than `width`.
    """
    for dimension in dimensions or ():
        if not 0 < dimension < width:
            raise InputError(
                f"embeddings cannot be truncated to {dimension} components (expected 1 to {width - 1})",
                key=f"losses.{config.label}.dimensions",
                hint=f"the student's embeddings have {width} components",
            )


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
            hint="set `teacher.name: sentence_transformer`, and `teacher.path` to a sentence-transformers folder",
        )
    return head.num_outputs


def read_teacher(teacher: Signals, config: LossConfig) -> Tensor:
    """Return the teacher's embeddings (B, C).

    Raises:
        DataError: embeddings are not finite. This is not checked in training steps on an accelerator, because the check
            would synchronize; there the divergence monitor detects the non-finite loss.
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
