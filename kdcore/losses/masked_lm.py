"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore.layers import at_least_float32
from kdcore.losses.base import Loss, LossConfig
from kdcore.objectives import Total, require_shapes
from kdcore.signals import Batch, ModelInfo, Requests, Signals


def masked_lm(logits: Tensor, labels: Tensor) -> Total:
    """Sum the cross-entropy of the true tokens, and count the tokens with a label.

    Args:
        logits: (..., V).
        labels: (...) int64; -100 where no token is predicted.

    Raises:
        ValueError: the shapes do not match.
    """
    expects = "labels as logits without the last axis"
    require_shapes(labels.shape == logits.shape[:-1], expects, logits=logits, labels=labels)
    rows, expected = at_least_float32(logits).flatten(0, -2), labels.flatten()
    return Total(cross_entropy(rows, expected, reduction="sum"), (expected != -100).sum())


class MaskedLMLoss(Loss):
    """Cross-entropy of the true token at masked positions (Devlin et al. 2019, section 3.1).

    Term `masked_lm`: sum of `-log softmax(z_s)[label]`, divided by the number of masked positions.
    """

    function = staticmethod(masked_lm)
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
        return {"masked_lm": masked_lm(student.logits("masked"), batch.masked_labels).sum}

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Count the tokens to be predicted (V,), and all others (V,) except the first and last of each sequence."""
        starts = torch.arange(batch.num_sequences) * batch.input_ids.shape[1]
        ends = starts + torch.from_numpy(batch.lengths) - 1
        others = torch.zeros(batch.input_ids.numel(), dtype=torch.bool, device=batch.input_ids.device)
        others[batch.token_index] = True
        for excluded in (batch.masked_index, starts.to(others.device), ends.to(others.device)):
            others[excluded] = False
        known = torch.where(others, batch.input_ids.flatten(), self.vocab_size)
        counts = torch.bincount(known, minlength=self.vocab_size + 1)[: self.vocab_size]
        tokens = torch.bincount(batch.masked_labels, minlength=self.vocab_size)
        return {"tokens": tokens.double(), "others": counts.double()}

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the cross-entropy for token frequencies estimated from the tokens that are not to be predicted.

        Frequencies estimated from only a few predicted tokens would fit these tokens better than any model can. The
        frequencies are smoothed by absolute discounting (Ney, Essen and Kneser 1994).
        """
        tokens, others = sums["tokens"], sums["others"]
        if not tokens.sum() or not others.sum():
            return {}
        once, twice = float((others == 1).sum()), float((others == 2).sum())
        discount = (once + 1) / (once + 2 * twice + 2)
        spread = discount * float((others > 0).sum()) / self.vocab_size
        frequencies = ((others - discount).clamp(min=0) + spread) / others.sum()
        return {"masked_lm": float(-(tokens * frequencies.log()).sum() / tokens.sum())}
