"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore.layers import at_least_float32
from kdcore.losses.base import Loss, LossConfig
from kdcore.signals import Batch, ModelInfo, Requests, Signals


class MaskedLMLoss(Loss):
    """Cross-entropy of the true token at masked positions (Devlin et al. 2019, section 3.1).

    Term `masked_lm`: sum of `-log softmax(z_s)[label]`, counted in masked positions.
    """

    zero_when_equal = False

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        self.vocab_size = student.vocab_size

    def requests(self) -> Requests:
        """The student's predictions at masked positions."""
        return Requests(student=Signals.predictions("masked"))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Masked positions."""
        return {"masked_lm": batch.num_masked}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Summed cross-entropy."""
        logits = at_least_float32(student.logits("masked"))
        return {"masked_lm": cross_entropy(logits, batch.masked_labels, reduction="sum")}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Count the predicted tokens (V,)."""
        return {"tokens": torch.bincount(batch.masked_labels, minlength=self.vocab_size).double()}

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the entropy of the predicted tokens' frequencies."""
        total = sums["tokens"].sum()
        return {"masked_lm": float(torch.special.entr(sums["tokens"] / total).sum())} if total else {}
