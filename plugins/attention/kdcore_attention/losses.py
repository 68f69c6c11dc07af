"""Define losses on attention scores and value relations of models with equal numbers of heads."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    LayerPairs,
    Lengths,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    ScoreMaps,
    Signals,
    Total,
    require_equal_heads,
    require_teacher,
    resolve_block_pairs,
)

Attention = ScoreMaps | tuple[Tensor, Tensor]
"""Query and key of one block, (B, A, L, d_k) each; losses pass the maps that a model's mask and scale define."""


def attention_kl(student: Attention, teacher: Attention, lengths: Lengths | None = None) -> Total:
    """Sum `KL(softmax(S_t) || softmax(S_s))`, `S = q k^T / sqrt(d_k)`, over heads and real queries, and count summands.

    Args:
        student: (query, key) of one block, each (B, A, L, d_k).
        teacher: like `student`, with the same A.
        lengths: (B,) number of real tokens of each sequence; None if all are real.

    Raises:
        ValueError: the shapes or the lengths do not match.
    """
    own, theirs = _maps(student, lengths), _maps(teacher, lengths)
    return Total(own.kl_from(theirs), own.num_rows)


def attention_mse(student: Attention, teacher: Attention, lengths: Lengths | None = None) -> Total:
    """Sum `(S_s - S_t)^2` over heads and pairs of real tokens, and count summands; see `attention_kl` for arguments."""
    own, theirs = _maps(student, lengths), _maps(teacher, lengths)
    return Total(own.squared_error_from(theirs), own.num_entries)


def value_relation_kl(
    student: ScoreMaps | Tensor, teacher: ScoreMaps | Tensor, lengths: Lengths | None = None
) -> Total:
    """Sum `KL(softmax(R_t) || softmax(R_s))`, `R = v v^T / sqrt(d_k)`, over heads and real tokens, and count summands.

    Args:
        student: values (B, A, L, d_k) of one block.
        teacher: like `student`, with the same A and any d_k.
        lengths: (B,) number of real tokens of each sequence; None if all are real.

    Raises:
        ValueError: the shapes or the lengths do not match.
    """
    own, theirs = (
        side if isinstance(side, ScoreMaps) else ScoreMaps.from_tensors(side, None, lengths)
        for side in (student, teacher)
    )
    return Total(own.kl_from(theirs), own.num_rows)


def _maps(side: Attention, lengths: Lengths | None) -> ScoreMaps:
    return side if isinstance(side, ScoreMaps) else ScoreMaps.from_tensors(*side, lengths)


class HeadwiseLoss(Loss):
    """Base class for losses of one term that compare equally numbered heads of both models in pairs of blocks."""

    class Config(LossConfig):
        """Keys of an entry."""

        layers: LayerPairs = Field("last", description="Pairs of teacher and student blocks.")

    config: Config
    term: ClassVar[str]
    parts: ClassVar[tuple[Literal["query", "key", "value"], ...]]

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.num_heads = require_equal_heads(config, teacher, student)
        self.pairs = resolve_block_pairs(config.layers, teacher.num_layers, student.num_layers)

    def requests(self) -> Requests:
        """Request the projections that the scores are computed from, in the paired blocks."""
        theirs, own = zip(*self.pairs, strict=True)
        return Requests(teacher=Signals.attention(self.parts, theirs), student=Signals.attention(self.parts, own))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return A * N: every head of every real query."""
        return {self.term: self.num_heads * batch.num_tokens}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sum over heads, queries and pairs of blocks."""
        assert teacher is not None
        sums = [self.distance(student, own, teacher, theirs) for theirs, own in self.pairs]
        return {self.term: torch.stack(sums).sum()}

    @abstractmethod
    def distance(self, student: Signals, own: int, teacher: Signals, theirs: int) -> Tensor:
        """Return the sum for one pair of blocks."""


class AttentionKL(HeadwiseLoss):
    """Divergence between attention distributions (MobileBERT, section 3.3; MiniLM, section 3.1).

    Term `attention_kl`: sum over pairs of blocks, heads and real queries of `KL(softmax(S_t) || softmax(S_s))` where
    `S = q k^T / sqrt(d_k)` uses the scale, mask and bias of the block. The sum is divided by A * N, the number of heads
    times the number of real tokens.
    """

    term = "attention_kl"
    function = staticmethod(attention_kl)
    parts = ("query", "key")

    def distance(self, student: Signals, own: int, teacher: Signals, theirs: int) -> Tensor:
        """Return the divergence of one pair of blocks."""
        return attention_kl(ScoreMaps.attention(student, own), ScoreMaps.attention(teacher, theirs)).sum


class AttentionMSE(HeadwiseLoss):
    """Squared difference between attention scores before the softmax (TinyBERT, section 3.1).

    Term `attention_mse`: sum over pairs of blocks, heads and pairs of real tokens of `(S_s - S_t)^2`. The sum is
    divided by A * sum_b len_b^2, the number of heads times the number of pairs. Pairs of tokens outside of a block's
    window have no score and contribute 0.
    """

    term = "attention_mse"
    function = staticmethod(attention_mse)
    parts = ("query", "key")

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return A * sum_b len_b^2: every head of every pair of real tokens."""
        return {self.term: self.num_heads * int(np.square(batch.lengths, dtype=np.int64).sum())}

    def distance(self, student: Signals, own: int, teacher: Signals, theirs: int) -> Tensor:
        """Return the squared difference of one pair of blocks."""
        return attention_mse(ScoreMaps.attention(student, own), ScoreMaps.attention(teacher, theirs)).sum


class ValueRelationKL(HeadwiseLoss):
    """Divergence between relations of values (MiniLM, section 3.2).

    Term `value_relation_kl`: sum over pairs of blocks, heads and real tokens of `KL(softmax(R_t) || softmax(R_s))` with
    `R = v v^T / sqrt(d_k)`. Each model has its own d_k, so widths may differ. The sum is divided by A * N, the number
    of heads times the number of real tokens. With `unit: aligned`, values are first averaged over units, relations are
    between units, and the sum is divided by A times the number of units. Losses on attention do not have this key,
    because attention distributes probability over tokens.
    """

    class Config(HeadwiseLoss.Config):
        """Keys of a `value_relation_kl` entry."""

        unit: Literal["token", "aligned"] = Field(
            "token",
            description="Relations between the values of all real tokens, or, for models with different tokenizers, "
            "between averages over the spans of text between common token boundaries (`aligned`).",
        )

    config: Config

    term = "value_relation_kl"
    function = staticmethod(value_relation_kl)
    parts = ("value",)

    @property
    def compares_tokens(self) -> bool:
        """Whether `unit` is `token`."""
        return self.config.unit == "token"

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return A * N: every head of every real token; A * U for units."""
        rows = batch.num_tokens if self.config.unit == "token" else batch.num_units
        return {self.term: self.num_heads * rows}

    def distance(self, student: Signals, own: int, teacher: Signals, theirs: int) -> Tensor:
        """Return the divergence of one pair of blocks."""
        relations = ScoreMaps.relations(student, "value", own, unit=self.config.unit)
        return value_relation_kl(relations, ScoreMaps.relations(teacher, "value", theirs, unit=self.config.unit)).sum
