"""Losses that compare every text of a batch with the others: `similarity` and `info_nce`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from kdcore import (
    Batch,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    Total,
    at_least_float32,
    require_head,
    require_shapes,
)
from kdcore_embeddings.head import EMBEDDING
from kdcore_embeddings.regression import read_teacher, require_embeddings, require_widths

GROUP_TEXTS = "group_texts"
"""Column (B, k) of a task with groups of k consecutive texts: for each row, the indices of the texts in its group.

The first text of a group is the query, the second its positive document, the others negatives.
"""


def similarity(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: Literal["kl", "mse"] = "kl",
    temperature: float = 0.05,
    dimensions: Sequence[int] | None = None,
) -> Total:
    """Sum the distances between the student's and the teacher's cosines of all pairs of texts; see `SimilarityLoss`.

    The count is the number of texts, B, or, for `mse`, the number of pairs, B * (B - 1).

    Args:
        student: embeddings (B, C) of any norm.
        teacher: like `student`; the width may differ.
        distance: `kl` or `mse`.
        temperature: T of `kl`.
        dimensions: widths to which the student's embeddings are also truncated; the sums are averaged over all widths.

    Raises:
        ValueError: the shapes do not match, or `dimensions` are out of range.
    """
    fit = student.ndim == teacher.ndim == 2 and len(student) == len(teacher)
    require_shapes(fit, "(B, C) with equal B", student=student, teacher=teacher)
    texts = len(student)
    count = texts if distance == "kl" else texts * (texts - 1)
    theirs = normalize(at_least_float32(teacher.detach()), dim=-1)
    if texts < 2:
        return Total(at_least_float32(student).sum() * 0, count)
    target = _without_diagonal(theirs @ theirs.T)
    values = []
    for vectors in _unit_vectors(student, dimensions):
        own = _without_diagonal(vectors @ vectors.T)
        if distance == "mse":
            values.append((own - target).square().sum())
            continue
        log_own, log_target = (side.div(temperature).log_softmax(-1) for side in (own, target))
        values.append((log_target.exp() * (log_target - log_own)).sum() * temperature**2)
    return Total(torch.stack(values).mean(), count)


def info_nce(
    student: Tensor,
    texts: Tensor | None = None,
    *,
    temperature: float = 0.05,
    dimensions: Sequence[int] | None = None,
) -> Total:
    """Sum the cross-entropy of each query's document among all documents, and count queries; see `InfoNCELoss`.

    Args:
        student: embeddings (n, k, C), of any norm: n groups of a query, its positive document and k - 2 negatives.
        texts: (n, k) indices of the texts, with the same index for the same text; None if all texts differ.
        temperature: T.
        dimensions: widths to which the embeddings are also truncated; the sums are averaged over all widths.

    Raises:
        ValueError: the shapes do not match, or `dimensions` are out of range.
    """
    fit = student.ndim == 3 and student.shape[1] > 1 and (texts is None or texts.shape == student.shape[:2])
    require_shapes(fit, "(n, k, C) with k > 1, and (n, k)", student=student, texts=texts)
    size, width, _ = student.shape
    if texts is None:
        texts = torch.arange(size * width, device=student.device).view(size, width)
    queries, documents = texts[:, :1], texts[:, 1:].reshape(-1)
    rows = torch.arange(size, device=texts.device)
    right = rows * (width - 1)
    # Whether document j has the same text as a document that belongs to query i, in any group.
    belongs = (queries == queries.T).float() @ (documents == texts[:, 1:2]).float() > 0
    left_out = (documents == queries) | belongs
    left_out[rows, right] = False
    values = []
    for groups in _unit_vectors(student, dimensions):
        cosines = groups[:, 0] @ groups[:, 1:].flatten(0, 1).T / temperature
        values.append(cross_entropy(cosines.masked_fill(left_out, -torch.inf), right, reduction="sum"))
    return Total(torch.stack(values).mean(), size)


def _unit_vectors(embeddings: Tensor, dimensions: Sequence[int] | None) -> Iterator[Tensor]:
    """Yield embeddings (..., C), complete and truncated, each scaled to length 1 after truncation."""
    whole = at_least_float32(embeddings)
    for width in (whole.shape[-1], *(dimensions or ())):
        require_shapes(0 < width <= whole.shape[-1], f"at least 1 and {width} components", embeddings=whole)
        yield normalize(whole[..., :width], dim=-1)


class MatryoshkaConfig(LossConfig):
    """Keys of losses that can also train the first components of embeddings."""

    dimensions: list[int] | None = Field(
        None,
        min_length=1,
        description="Also compute the loss of the student's embeddings truncated to these widths (Matryoshka); the "
        "term is the mean over the full width and these widths.",
    )


class _CoupledEmbeddings(Loss):
    """Base class for losses whose value depends on all embeddings of a batch."""

    config: MatryoshkaConfig

    couples_batch = True

    def __init__(self, config: MatryoshkaConfig, student: ModelInfo) -> None:
        super().__init__(config)
        width = require_head(config, student, EMBEDDING, "student").num_outputs
        require_widths(config, config.dimensions, width)


class SimilarityLoss(_CoupledEmbeddings):
    """Match the similarities of all pairs of texts in a batch to the teacher's; the widths of embeddings may differ.

    Term `similarity`, where `c_ij` is the cosine of texts i and j: with `distance: kl`, sum over texts i of
    `T^2 KL(softmax_j(c^t_ij / T) || softmax_j(c^s_ij / T))` over the other texts j, divided by the number of texts, B.
    With `mse`, sum of `(c^s_ij - c^t_ij)^2` over pairs of different rows, divided by the number of pairs, B * (B - 1).
    """

    class Config(MatryoshkaConfig):
        """Keys of a `similarity` entry."""

        distance: Literal["kl", "mse"] = Field("kl", description="Distance of the similarities.")
        temperature: float = Field(0.05, gt=0, description="Temperature T of `kl`, which divides cosines.")

    config: Config
    function = staticmethod(similarity)

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config, student)
        require_embeddings(config, teacher)
        self.zero_when_equal = config.dimensions is None  # type: ignore[misc]

    def requests(self) -> Requests:
        """Request the embeddings of both models."""
        asked = Signals.head(EMBEDDING)
        return Requests(teacher=asked, student=asked)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count texts, or pairs of texts."""
        size = batch.num_sequences
        return {"similarity": size if self.config.distance == "kl" else size * (size - 1)}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the distances, averaged over the widths."""
        assert teacher is not None
        total = similarity(
            student.outputs(EMBEDDING),
            read_teacher(teacher, self.config),
            distance=self.config.distance,
            temperature=self.config.temperature,
            dimensions=self.config.dimensions,
        )
        return {"similarity": total.sum}


class InfoNCELoss(_CoupledEmbeddings):
    """Identify each query's document among all documents of the batch (van den Oord et al. 2018); needs no teacher.

    Term `info_nce`: sum over queries i of `-log(exp(c(q_i, d_i) / T) / sum_j exp(c(q_i, d_j) / T))`, with cosines c,
    over the positive and negative documents j of all groups. The sum is divided by the number of queries. Documents
    with the same text as q_i, as d_i, or as a document that belongs to q_i in another group are left out of the sum
    over j.
    """

    class Config(MatryoshkaConfig):
        """Keys of an `info_nce` entry."""

        temperature: float = Field(0.05, gt=0, description="Temperature T, which divides cosines.")

    config: Config
    function = staticmethod(info_nce)

    zero_when_equal = False

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config, student)

    def requests(self) -> Requests:
        """Request the student's embeddings and the groups."""
        return Requests(student=Signals.head(EMBEDDING), columns=frozenset({GROUP_TEXTS}))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count queries."""
        return {"info_nce": batch.num_sequences // batch.columns[GROUP_TEXTS].shape[1]}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum over the queries, averaged over the widths."""
        width = batch.columns[GROUP_TEXTS].shape[1]
        texts = batch.columns[GROUP_TEXTS][::width]  # (n, k)
        groups = student.outputs(EMBEDDING).reshape(*texts.shape, -1)
        total = info_nce(groups, texts, temperature=self.config.temperature, dimensions=self.config.dimensions)
        return {"info_nce": total.sum}


def _without_diagonal(matrix: Tensor) -> Tensor:
    """Drop the diagonal of (B, B): (B, B - 1)."""
    size = len(matrix)
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)
