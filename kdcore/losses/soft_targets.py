"""Distil predictions over the vocabulary, or class predictions of sequences or tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from kdcore.errors import InputError
from kdcore.layers import at_least_float32
from kdcore.losses.base import Loss, LossConfig, require_equal_outputs, require_teacher
from kdcore.objectives import Lengths, Total, paired_rows, require_problem_type
from kdcore.signals import SEQUENCE_CLASSES, Batch, ModelInfo, Requests, Signals

_SLICE_ELEMENTS = 2**24
"""Number of logits per slice: 64 MB in float32, whereas the logits of a whole batch can take gigabytes."""


def soft_targets(
    student: Tensor,
    teacher: Tensor,
    lengths: Lengths | None = None,
    *,
    temperature: float = 1.0,
    problem_type: str | None = None,
) -> Total:
    """Sum `T^2 KL(softmax(z_t / T) || softmax(z_s / T))` over rows, and count the rows (Hinton et al. 2015).

    Args:
        student: logits (..., C), or (B, L, C) with `lengths`.
        teacher: like `student`.
        lengths: (B,) number of real tokens of each sequence; if omitted, all rows are compared.
        temperature: T.
        problem_type: `regression` for `(z_s - z_t)^2`; `multi_label_classification` for the divergence of the `sigmoid`
            of each output, averaged over the outputs. Outputs of `regression` may have shape (B,).

    Raises:
        ValueError: the shapes or the lengths do not match, or `problem_type` is unknown.
    """
    require_problem_type(problem_type)
    if problem_type == "regression":
        student, teacher = (side[:, None] if side.ndim == 1 else side for side in (student, teacher))
    own, theirs = paired_rows(student, teacher, lengths)
    if problem_type == "regression":
        return Total((at_least_float32(own) - at_least_float32(theirs)).square().sum(), len(own))
    if problem_type == "multi_label_classification":
        return Total(_binary_divergence(own, theirs, temperature).mean(-1).sum(), len(own))
    return Total(_SlicedDivergence.apply(own, theirs, temperature), len(own))  # type: ignore[no-untyped-call]


class SoftTargetsLoss(Loss):
    """Kullback-Leibler divergence of predictions, softened by a temperature (Hinton et al. 2015).

    Term `soft_targets`: sum over scored positions of `T^2 KL(softmax(z_t / T) || softmax(z_s / T))`, divided by the
    number of scored positions. The factor T^2 preserves the scale of the gradient when T changes. For regression heads
    the term is `(z_s - z_t)^2`, independent of T; for multi-label heads, it is the divergence of each label's
    `sigmoid`, averaged over the labels.
    """

    class Config(LossConfig):
        """Keys of a `soft_targets` entry."""

        temperature: float = Field(1.0, gt=0, description="Temperature T, which divides the logits of both models.")
        positions: Literal["masked", "all", "classes"] = Field(
            "masked",
            description="Predictions to compare: over the vocabulary, at `masked` tokens or at `all` real tokens; or "
            "over the `classes` of whole sequences, from the head `sequence_classes`.",
        )
        head: str | None = Field(
            None, description="Head, such as `token_classes`, whose outputs at every position are compared instead."
        )
        column: str | None = Field(
            None,
            description="Column of the task, such as `word_starts`, that selects the tokens to compare; requires a "
            "`head` for tokens. Default: all real tokens.",
        )

    config: Config
    function = staticmethod(soft_targets)

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        name = config.head or (SEQUENCE_CLASSES if config.positions == "classes" else None)
        self.head = None if name is None else require_equal_outputs(config, teacher, student, name)
        if config.column is not None and (self.head is None or self.head.level != "token"):
            raise InputError("`column` selects tokens, so it requires a `head` for tokens", key="column")
        if self.head is None and teacher.vocab_size != student.vocab_size:
            raise InputError(
                f"`{config.name}` requires equal vocabulary sizes, but the teacher has {teacher.vocab_size} tokens and "
                f"the student {student.vocab_size}",
                hint="set the student's vocab_size to the teacher's, or use losses on hidden states or attention",
            )

    def requests(self) -> Requests:
        """Request predictions of both models at the scored positions."""
        positions = self.config.positions
        if self.head is not None:
            asked = Signals.head(self.head.name)
        else:
            assert positions != "classes"
            asked = Signals.predictions(positions)
        columns = frozenset() if self.config.column is None else frozenset({self.config.column})
        return Requests(teacher=asked, student=asked, columns=columns)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count scored positions.

        Raises:
            InputError: the column that selects tokens is not boolean.
        """
        if self.config.column is not None:
            chosen = batch.token_column(self.config.column)
            if chosen.dtype != torch.bool:
                what = f"the column `{self.config.column}` does not select tokens (found {chosen.dtype}, expected bool)"
                raise InputError(what, key=f"losses.{self.config.label}.column")
            return {"soft_targets": int(chosen.sum())}
        if self.head is not None:
            return {"soft_targets": batch.num_sequences if self.head.level == "sequence" else batch.num_tokens}
        return {"soft_targets": batch.num_masked if self.config.positions == "masked" else batch.num_tokens}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the divergence."""
        assert teacher is not None
        own, theirs = self._read(student), self._read(teacher)
        if self.config.column is not None:  # equal outputs at the other tokens have no divergence and no gradient
            chosen = batch.token_column(self.config.column).unsqueeze(-1)
            own, theirs = own * chosen, theirs * chosen
        total = soft_targets(own, theirs, temperature=self.config.temperature, problem_type=self._kind)
        return {"soft_targets": total.sum}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum the teacher's probabilities, or its regression outputs, over each half of the sequences (2, C).

        Also count the rows in each half (2,), and sum the entropies (for regression, the squares) over both halves.
        """
        assert teacher is not None
        theirs, halves = self._read(teacher), self._halves(batch)
        if self.config.column is not None:
            chosen = batch.token_column(self.config.column)
            theirs, halves = theirs[chosen], halves[chosen]
        sums = {
            "rows": torch.bincount(halves, minlength=2).double(),
            "outputs": theirs.new_zeros((2, theirs.shape[-1]), dtype=torch.float64),
            "within": theirs.new_zeros((), dtype=torch.float64),
        }
        for rows in _row_slices(theirs):
            part = theirs[rows].double()
            if self._kind != "regression":
                part = part / self.config.temperature
                part = part.sigmoid() if self._kind == "multi_label_classification" else part.softmax(-1)
            sums["outputs"].index_add_(0, halves[rows], part)
            sums["within"] += self._spread(part).sum()
        return sums

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the divergence (or squared error) of the teacher's predictions from their mean over other sequences.

        The mean over only a few positions would fit the same positions better than any model can. Therefore each half
        of the sequences is compared with the mean over the other half.
        """
        rows, outputs = sums["rows"][:, None], sums["outputs"]
        if not rows.all():
            return {}
        means = (outputs / rows).flip(0)
        if self._kind == "regression":
            apart = sums["within"] + (rows * means.square() - 2 * outputs * means).sum()
        elif self._kind == "multi_label_classification":
            cross = outputs * _log(means) + (rows - outputs) * _log(1 - means)
            apart = -cross.mean(-1).sum() - sums["within"]
        else:
            apart = -(outputs * _log(means)).sum() - sums["within"]
        factor = 1.0 if self._kind == "regression" else self.config.temperature**2
        return {"soft_targets": factor * float(apart / rows.sum())}

    def _halves(self, batch: Batch) -> Tensor:
        """Return the half of the sequences, 0 or 1, to which each scored position belongs."""
        numbers = np.arange(batch.num_sequences) if batch.samples is None else batch.samples
        halves = torch.from_numpy(numbers % 2).to(batch.input_ids.device)
        if self.head is not None and self.head.level == "sequence":
            return halves
        masked = self.head is None and self.config.positions == "masked"
        positions = batch.masked_index if masked else batch.token_index
        return halves[positions // batch.input_ids.shape[1]]

    def _spread(self, outputs: Tensor) -> Tensor:
        """Return the entropy of each row of probabilities, or the sum of squares of regression outputs."""
        if self._kind == "regression":
            return outputs.square().sum(-1)
        entropy: Tensor = torch.special.entr(outputs)
        if self._kind != "multi_label_classification":
            return entropy.sum(-1)
        entropy += torch.special.entr(1 - outputs)
        return entropy.mean(-1)

    @property
    def _kind(self) -> str | None:
        return None if self.head is None else self.head.problem_type

    def _read(self, signals: Signals) -> Tensor:
        """Return the compared outputs of a model, one row for each scored position."""
        if self.head is not None:
            return signals.outputs(self.head.name)
        assert self.config.positions != "classes"
        return signals.logits(self.config.positions)


def _binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(sigmoid(z_t / T) || sigmoid(z_s / T))` of each output (B, C)."""
    own, theirs = (_softened(side, temperature) for side in (student, teacher))
    yes = theirs.sigmoid()
    divergence = yes * (logsigmoid(theirs) - logsigmoid(own)) + (1 - yes) * (logsigmoid(-theirs) - logsigmoid(-own))
    return divergence * temperature**2


