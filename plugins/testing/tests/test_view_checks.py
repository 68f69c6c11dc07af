"""Losses for teachers with another tokenizer: `check_loss` finds those that read tokens without declaring it."""

from __future__ import annotations

from typing import Any

import pytest
from kdcore_testing import check_loss
from torch import Tensor

from kdcore import Batch, Loss, LossConfig, ModelInfo, Requests, Signals

LOSSES: dict[str, dict[str, Any]] = {
    "hidden_mse": {"unit": "aligned"},
    "hidden_cosine": {"unit": "aligned"},
    "hidden_mse_concat": {"unit": "aligned", "layers": "last"},
    "minilm_v2": {"unit": "aligned"},
    "value_relation_kl": {"unit": "aligned"},
    "hidden_mse_cls": {},
    "hidden_pkd": {},
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_units_and_sequences_pass(name: str) -> None:
    check_loss(name, LOSSES[name], large=False)


class Denying(Loss):
    """A mean squared error of tokens that claims not to compare them."""

    compares_tokens = False

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)

    def requests(self) -> Requests:
        return Requests(teacher=Signals.hidden([0]), student=Signals.hidden([0]))

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"denying": batch.num_tokens}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        difference = student.tokens(0).double() - teacher.tokens(0).double()
        return {"denying": difference.square().sum()}


class Aligned(Denying):
    """The same for units."""

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"denying": batch.num_units}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        return {"denying": (student.units(0).double() - teacher.units(0).double()).square().sum()}


def test_a_loss_that_reads_tokens_although_it_denies_it_is_found() -> None:
    with pytest.raises(AssertionError, match="`compares_tokens` is False, but the loss fails for a teacher with diff"):
        check_loss(Denying, large=False)
    check_loss(Aligned, large=False)
