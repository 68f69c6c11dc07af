"""Define the results of `kdcore.functional`, check tensors, and select real tokens by lengths.

Shapes are known on the host, so checking them never waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Lengths = Tensor | np.ndarray | Sequence[int]
"""Number of real tokens of each sequence (B,), each 0 to L."""

_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class Total:
    """The value of an objective, summed over a number of items.

    Sums and counts can be added across batches. Their quotient does not depend on how samples are split.

    Attributes:
        sum: the objective summed over all items; a scalar of at least float32, with a gradient.
        count: number of items; a tensor if it is known only on the device.
    """

    sum: Tensor
    count: int | Tensor

    @property
    def mean(self) -> Tensor:
        """The objective per item; NaN without items."""
        return self.sum / self.count

    def __add__(self, other: Total) -> Total:
        """Add sums and counts, such as those of two micro-batches."""
        return Total(self.sum + other.sum, self.count + other.count)


def require_shapes(fit: bool, expected: str, **tensors: Tensor | None) -> None:
    """Reject tensors with mismatched shapes, which broadcasting could combine in unintended ways.

    Args:
        fit: whether the shapes match.
        expected: the expected shapes, for the message.
        tensors: all tensors involved, by name; values of None are ignored.

    Raises:
        ValueError: they do not match; the message lists the shapes.
    """
    if not fit:
        found = ", ".join(f"{name} {tuple(one.shape)}" for name, one in tensors.items() if one is not None)
        raise ValueError(f"the shapes of tensors do not match (found {found}, expected {expected})")


def require_problem_type(problem_type: str | None) -> None:
    """Reject a problem type that transformers does not support.

    Raises:
        ValueError: it is unknown; the message lists the allowed values.
    """
    if problem_type not in (None, *_PROBLEM_TYPES):
        raise ValueError(f"unknown problem_type (found {problem_type!r}, expected {', '.join(_PROBLEM_TYPES)})")


def real_lengths(lengths: Lengths, sequences: int, longest: int) -> Tensor:
    """Return lengths (B,) as a tensor, without moving them to another device.

    Raises:
        ValueError: the number of lengths is not `sequences`, or a length is not between 0 and `longest` (checked only
            on the host).
    """
    lengths = torch.as_tensor(lengths)
    require_shapes(lengths.shape == (sequences,), f"({sequences},)", lengths=lengths)
    if lengths.device.type == "cpu" and ((lengths < 0) | (lengths > longest)).any():
        raise ValueError(f"length out of range (found {lengths.tolist()}, expected 0 to {longest} tokens)")
    return lengths


def real_rows(states: Tensor, lengths: Lengths | None) -> Tensor:
    """Return the rows (N, d) of real tokens in order.

    Args:
        states: (B, L, d) with padding at the end of sequences; or, without `lengths`, rows (..., d) of real tokens
            only.
        lengths: (B,) number of real tokens of each sequence.

    Raises:
        ValueError: the lengths do not match the states.
    """
    return _rows(lengths, states)[0]


def paired_rows(student: Tensor, teacher: Tensor, lengths: Lengths | None = None) -> tuple[Tensor, Tensor]:
    """Return the rows (N, d) of real tokens of both models; the teacher's rows are constants without a gradient.

    The arguments are the same as for `real_rows`.

    Raises:
        ValueError: the shapes of student and teacher differ, or the lengths do not match them.
    """
    require_shapes(student.shape == teacher.shape, "equal shapes", student=student, teacher=teacher)
    own, theirs = _rows(lengths, student, teacher.detach())
    return own, theirs


def _rows(lengths: Lengths | None, *models: Tensor) -> list[Tensor]:
    states = models[0]
    if lengths is None:
        return [one.reshape(-1, one.shape[-1]) for one in models]
    require_shapes(states.ndim == 3, "(B, L, d) with lengths", states=states)
    lengths = real_lengths(lengths, *states.shape[:2])
    real = torch.arange(states.shape[1], device=states.device) < lengths.to(states.device)[:, None]
    positions = real.nonzero(as_tuple=True)  # once for all models: it waits for the device
    return [one[positions] for one in models]
