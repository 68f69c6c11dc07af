"""Define losses on the directions of hidden states, independent of their norms."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from kdcore import LayerPairs
from kdcore_hidden_mse.pairwise import FirstTokenLoss, PairwiseHiddenLoss, TokenLoss, squared_distance_of_directions


class DirectionLoss(PairwiseHiddenLoss):
    """A distance that depends on the directions of states only."""

    def compared(self, states: Tensor) -> Tensor:
        """Return the directions of states (rows, d_t)."""
        return normalize(states, dim=-1)

    def count(self, rows: int) -> int:
        """Return the number of rows."""
        return rows


class HiddenCosine(DirectionLoss, TokenLoss):
    """Cosine distance between student and teacher hidden states (DistilBERT, section 3).

    Term `hidden_cosine`: sum over pairs (t, s) of blocks of `1 - cos(P h_s, h_t)` over real tokens, counted in N;
    with `unit: aligned`, over units, counted in U.
    """

    term = "hidden_cosine"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum of cosine distances."""
        return squared_distance_of_directions(student, teacher) / 2

    def constant_distance(self, rows: float, total: Tensor, squares: Tensor) -> Tensor:
        """Return the cosine distances of the rows from their mean direction."""
        norms: Tensor = torch.linalg.vector_norm(total, dim=-1)
        return rows - norms


class HiddenPKD(DirectionLoss, FirstTokenLoss):
    """Distance between normalised hidden states of the first token (Patient KD, section 3.2).

    Term `hidden_pkd`: sum over pairs (t, s) of blocks of `|P h_s/|P h_s| - h_t/|h_t||^2` at position 0, counted in B.
    """

    class Config(FirstTokenLoss.Config):
        """Keys of a `hidden_pkd` entry."""

        layers: LayerPairs = Field("skip", description="Pairs of teacher and student blocks.")

    term = "hidden_pkd"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum of squared distances of directions."""
        return squared_distance_of_directions(student, teacher)

    def constant_distance(self, rows: float, total: Tensor, squares: Tensor) -> Tensor:
        """Return the squared distances of the rows' directions from their mean direction."""
        norms: Tensor = torch.linalg.vector_norm(total, dim=-1)
        return 2 * (rows - norms)
