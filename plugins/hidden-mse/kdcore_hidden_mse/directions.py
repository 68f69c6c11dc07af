"""Define losses on the directions of hidden states, independent of their norms."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from kdcore import LayerPairs, Lengths, Total, at_least_float32, paired_rows
from kdcore_hidden_mse.pairwise import FirstTokenLoss, PairwiseHiddenLoss, TokenLoss


def hidden_cosine(student: Tensor, teacher: Tensor, lengths: Lengths | None = None) -> Total:
    """Sum `1 - cos(h_s, h_t)` over real tokens, and count the tokens.

    Args:
        student: (B, L, d) states of one block with `lengths`, or rows (..., d) that are all compared.
        teacher: like `student`, with equal shapes.
        lengths: (B,) number of real tokens of each sequence.

    Raises:
        ValueError: the shapes or the lengths do not match.
    """
    own, theirs = (at_least_float32(rows) for rows in paired_rows(student, teacher, lengths))
    return Total(_squared_distance(own, theirs) / 2, len(own))


def hidden_pkd(student: Tensor, teacher: Tensor) -> Total:
    """Sum `|h_s/|h_s| - h_t/|h_t||^2` over the first tokens' states (B, d) of both models; the count is B."""
    own, theirs = (at_least_float32(rows) for rows in paired_rows(student, teacher))
    return Total(_squared_distance(own, theirs), len(own))


def _squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Sum `|a/|a| - b/|b||^2` over rows, which is `2 - 2 cos(a, b)` and exactly 0 for equal rows."""
    return (normalize(one, dim=-1) - normalize(other, dim=-1)).square().sum()


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

    Term `hidden_cosine`: sum over pairs (t, s) of blocks of `1 - cos(P h_s, h_t)` over real tokens, divided by the
    number of real tokens. With `unit: aligned`, units replace tokens.
    """

    term = "hidden_cosine"
    function = staticmethod(hidden_cosine)

    def constant_distance(self, rows: float, total: Tensor, squares: Tensor) -> Tensor:
        """Return the cosine distances of the rows from their mean direction."""
        norms: Tensor = torch.linalg.vector_norm(total, dim=-1)
        return rows - norms


class HiddenPKD(DirectionLoss, FirstTokenLoss):
    """Distance between normalised hidden states of the first token (Patient KD, section 3.2).

    Term `hidden_pkd`: sum over pairs (t, s) of blocks of `|P h_s/|P h_s| - h_t/|h_t||^2` at position 0, divided by the
    number of sequences, B.
    """

    class Config(FirstTokenLoss.Config):
        """Keys of a `hidden_pkd` entry."""

        layers: LayerPairs = Field("skip", description="Pairs of teacher and student blocks.")

    term = "hidden_pkd"
    function = staticmethod(hidden_pkd)

    def constant_distance(self, rows: float, total: Tensor, squares: Tensor) -> Tensor:
        """Return the squared distances of the rows' directions from their mean direction."""
        norms: Tensor = torch.linalg.vector_norm(total, dim=-1)
        return 2 * (rows - norms)
