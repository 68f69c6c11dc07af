"""The loss `classification`: cross-entropy or squared error of labels of whole sequences."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore import Batch, InputError, Loss, LossConfig, ModelInfo, Requests, Signals, at_least_float32, require_head


class ClassificationLoss(Loss):
    """Cross-entropy of the true class (Devlin et al. 2019, section 4.1), or squared error where labels are numbers.

    Term `classification`: sum over sequences of `-log softmax(z_s)[label]`, or of `(z_s - label)^2` where the student's
    head gives a number, counted in sequences.
    """

    zero_when_equal = False

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        self.head = require_head(config, student, "sequence_classes", "student")

    def requests(self) -> Requests:
        """Request the student's outputs for whole sequences, and their labels."""
        return Requests(student=Signals.head(self.head.name), columns=frozenset({"labels"}))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count sequences.

        Raises:
            InputError: the batch has no labels.
        """
        if "labels" not in batch.columns:
            raise InputError(
                f"`{self.config.name}` needs the column `labels`, which the data does not have",
                key=f"losses.{self.config.label}",
                hint="use a task that gives it, such as sequence_classification",
            )
        return {"classification": batch.num_sequences}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum cross-entropy or squared error over the sequences."""
        logits, labels = at_least_float32(student.outputs(self.head.name)), batch.columns["labels"]
        if self.head.num_outputs > 1:
            return {"classification": cross_entropy(logits, labels, reduction="sum")}
        return {"classification": (logits.squeeze(-1) - labels.to(logits.dtype)).square().sum()}
