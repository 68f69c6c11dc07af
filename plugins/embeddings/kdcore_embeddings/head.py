"""The head `embedding` of students."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kdcore import Head, ModelInfo, at_least_float32
from kdcore_embeddings.sentence_modules import Dense, Normalize

EMBEDDING = "embedding"


@dataclass(frozen=True)
class EmbeddingHead(Head):
    """One vector per text: pooled states, a linear map if the widths differ, and scaling to length 1.

    Attributes:
        normalize: whether vectors are scaled to length 1.
    """

    normalize: bool = False

    def module(self, info: ModelInfo) -> nn.Module:
        """Return a new module from pooled states (B, d) to embeddings (B, C)."""
        return StudentEmbedding(info.hidden_size, self.num_outputs, normalize=self.normalize)


class StudentEmbedding(nn.Module):
    """Map pooled states to embeddings.

    Args:
        hidden_size: width of the states.
        dimension: width of the embeddings.
        normalize: whether they are scaled to length 1.
    """

    def __init__(self, hidden_size: int, dimension: int, *, normalize: bool) -> None:
        super().__init__()
        self.dense = None if hidden_size == dimension else Dense(hidden_size, dimension)
        self.normalize = Normalize() if normalize else None

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, hidden_size) to (B, dimension) of at least float32."""
        states = at_least_float32(states)
        if self.dense is not None:
            states = self.dense(states)
        return states if self.normalize is None else self.normalize(states)


def embedding_head(dimension: int, pooling: str, *, normalize: bool) -> EmbeddingHead:
    """Return the head for a width and a pooling (`mean` or `cls`), with or without scaling to length 1."""
    return EmbeddingHead(
        EMBEDDING,
        level="sequence",
        num_outputs=dimension,
        problem_type="regression",
        pooling="mean" if pooling == "mean" else "first",
        normalize=normalize,
    )
