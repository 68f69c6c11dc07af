"""What is trained: the student together with the losses and their learned parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcore.losses.base import Loss
from kdcore.models.base import Encoder
from kdcore.signals import Batch, Requests, SignalRequest, Signals


@dataclass(frozen=True)
class Term:
    """One term of one loss. `str(term)` is its name in metrics: `label`, or `label/term` where they differ."""

    label: str
    name: str
    weight: float

    def __str__(self) -> str:
        return self.label if self.label == self.name else f"{self.label}/{self.name}"


class DistillationModule(nn.Module):
    """Student and losses as one module, so that the engine shards, casts and saves both."""

    def __init__(self, student: Encoder, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self.requests = union_of_requests(losses.values())

    def labelled_losses(self) -> Iterator[tuple[str, Loss]]:
        """The losses by their labels."""
        for label, loss in self.losses.items():
            assert isinstance(loss, Loss)
            yield label, loss

    def counts(self, batch: Batch) -> dict[Term, int]:
        """What each term averages over in this micro-batch; on the host, before any forward pass."""
        return {
            Term(label, name, loss.config.weight): count
            for label, loss in self.labelled_losses()
            for name, count in loss.counts(batch).items()
        }

    def sums(self, batch: Batch, teacher: Signals | None) -> dict[Term, Tensor]:
        """Run the student and sum every term over this micro-batch."""
        student = self.student(batch, self.requests.student)
        return {
            Term(label, name, loss.config.weight): value
            for label, loss in self.labelled_losses()
            for name, value in loss(student, teacher, batch).items()
        }

    def forward(
        self, batch: Batch, teacher: Signals | None, factors: Mapping[Term, float]
    ) -> tuple[Tensor, dict[Term, Tensor]]:
        """The micro-batch's share of the objective, and the detached sum of each term.

        Args:
            batch: the micro-batch.
            teacher: the teacher's answers, None if nothing was asked of it.
            factors: what each sum is multiplied with: weight / global count.
        """
        sums = self.sums(batch, teacher)
        total = torch.stack([value * factors[term] for term, value in sums.items()]).sum()
        return total, {term: value.detach() for term, value in sums.items()}


class FrozenTeacher:
    """The teacher: always in eval mode, never with gradients, and run only when something is asked of it."""

    def __init__(self, encoder: Encoder, request: SignalRequest) -> None:
        encoder.requires_grad_(False)
        self._encoder = encoder.eval()
        self._request = request

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Signals:
        """The teacher's answers for a micro-batch."""
        signals: Signals = self._encoder(batch, self._request)
        return signals


def union_of_requests(losses: Iterable[Loss]) -> Requests:
    """Everything that any of the losses reads."""
    union = Requests()
    for loss in losses:
        union |= loss.requests()
    return union


def find_reached(module: DistillationModule, batch: Batch, teacher: Signals | None) -> set[str]:
    """Names of the parameters that the losses reach, found by one backward pass over a small batch.

    Buffers, which a loss may move in its forward pass, and random states are put back.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng():
        torch.autograd.backward(list(module.sums(batch, teacher).values()))
    reached = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    module.zero_grad(set_to_none=True)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return reached
