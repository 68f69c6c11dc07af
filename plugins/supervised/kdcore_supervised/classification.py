"""The loss `classification`: cross-entropy or squared error of the labels of sequences or tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from kdcore import (
    Batch,
    InputError,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    Total,
    at_least_float32,
    require_problem_type,
    require_shapes,
)
from kdcore_supervised.tags import IGNORED


def classification(logits: Tensor, labels: Tensor, *, problem_type: str = "single_label_classification") -> Total:
    """Sum the cross-entropy of true classes, and count the rows with a label.

    Args:
        logits: (..., C); (..., 1) or (B,) for `regression`.
        labels: (...) or (..., 1) int64, -100 for rows without a label, or numbers; (..., C) with values 0 and 1 for
            multiple labels.
        problem_type: `multi_label_classification` for the mean over labels of the binary cross-entropy of `sigmoid`;
            `regression` for the squared error of one output.

    Raises:
        ValueError: the shapes do not match, or `problem_type` is unknown.
    """
    require_problem_type(problem_type)
    several, number = problem_type == "multi_label_classification", problem_type == "regression"
    if number and logits.ndim == 1:
        logits = logits[:, None]
    single = logits.shape[:-1]
    fit = labels.shape == logits.shape if several else labels.shape in (single, (*single, 1))
    wanted = "equal shapes" if several else f"logits {(*single, 1 if number else 'C')}, labels {tuple(single)}"
    require_shapes(fit and (not number or logits.shape[-1] == 1), wanted, logits=logits, labels=labels)
    rows, expected = at_least_float32(logits).flatten(0, -2), labels.flatten()
    if several:
        value = binary_cross_entropy_with_logits(rows, labels.reshape(rows.shape).to(rows.dtype), reduction="sum")
        return Total(value / rows.shape[-1], len(rows))
    if number:
        return Total((rows.squeeze(-1) - expected.to(rows.dtype)).square().sum(), len(rows))
    value = cross_entropy(rows, expected, reduction="sum", ignore_index=IGNORED)
    return Total(value, (expected != IGNORED).sum())


class ClassificationLoss(Loss):
    """Cross-entropy of the true class (Devlin et al. 2019, section 4.1), or squared error if labels are numbers.

    It reads the student's head `sequence_classes`, or `token_classes` if the student has no such head. Term
    `classification`:

    - sequences: sum of `-log softmax(z_s)[label]`, or of `(z_s - label)^2` if the head outputs a number, divided by the
      number of sequences;
    - sequences with several labels: sum of the mean over labels of the binary cross-entropy of `sigmoid(z_s)`, divided
      by the number of sequences;
    - tokens: sum of `-log softmax(z_s)[label]` over the tokens with a label, divided by the number of these tokens.
    """

    function = staticmethod(classification)
    zero_when_equal = False

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        head = student.head("sequence_classes") or student.head("token_classes")
        if head is None:
            raise InputError(
                f"`{config.name}` requires the head `sequence_classes`, which the student does not have",
                allowed=[one.name for one in student.heads] or None,
                hint="use a task with labels, such as sequence_classification or token_classification, and a model "
                "that supports it",
            )
        self.head = head

    def requests(self) -> Requests:
        """Request the student's outputs and their labels."""
        return Requests(student=Signals.head(self.head.name), columns=frozenset({"labels"}))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count sequences, or tokens with a label.

        Raises:
            InputError: the batch has no labels.
        """
        if "labels" not in batch.columns:
            raise InputError(
                f"`{self.config.name}` needs the column `labels`, which the data does not have",
                key=f"losses.{self.config.label}",
                hint="use a task that provides it, such as sequence_classification",
            )
        if self.head.level == "token":
            return {"classification": int((batch.token_column("labels") != IGNORED).sum())}
        return {"classification": batch.num_sequences}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum cross-entropy or squared error."""
        logits = student.outputs(self.head.name)
        if self.head.level == "token":
            return {"classification": classification(logits, batch.token_column("labels")).sum}
        several = self.head.problem_type == "multi_label_classification"
        single = "single_label_classification" if self.head.num_outputs > 1 else "regression"
        kind = "multi_label_classification" if several else single
        return {"classification": classification(logits, batch.columns["labels"], problem_type=kind).sum}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Count the labels of each class (C,) and the rows; for numbers, return their sum and sum of squares."""
        labels = batch.token_column("labels") if self.head.level == "token" else batch.columns["labels"]
        if self.head.level == "token":
            labels = labels[labels != IGNORED]
        if self.head.problem_type == "regression":
            values = labels.double()
            counted = torch.stack([values.sum(), values.square().sum()])
        elif labels.ndim == 2:
            counted = labels.double().sum(0)
        else:
            counted = one_hot(labels, self.head.num_outputs).double().sum(0)
        return {"labels": counted, "rows": torch.tensor(len(labels), dtype=torch.float64)}

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the entropy of the class frequencies, or the variance of numbers."""
        rows = float(sums["rows"])
        if not rows:
            return {}
        mean = sums["labels"] / rows
        if self.head.problem_type == "regression":
            return {"classification": float(mean[1] - mean[0].square())}
        if self.head.problem_type == "multi_label_classification":
            return {"classification": float((torch.special.entr(mean) + torch.special.entr(1 - mean)).mean())}
        return {"classification": float(torch.special.entr(mean).sum())}
