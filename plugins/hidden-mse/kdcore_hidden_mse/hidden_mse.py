"""Define the mean squared error between hidden states, of all real tokens or of first tokens."""

from __future__ import annotations

from torch import Tensor

from kdcore import Lengths, Total, at_least_float32, paired_rows
from kdcore_hidden_mse.pairwise import FirstTokenLoss, PairwiseHiddenLoss, TokenLoss


def hidden_mse(student: Tensor, teacher: Tensor, lengths: Lengths | None = None) -> Total:
    """Sum `|h_s - h_t|^2` over real tokens, and count the components of their states.

    Args:
        student: (B, L, d) states of one block with `lengths`, or rows (..., d) that are all compared.
        teacher: like `student`, with equal shapes.
        lengths: (B,) number of real tokens of each sequence.

    Raises:
        ValueError: the shapes or the lengths do not match.
    """
    own, theirs = (at_least_float32(rows) for rows in paired_rows(student, teacher, lengths))
    return Total((own - theirs).square().sum(), own.numel())


def hidden_mse_cls(student: Tensor, teacher: Tensor) -> Total:
    """Sum `|h_s - h_t|^2` over the first tokens' states (B, d) of both models; the count is B * d."""
    return hidden_mse(student, teacher)


class _SquaredDistance(PairwiseHiddenLoss):
    def count(self, rows: int) -> int:
        """Return the number of components of all rows."""
        return rows * self.width

    def constant_distance(self, rows: float, total: Tensor, squares: Tensor) -> Tensor:
        """Return the squared distances of the rows from their mean."""
        return squares - total.square().sum(-1) / rows


class HiddenMSE(_SquaredDistance, TokenLoss):
    """Mean squared error between student and teacher hidden states (How to Distill your BERT, section 3; TinyBERT).

    Term `hidden_mse`: sum over pairs (t, s) of blocks of `|P h_s - h_t|^2` over real tokens, divided by the number of
    real tokens times d_t. P is a learned linear map if the widths differ, otherwise the identity. With `unit: aligned`,
    units replace tokens.
    """

    term = "hidden_mse"
    function = staticmethod(hidden_mse)


class HiddenMSECLS(_SquaredDistance, FirstTokenLoss):
    """Mean squared error on the first token of each sequence only (How to Distill your BERT, section 3).

    Term `hidden_mse_cls`: sum over pairs (t, s) of blocks of `|P h_s - h_t|^2` at position 0, divided by the number of
    sequences, B, times d_t.
    """

    term = "hidden_mse_cls"
    function = staticmethod(hidden_mse_cls)
