"""Define a loss on relations of queries, keys and values, for any numbers of heads and widths."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from kdcore import (
    AttentionPart,
    Batch,
    ComponentConfig,
    InputError,
    LayerPairs,
    Lengths,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    ScoreMaps,
    Signals,
    Total,
    require_teacher,
    resolve_block_pairs,
)

RelationWeight = Annotated[float, Field(ge=0)]


class RelationWeights(ComponentConfig):
    """Weights of the relations; 0 disables a relation."""

    query: RelationWeight = Field(1.0, description="Weight of the relations between queries.")
    key: RelationWeight = Field(1.0, description="Weight of the relations between keys.")
    value: RelationWeight = Field(1.0, description="Weight of the relations between values.")


def minilm_v2(
    student: ScoreMaps | Tensor,
    teacher: ScoreMaps | Tensor,
    lengths: Lengths | None = None,
    *,
    relation_heads: int | None = None,
) -> Total:
    """Sum `KL(softmax(x_t x_t^T / sqrt(d_r)) || softmax(x_s x_s^T / sqrt(d_r)))` over relation heads and real tokens.

    The count is the number of heads times the number of real tokens. MiniLMv2 adds the means for queries, keys and
    values.

    Args:
        student: x_s (B, A, L, d_k): queries, keys or values of one block.
        teacher: x_t, like `student`; A and d_k may differ.
        lengths: (B,) number of real tokens of each sequence; None if all are real.
        relation_heads: R, which divides both widths A * d_k; default: the teacher's A.

    Raises:
        ValueError: the shapes, the lengths or `relation_heads` do not match.
    """
    if not isinstance(teacher, ScoreMaps):
        relation_heads = teacher.shape[1] if relation_heads is None else relation_heads
        teacher = ScoreMaps.from_tensors(teacher, None, lengths, num_heads=relation_heads)
    if not isinstance(student, ScoreMaps):
        student = ScoreMaps.from_tensors(student, None, lengths, num_heads=relation_heads)
    return Total(student.kl_from(teacher), student.num_rows)


class MiniLMv2(Loss):
    """Divergence between relations of queries, keys and values (MiniLMv2, section 3).

    The heads of a block are merged and split again into R relation heads of width d_r, so that teacher and student may
    differ in width and in heads. Terms `query`, `key` and `value`: weight times the sum over pairs of blocks, relation
    heads and real tokens of `KL(softmax(x_t x_t^T / sqrt(d_r)) || softmax(x_s x_s^T / sqrt(d_r)))`, each model with its
    own d_r. Each sum is divided by R times the number of real tokens. With `unit: aligned`, queries, keys and values
    are first averaged over units, and relations are between units, which then replace tokens in the divisor.
    """

    class Config(LossConfig):
        """Keys of a `minilm_v2` entry."""

        layers: LayerPairs = Field("last", description="Pairs of teacher and student blocks.")
        relation_heads: PositiveInt | None = Field(
            None, description="Number of relation heads; must divide both widths. Default: as in the teacher."
        )
        relations: RelationWeights = Field(
            default_factory=RelationWeights, description="Weights of the relations between queries, keys and values."
        )
        unit: Literal["token", "aligned"] = Field(
            "token",
            description="Relations between the vectors of all real tokens, or, for models with different tokenizers, "
            "between averages over the spans of text between common token boundaries (`aligned`).",
        )

    config: Config
    function = staticmethod(minilm_v2)

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        weights = config.relations
        parts: dict[AttentionPart, float] = {"query": weights.query, "key": weights.key, "value": weights.value}
        self.weights = {part: weight for part, weight in parts.items() if weight > 0}
        if not self.weights:
            raise InputError(
                f"all relations of `{config.name}` have weight 0",
                key="relations",
                hint="set a positive weight for at least one of query, key and value",
            )
        self.relation_heads = _relation_heads(config, teacher, student)
        self.pairs = resolve_block_pairs(config.layers, teacher.num_layers, student.num_layers)

    @property
    def compares_tokens(self) -> bool:
        """Whether `unit` is `token`."""
        return self.config.unit == "token"

    def requests(self) -> Requests:
        """Request the projections with a positive weight, in the paired blocks."""
        theirs, own = zip(*self.pairs, strict=True)
        return Requests(teacher=Signals.attention(self.weights, theirs), student=Signals.attention(self.weights, own))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return R * N for each relation, or R * U for units."""
        rows = batch.num_tokens if self.config.unit == "token" else batch.num_units
        return {part: self.relation_heads * rows for part in self.weights}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of each relation over heads, tokens and pairs of blocks."""
        assert teacher is not None
        return {part: weight * self._divergence(part, student, teacher) for part, weight in self.weights.items()}

    def _divergence(self, part: AttentionPart, student: Signals, teacher: Signals) -> Tensor:
        def relations(signals: Signals, block: int) -> ScoreMaps:
            return ScoreMaps.relations(signals, part, block, self.relation_heads, unit=self.config.unit)

        sums = [minilm_v2(relations(student, own), relations(teacher, theirs)).sum for theirs, own in self.pairs]
        return torch.stack(sums).sum()


def _relation_heads(config: MiniLMv2.Config, teacher: ModelInfo, student: ModelInfo) -> int:
    heads = config.relation_heads or teacher.num_heads
    widths = {"teacher": teacher.num_heads * teacher.head_size, "student": student.num_heads * student.head_size}
    for whose, width in widths.items():
        if width % heads:
            common = math.gcd(*widths.values())
            origin = "" if config.relation_heads else ", the teacher's number of heads,"
            raise InputError(
                f"{heads} relation heads{origin} do not divide the {whose}'s width of {width}",
                key="relation_heads",
                allowed=[str(divisor) for divisor in range(1, common + 1) if common % divisor == 0],
            )
    return heads
