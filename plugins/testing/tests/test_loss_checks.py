"""The conformance check catches wrong losses, each by the requirement that it violates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import check_loss, compute_loss
from torch import Tensor, nn

from kdcore import Batch, Loss, LossConfig, ModelInfo, Requests, Signals, at_least_float32


class Scaled(Loss):
    """Squared difference of scaled states, weighted by a number for every token; correct."""

    def __init__(self, config: LossConfig, teacher: ModelInfo, student: ModelInfo) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(student.hidden_size))

    def requests(self) -> Requests:
        return Requests(Signals.hidden([0]), Signals.hidden([0]), frozenset({"weights"}))

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"scaled": batch.num_tokens}

    def scaled(self, states: Tensor) -> Tensor:
        return at_least_float32(states) * at_least_float32(self.scale)

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        distances = (self.scaled(student.tokens(0)) - at_least_float32(teacher.tokens(0))).square().sum(-1)
        return {"scaled": (batch.token_column("weights") * distances).sum()}


class ConstantCount(Scaled):
    def counts(self, batch: Batch) -> dict[str, int]:
        return {"scaled": 7}


class MeanOfTheBatch(Scaled):
    def counts(self, batch: Batch) -> dict[str, int]:
        return {"scaled": batch.num_sequences}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        return {"scaled": super().forward(student, teacher, batch)["scaled"] / batch.num_tokens}


class ReadsIds(Scaled):
    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        return {"scaled": super().forward(student, teacher, batch)["scaled"] + 0 * batch.columns["sample_ids"].sum()}


class HalfPrecision(Scaled):
    def scaled(self, states: Tensor) -> Tensor:
        return at_least_float32(states * self.scale)


class PaddingRead(Scaled):
    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        factor = batch.columns["weights"].shape[1] / 4
        return {"scaled": factor * super().forward(student, teacher, batch)["scaled"]}


class ParameterOfParts(Scaled):
    """The gradient of the parameter, but not of the states, depends on how a batch is split."""

    def scaled(self, states: Tensor) -> Tensor:
        ones = self.scale / self.scale.detach()
        return super().scaled(states) * ones ** (len(states) - 1)


def columns(size: int, length: int) -> dict[str, Any]:
    weights = np.random.default_rng(2).random((size, length)) + 0.5
    return {"weights": weights, "sample_ids": np.arange(size)}


def test_a_column_for_tokens_passes() -> None:
    check_loss(Scaled, columns=columns)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (ConstantCount, "the count of `scaled` is 7 for a batch, but 14 for its two parts"),
        (MeanOfTheBatch, "splitting a batch changes `scaled`"),
        (ReadsIds, "reads the column 'sample_ids', which it does not request"),
        (HalfPrecision, "instead of float32 on the same numbers changes `scaled`"),
        (PaddingRead, "further padding changes `scaled`"),
        (ParameterOfParts, "splitting changes the gradient of the loss's parameter `scale`"),
    ],
)
def test_a_wrong_loss_is_named(loss: type[Loss], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_loss(loss, columns=columns)


def test_a_column_that_is_not_given_is_named() -> None:
    with pytest.raises(AssertionError, match="requests the column `weights`: pass `columns`"):
        check_loss(Scaled)


def test_a_value_is_computed_with_columns_of_the_loss() -> None:
    generator = np.random.default_rng(4)
    student, teacher = generator.standard_normal((2, 3, 5, 8))
    mask, weights = np.arange(5) < np.array([5, 2, 4])[:, None], generator.random((3, 5))
    signals = {"student": {"hidden": [student]}, "teacher": {"hidden": [teacher]}, "attention_mask": mask}
    value = compute_loss(Scaled, columns={"weights": weights}, **signals)
    expected = (weights * ((student - teacher) ** 2).sum(-1))[mask].mean()
    assert value["scaled"] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(AssertionError, match="the loss requests the column `weights`: pass it in `columns`"):
        compute_loss(Scaled, **signals)
