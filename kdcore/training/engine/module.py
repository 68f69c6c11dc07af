"""The trained module: the student together with the losses and their learned parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

from kdcore.errors import InputError, first_line
from kdcore.losses.base import Loss
from kdcore.models.base import Encoder
from kdcore.signals import Batch, Requests, SignalRequest, Signals


@dataclass(frozen=True)
class Term:
    """One term of one loss. `str(term)` is its name in metrics: `label`, or `label/term` where they differ."""

    label: str
    name: str

    def __str__(self) -> str:
        return self.label if self.label == self.name else f"{self.label}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Term:
        """Parse the text of a term; labels contain no slash."""
        label, slash, name = text.partition("/")
        return cls(label, name if slash else label)


class DistillationModule(nn.Module):
    """Student and losses as one module, so that the engine shards, casts and saves both."""

    def __init__(self, student: Encoder, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self._requests = {label: loss.requests() for label, loss in losses.items()}
        self.reads_classes = any(requests.student.class_logits for requests in self._requests.values())

    def labelled_losses(self) -> Iterator[tuple[str, Loss]]:
        """Yield the losses by their labels."""
        for label, loss in self.losses.items():
            assert isinstance(loss, Loss)
            yield label, loss

    def weights_at(self, fraction: float) -> dict[str, float]:
        """Return the weight of each loss that is active at a fraction of the budget, by label."""
        weights = {label: loss.config.weight_at(fraction) for label, loss in self.labelled_losses()}
        return {label: weight for label, weight in weights.items() if weight > 0}

    def requests(self, labels: Collection[str]) -> Requests:
        """Return what the losses with these labels read."""
        return union_of_requests(self._requests[label] for label in labels)

    def counts(self, batch: Batch) -> dict[Term, int]:
        """Count what each term of every loss averages over in this micro-batch, on the host, before a forward pass."""
        return {
            Term(label, name): count
            for label, loss in self.labelled_losses()
            for name, count in loss.counts(batch).items()
        }

    def sums(self, batch: Batch, teacher: Signals | None, labels: Collection[str]) -> dict[Term, Tensor]:
        """Run the student as deep as these losses read it, and sum their terms over this micro-batch."""
        return self.sums_of(self.student(batch, self.requests(labels).student), teacher, batch, labels)

    def sums_of(
        self, student: Signals, teacher: Signals | None, batch: Batch, labels: Collection[str]
    ) -> dict[Term, Tensor]:
        """Sum the terms of these losses, given the student's outputs."""
        return {
            Term(label, name): value
            for label, loss in self.labelled_losses()
            if label in labels
            for name, value in loss(student, teacher, batch).items()
        }

    def forward(self, batch: Batch, teacher: Signals | None, labels: Collection[str]) -> dict[Term, Tensor]:
        """Do the same as `sums`; called by the engine."""
        return self.sums(batch, teacher, labels)


def factors_of(counts: Mapping[Term, float], weights: Mapping[str, float]) -> dict[Term, float]:
    """Compute the factor of each active term's sum in the objective: weight / global count.

    Args:
        counts: count of each term in the whole step, over all micro-batches and processes. A term with count 0
            contributes 0.
        weights: weight of each active loss by its label.
    """
    return {
        term: weights[term.label] * (1.0 / count) if count else 0.0
        for term, count in counts.items()
        if term.label in weights
    }


class FrozenTeacher:
    """The teacher: always in eval mode, without gradients, and run only for non-empty requests."""

    def __init__(self, encoder: Encoder | None) -> None:
        """Freeze the encoder; None if no loss of the recipe ever reads a teacher."""
        self._encoder = encoder
        self._compiled = False
        if encoder is not None:
            encoder.eval().requires_grad_(False)

    def to(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on."""
        if self._encoder is not None:
            self._encoder.to(dtype)

    def compile_parts(self) -> None:
        """Compile the teacher, if there is one; repeated calls have no effect."""
        if self._encoder is not None and not self._compiled:
            self._encoder.compile_parts()
            self._compiled = True

    @torch.no_grad()
    def __call__(self, batch: Batch, request: SignalRequest) -> Signals | None:
        """Run the teacher on a micro-batch; None, without running it, if nothing is requested."""
        if not request:
            return None
        assert self._encoder is not None
        signals: Signals = self._encoder(batch, request)
        return signals


def compile_models(module: DistillationModule, teacher: FrozenTeacher, batch: Batch) -> None:
    """Compile student and teacher, and run them on a small batch, so that failures appear before training starts.

    Losses are not run, because they may have state.

    Raises:
        InputError: a model cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    requests = module.requests([label for label, _ in module.labelled_losses()])
    module.student.compile_parts()
    teacher.compile_parts()
    try:
        with torch.random.fork_rng():
            teacher(batch, requests.teacher)
            module.student(batch, requests.student)
    except (TorchDynamoException, RuntimeError) as error:  # uncompiled, the same batch has worked
        raise InputError(
            f"torch cannot compile the models: {first_line(error)}", key="compile", hint="remove training.compile"
        ) from error


def union_of_requests(requests: Iterable[Requests]) -> Requests:
    """Return the union of several requests."""
    return reduce(or_, requests, Requests())


def find_losses_by_parameter(
    module: DistillationModule, batch: Batch, teacher: FrozenTeacher
) -> dict[str, frozenset[str]]:
    """Find the losses that reach each parameter, by one backward pass of each loss over a small batch.

    Buffers, which a loss may change in its forward pass, and random states are restored.

    Returns:
        Parameter name -> labels of the losses that reach it; empty if none does.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    found: dict[str, set[str]] = {name: set() for name, _ in module.named_parameters()}
    with torch.random.fork_rng():
        for label, _ in module.labelled_losses():
            answers = teacher(batch, module.requests([label]).teacher)
            sums = [value for value in module.sums(batch, answers, [label]).values() if value.requires_grad]
            if sums:
                torch.autograd.backward(sums)
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    found[name].add(label)
            module.zero_grad(set_to_none=True)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return {name: frozenset(labels) for name, labels in found.items()}
