"""Losses on the scores of a query's documents: `margin_mse` and `listwise_kl`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdcore import (
    Batch,
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
)
from kdcore_embeddings.batch_losses import GROUP_TEXTS
from kdcore_embeddings.head import EMBEDDING, EmbeddingHead
from kdcore_embeddings.regression import read_teacher, require_embeddings

GROUP_SCORES = "group_scores"
"""Column (B, k - 1) of a task with groups of k texts: for each row, the scores of the documents in its group."""

_FEWEST = 3
_LOGITS_SCALE = 20.0
_LARGEST_MARGIN = 2.0  # for dot products of unit vectors


def margin_mse(student: Tensor, teacher: Tensor) -> Total:
    """Sum `((s_1 - s_j) - (t_1 - t_j))^2` over queries and their negatives j, and count the negatives.

    Args:
        student: scores s (n, m) of the m documents of each of n queries, the positive document first.
        teacher: scores t, like `student`, such as those of a cross-encoder.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = _scores(student, teacher)
    margins = [side[:, :1] - side[:, 1:] for side in (own, theirs)]
    return Total((margins[0] - margins[1]).square().sum(), margins[0].numel())


def listwise_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Total:
    """Sum `T^2 KL(softmax(t / T) || softmax(s / T))` over queries, and count the queries.

    Args:
        student: scores s (n, m) of the m documents of each of n queries.
        teacher: scores t, like `student`.
        temperature: T.

    Raises:
        ValueError: the shapes differ.
    """
    own, theirs = (side.div(temperature).log_softmax(-1) for side in _scores(student, teacher))
    return Total((theirs.exp() * (theirs - own)).sum() * temperature**2, len(own))


def _scores(student: Tensor, teacher: Tensor) -> list[Tensor]:
    require_shapes(student.ndim == 2, "(n, m)", student=student)
    return [at_least_float32(scores) for scores in paired_rows(student, teacher)]


class RankingConfig(LossConfig):
    """Keys of losses on scores."""

    scores: Literal["teacher", "data"] = Field(
        "teacher",
        description="Scores to learn: dot products of the teacher's embeddings, or scores in the data "
        "(`task.data.scores`), such as logits of a cross-encoder.",
    )
    similarity: Literal["dot", "cosine"] = Field(
        "dot", description="Score of the student: the dot product, or the cosine times a learned scale."
    )
    scale: float | None = Field(
        None,
        gt=0,
        description="Initial value of the learned scale of `similarity: cosine`. Training changes it only a little; a "
        "good value is the spread of the target scores divided by the spread of the cosines. Default: 20 for scores "
        "in the data, such as logits of cross-encoders; 1 for scores of the teacher.",
    )


class _GroupScores(Loss):
    """Base class for losses that compare the scores of each query's documents."""

    config: RankingConfig

    def __init__(self, config: RankingConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        head = require_head(config, student, EMBEDDING, "student")
        self.unit_length = isinstance(head, EmbeddingHead) and head.normalize
        if config.scores == "teacher":
            require_embeddings(config, teacher)
        self.log_scale: nn.Parameter | None = None
        if config.similarity == "cosine":
            scale = config.scale or (_LOGITS_SCALE if config.scores == "data" else 1.0)
            self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        elif config.scale is not None:
            raise InputError(
                "`scale` is used only with cosines, but the scores of the student are dot products",
                key=f"losses.{config.label}.scale",
                hint="set `similarity: cosine`, or remove `scale`",
            )
        self.zero_when_equal = config.scores == "teacher" and config.similarity == "dot"  # type: ignore[misc]

    def requests(self) -> Requests:
        """Request embeddings, and the groups or their scores."""
        asked = Signals.head(EMBEDDING)
        if self.config.scores == "data":
            return Requests(student=asked, columns=frozenset({GROUP_TEXTS, GROUP_SCORES}))
        return Requests(teacher=asked, student=asked, columns=frozenset({GROUP_TEXTS}))

    def group_size(self, batch: Batch) -> int:
        """Return k, the number of texts of a group.

        Raises:
            InputError: groups have no negatives.
        """
        size = int(batch.columns[GROUP_TEXTS].shape[1])
        if size < _FEWEST:
            raise InputError(
                f"`{self.config.name}` compares the documents of a query, but each group has only one document",
                key=f"losses.{self.config.label}",
                hint="set `task.data.negatives` to columns of negatives, or use `info_nce`",
            )
        return size

    def group_scores(self, student: Signals, teacher: Signals | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the scores (n, k - 1) of each query's documents: the student's scores, and the target scores."""
        width = batch.columns[GROUP_TEXTS].shape[1]
        own = at_least_float32(student.outputs(EMBEDDING))
        if self.log_scale is None:
            scores = _dot_products(own, width)
        else:
            scores = _dot_products(normalize(own, dim=-1), width) * self.log_scale.to(own.dtype).exp()
        if self.config.scores == "data":
            return scores, batch.columns[GROUP_SCORES][::width].to(scores.dtype)
        assert teacher is not None
        return scores, _dot_products(read_teacher(teacher, self.config), width)


class MarginMSELoss(_GroupScores):
    """Match the margins between the scores of positive and negative documents (Hofstätter et al. 2020).

    Term `margin_mse`: sum over queries and their negatives j of `((s_1 - s_j) - (t_1 - t_j))^2`, with the student's
    scores s and the target scores t. The sum is divided by the number of negatives.
    """

    class Config(RankingConfig):
        """Keys of a `margin_mse` entry."""

    config: Config
    _checked = False
    function = staticmethod(margin_mse)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count negatives.

        Raises:
            InputError: groups have no negatives, or the first batch has margins that dot products of unit vectors
                cannot reach.
        """
        size = self.group_size(batch)
        if self.unit_length and self.config.similarity == "dot" and self.config.scores == "data" and not self._checked:
            self._checked = True  # the error must not occur later in a run
            scores = batch.columns[GROUP_SCORES]
            largest = float((scores[:, :1] - scores[:, 1:]).abs().max())
            if largest > _LARGEST_MARGIN:
                raise InputError(
                    f"dot products of embeddings of length 1 have margins of at most {_LARGEST_MARGIN:g}, but the data "
                    f"has one of {largest:g}",
                    key=f"losses.{self.config.label}",
                    hint="set `similarity: cosine`, whose scale is learned, or `task.normalize: false`",
                )
        return {"margin_mse": batch.num_sequences // size * (size - 2)}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum squared differences of margins."""
        return {"margin_mse": margin_mse(*self.group_scores(student, teacher, batch)).sum}


class ListwiseKLLoss(_GroupScores):
    """Match the distribution of the scores over a query's documents.

    Term `listwise_kl`: sum over queries of `T^2 KL(softmax(t / T) || softmax(s / T))` over the query's documents, with
    the student's scores s and the target scores t. The sum is divided by the number of queries.
    """

    class Config(RankingConfig):
        """Keys of a `listwise_kl` entry."""

        temperature: float = Field(1.0, gt=0, description="Temperature T, which divides the scores.")

    config: Config
    function = staticmethod(listwise_kl)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count queries."""
        return {"listwise_kl": batch.num_sequences // self.group_size(batch)}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the divergence."""
        scores = self.group_scores(student, teacher, batch)
        return {"listwise_kl": listwise_kl(*scores, temperature=self.config.temperature).sum}


def _dot_products(embeddings: Tensor, width: int) -> Tensor:
    """Return the dot products (n, k - 1) of the queries with their documents."""
    groups = embeddings.view(-1, width, embeddings.shape[-1])
    return (groups[:, 1:] @ groups[:, 0, :, None]).squeeze(-1)