class _SlicedDivergence(torch.autograd.Function):
    """Compute `sum T^2 KL(softmax(z_t / T) || softmax(z_s / T))` over all rows, one slice of rows at a time.

    Logits are by far the largest tensors of a step. Autograd would keep several float32 copies of them. The gradient,
    `T (softmax(z_s / T) - softmax(z_t / T))`, can be computed from the logits alone.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        total = torch.zeros((), dtype=torch.promote_types(student.dtype, torch.float32), device=student.device)
        for rows in _row_slices(student):
            own, theirs = (_softened(side[rows], temperature) for side in (student, teacher))
            # softmax is several times faster than the exponential of log_softmax.
            total += theirs.log_softmax(-1).sub_(own.log_softmax(-1)).mul_(theirs.softmax(-1)).sum()
        return total * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for rows in _row_slices(student):
            own, theirs = (_softened(side[rows], ctx.temperature) for side in (student, teacher))
            gradient[rows] = own.softmax(-1).sub_(theirs.softmax(-1)).mul_(ctx.temperature * factor)
        return gradient, None, None


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-12).log()


def _softened(logits: Tensor, temperature: float) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1 else logits / temperature


def _row_slices(logits: Tensor) -> Iterator[slice]:
    rows, vocab_size = logits.shape
    size = max(1, _SLICE_ELEMENTS // vocab_size)
    for start in range(0, rows, size):
        yield slice(start, start + size)
