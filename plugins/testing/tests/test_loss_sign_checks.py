"""`check_loss` passes a correct loss and names the fault of a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kdcore_testing import check_loss
from torch import Tensor, nn

from kdcore import (
    Batch,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    at_least_float32,
    resolve_pairs,
)
from kdcore import Loss as BaseLoss


class Right(BaseLoss):
    """Squared distance of a mapped state from the teacher's, as it should be; the others below are not."""

    class Config(LossConfig):
        """There are no further keys."""

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        assert teacher is not None
        self.pairs = resolve_pairs("last", teacher.num_layers, student.num_layers)
        self.map = nn.Parameter(torch.eye(teacher.hidden_size, student.hidden_size))

    def requests(self) -> Requests:
        """Request the last states of both."""
        return Requests(teacher=Signals.hidden(self.pairs.teacher), student=Signals.hidden(self.pairs.student))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of tokens."""
        return {"x": batch.num_tokens}

    def states(self, student: Signals, teacher: Signals | None) -> tuple[Tensor, Tensor]:
        """Return mapped states of the student, and states of the teacher: (N, d) each."""
        assert teacher is not None
        own = at_least_float32(student.tokens(self.pairs.student[0]))
        mapped = own @ at_least_float32(self.map).to(own.dtype).T
        return mapped, at_least_float32(teacher.tokens(self.pairs.teacher[0]))

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of squared distances."""
        own, theirs = self.states(student, teacher)
        return {"x": (own - theirs).square().sum()}


class MapsTeacher(Right):
    """Maps the teacher's states to the student's."""

    def states(self, student: Signals, teacher: Signals | None) -> tuple[Tensor, Tensor]:
        assert teacher is not None
        theirs = at_least_float32(teacher.tokens(self.pairs.teacher[0]))
        own = at_least_float32(student.tokens(self.pairs.student[0]))
        return own, theirs @ at_least_float32(self.map).to(theirs.dtype)


class BatchMean(Right):
    """Averages over each batch, and declares this as coupling."""

    couples_batch = True

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"x": 1}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        own, theirs = self.states(student, teacher)
        return {"x": (own - theirs).square().mean()}


class Correlation(Right):
    """Couples sequences by definition: correlation over the batch; right."""

    couples_batch = True

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"x": 1}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        own, theirs = (one - one.mean(0) for one in self.states(student, teacher))
        return {"x": 1 - (own * theirs).sum() / (own.norm() * theirs.norm()).clamp(min=1e-12)}


class NegativeDistance(Right):
    """Drives states apart; `zero_when_equal` is False, so that its zero is not compared."""

    zero_when_equal = False

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        return {"x": -super().forward(student, teacher, batch)["x"]}


class NegativeCosine(BaseLoss):
    """Has no parameters, and its wrong sign has a lower bound."""

    zero_when_equal = False
    Config = Right.Config

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        assert teacher is not None
        self.pairs = resolve_pairs("last", teacher.num_layers, student.num_layers)

    requests = Right.requests
    counts = Right.counts

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        own, theirs = student.tokens(self.pairs.student[0]), teacher.tokens(self.pairs.teacher[0])
        cosines = nn.functional.cosine_similarity(at_least_float32(own), at_least_float32(theirs), dim=-1)
        return {"x": cosines.sum()}


class NegativeLikelihood(BaseLoss):
    """Reads no teacher, and its sign is wrong."""

    zero_when_equal = False
    Config = Right.Config

    def __init__(self, config: LossConfig, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)

    def requests(self) -> Requests:
        return Requests(student=Signals.predictions("masked"))

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"x": batch.num_masked}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        logits = at_least_float32(student.logits("masked"))
        return {"x": -nn.functional.cross_entropy(logits, batch.masked_labels, reduction="sum")}


@pytest.mark.parametrize("loss", [Right, Correlation])
def test_a_right_loss_passes(loss: Any) -> None:
    check_loss(loss, large=False)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (MapsTeacher, r"a parameter of the loss acts on the teacher's signals alone \(in mm\)"),
        (BatchMean, r"`couples_batch` is True, but the gradient of a sequence does not depend on the others"),
        (NegativeDistance, r"the sign is wrong: along its gradient the loss falls"),
        (NegativeCosine, r"the sign is wrong: the loss between different models is"),
        (NegativeLikelihood, r"the sign is wrong: along its gradient the loss falls"),
    ],
)
def test_a_wrong_loss_is_caught_by_name(loss: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_loss(loss, large=False)
