"""Compute embeddings from the last hidden states of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from kdcore import at_least_float32

ACTIVATIONS = ("Identity", "Tanh", "GELU", "ReLU", "Sigmoid", "SiLU", "LeakyReLU", "ELU")
"""Activation functions of a Dense module: names of classes of `torch.nn` that have no parameters."""


class Dense(nn.Module):
    """A linear map and an activation function.

    Args:
        inputs: width of the inputs.
        outputs: width of the outputs.
        bias: whether the linear map has a bias.
        activation: name of the class in `torch.nn`.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, activation: str = "Identity") -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = getattr(nn, activation)()

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs), in the precision of `states`."""
        bias = self.linear.bias
        mapped = linear(states, self.linear.weight.to(states.dtype), None if bias is None else bias.to(states.dtype))
        activated: Tensor = self.activation(mapped)
        return activated


class Normalize(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, states: Tensor) -> Tensor:
        """Scale each row of (B, C)."""
        return normalize(states, dim=-1)


class Truncate(nn.Module):
    """Keep the first components of vectors.

    Args:
        dimension: number of components.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, states: Tensor) -> Tensor:
        """Keep the first columns of (B, C)."""
        return states[:, : self.dimension]


class SentenceModules(nn.Module):
    """Pooling and the layers after it, as described by a sentence-transformers folder.

    Args:
        modes: pooling modes, whose results are concatenated.
        dimension: C, the width of embeddings.
        layers: modules that map (B, width) to (B, C).
    """

    def __init__(self, modes: Sequence[str], dimension: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.modes = tuple(modes)
        self.dimension = dimension
        self.layers = nn.Sequential(*layers)

    def forward(self, states: Tensor, lengths: np.ndarray) -> Tensor:
        """Compute embeddings (B, C), at least in float32, from states (N, d) of the real tokens and lengths (B,)."""
        states = at_least_float32(states)
        counts = torch.from_numpy(lengths).to(states.device)
        pooled = torch.cat([pool(states, counts, mode) for mode in self.modes], dim=-1)
        embeddings: Tensor = self.layers(pooled)
        return embeddings


def pool(states: Tensor, lengths: Tensor, mode: str) -> Tensor:
    """Pool the states (N, d) of real tokens, one sequence after another, to (B, d).

    Args:
        states: the states.
        lengths: (B,) number of tokens of each sequence, on the device of the states.
        mode: pooling mode of sentence-transformers.
    """
    ends = lengths.cumsum(0)
    if mode == "cls":
        return states[ends - lengths]
    if mode == "lasttoken":
        return states[ends - 1]
    if mode == "max":
        return torch.segment_reduce(states, "max", lengths=lengths)
    if mode == "weightedmean":
        starts = torch.repeat_interleave(ends - lengths, lengths, output_size=len(states))
        weights = (torch.arange(len(states), device=states.device) - starts + 1).to(states.dtype)[:, None]
        totals = torch.segment_reduce(states * weights, "sum", lengths=lengths)
        return totals / torch.segment_reduce(weights, "sum", lengths=lengths)
    means = torch.segment_reduce(states, "mean", lengths=lengths)
    return means if mode == "mean" else means * lengths[:, None].to(means.dtype).sqrt()
