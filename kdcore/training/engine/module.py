"""The trained module: the student together with the losses and their learned parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.errors import InputError, PluginError, first_line
from kdcore.faults import plugin_faults
from kdcore.losses.base import Loss
from kdcore.models.base import Encoder
from kdcore.optimizers.base import ParameterRole
from kdcore.recipe.schema import TEACHER
from kdcore.signals import Batch, SignalRequest, Signals
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.runtime.distributed import fork_random_states

if TYPE_CHECKING:
    from kdcore.training.engine.gradient_caching import CachedGradients


@dataclass(frozen=True)
class Term:
    """One term of one loss. `str(term)` is its name in metrics: `label`, or `label/term` if they differ."""

    label: str
    name: str

    def __str__(self) -> str:
        return self.label if self.label == self.name else f"{self.label}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Term:
        """Parse the text of a term; labels contain no slash."""
        label, slash, name = text.partition("/")
        return cls(label, name if slash else label)


CACHED = Term("", "cached gradients")
"""The term that backpropagates a micro-batch's cached gradients of coupled losses; its factor in the objective is 1."""


@dataclass(frozen=True)
class ModelRequests:
    """The union of the requests of several losses.

    Attributes:
        student: request to the student.
        teachers: request to each teacher by its label, including composites; no request is empty.
    """

    student: SignalRequest
    teachers: dict[str, SignalRequest]


class DistillationModule(nn.Module):
    """Student and losses as one module, so that the engine shards, casts and saves both."""

    def __init__(self, student: Encoder, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self._requests: dict[str, ModelRequests] = {}
        for label, loss in losses.items():
            with plugin_faults(loss, f"losses.{label}"):
                self._requests[label] = union_of_requests([loss])
        self.coupled = frozenset(label for label, loss in losses.items() if loss.couples_batch)
        self._terms: dict[str, set[str]] = {}

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Return the role of each parameter by its name, for optimizers."""
        tables = {id(one) for part in self.modules() if isinstance(part, nn.Embedding) for one in part.parameters()}
        heads = {f"student.{name}" for name in self.student.head_parameters()}

        def role(name: str, parameter: Tensor) -> ParameterRole:
            if name.startswith("losses."):
                return "loss"
            if id(parameter) in tables:
                return "embedding"
            return "head" if name in heads else "matrix" if parameter.ndim >= 2 else "vector"

        return {name: role(name, parameter) for name, parameter in self.named_parameters()}

    def labelled_losses(self) -> Iterator[tuple[str, Loss]]:
        """Yield the losses by their labels."""
        for label, loss in self.losses.items():
            assert isinstance(loss, Loss)
            yield label, loss

    def weights_at(self, fraction: float) -> dict[str, float]:
        """Return the weight of each loss that is active at this fraction of the budget, by label."""
        weights = {label: loss.config.weight_at(fraction) for label, loss in self.labelled_losses()}
        return {label: weight for label, weight in weights.items() if weight > 0}

    def requests(self, labels: Collection[str]) -> ModelRequests:
        """Return the requests of the losses with these labels."""
        return _union(self._requests[label] for label in labels)

    def reads_head(self, name: str) -> bool:
        """Return whether any loss reads this head of the student."""
        return any(name in requests.student.heads for requests in self._requests.values())

    def counts(self, batch: Batch) -> dict[Term, int]:
        """Count the items that each loss term averages over in this micro-batch, on the host, before a forward pass."""
        counts: dict[Term, int] = {}
        for label, loss in self.labelled_losses():
            with plugin_faults(loss, f"losses.{label}"):
                found = loss.counts(batch)
                self._terms[label] = set(found)
                counts |= {Term(label, name): count for name, count in found.items()}
        return counts

    def sums(self, batch: Batch, teachers: Mapping[str, Signals], labels: Collection[str]) -> dict[Term, Tensor]:
        """Run the student up to the deepest block that these losses read; sum their terms over this micro-batch."""
        with plugin_faults(self.student, "student"):
            signals = self.student(batch, self.requests(labels).student)
        return self.sums_of(signals, teachers, batch, labels)

    def sums_of(
        self, student: Signals, teachers: Mapping[str, Signals], batch: Batch, labels: Collection[str]
    ) -> dict[Term, Tensor]:
        """Sum the terms of these losses, given the outputs of the student and of each teacher by its label."""
        sums: dict[Term, Tensor] = {}
        for label, loss in self.labelled_losses():
            if label in labels:
                with plugin_faults(loss, f"losses.{label}"):
                    values: dict[str, Tensor] = loss(student, teachers.get(teacher_of(loss)), batch)
                    self._check_terms(label, values)
                sums |= {Term(label, name): value for name, value in values.items()}
        return sums

    def _check_terms(self, label: str, values: Mapping[str, Tensor]) -> None:
        """Reject sums that do not match the counts of the loss.

        Raises:
            PluginError: they do not match; the message names the terms, or the shape of one sum.
        """
        expected = self._terms.get(label, set(values))
        if set(values) != expected:
            found, wanted = (", ".join(sorted(names)) or "none" for names in (values, expected))
            what = f"`forward` of the loss returns other terms than `counts` (found {found}, expected {wanted})"
            raise PluginError(what, key=f"losses.{label}")
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.ndim:
                shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                what = f"`forward` of the loss must return scalar tensors (found {shape} for the term {name})"
                raise PluginError(what, key=f"losses.{label}")

    def constant_sums(
        self, batch: Batch, teachers: Mapping[str, Signals], labels: Collection[str]
    ) -> dict[str, dict[str, Tensor]]:
        """Return the sums that each of these losses needs to compute its best constant prediction, by label."""
        return {
            label: loss.constant_sums(teachers.get(teacher_of(loss)), batch)
            for label, loss in self.labelled_losses()
            if label in labels
        }

    def constant_baselines(self, sums: Mapping[str, Mapping[str, Tensor]]) -> dict[Term, float]:
        """Return the value of each term for the best constant prediction, given sums over all samples."""
        return {
            Term(label, name): value
            for label, loss in self.labelled_losses()
            if sums.get(label)
            for name, value in loss.constant_baseline(sums[label]).items()
        }

    def forward(
        self,
        batch: Batch,
        teachers: Mapping[str, Signals],
        labels: Collection[str],
        cached: CachedGradients | None = None,
    ) -> dict[Term, Tensor]:
        """Return the result of `sums`; called by the engine.

        With cached gradients of coupled losses, which are not among `labels`, the student uses the random numbers of
        its first forward pass on this micro-batch, and the term `CACHED` backpropagates the gradients.
        """
        if cached is None:
            return self.sums(batch, teachers, labels)
        with cached.random_state.repeated(), plugin_faults(self.student, "student"):
            student = self.student(batch, self.requests(labels).student | cached.request)
        return {**self.sums_of(student, teachers, batch, labels), CACHED: cached.term(student, self)}


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


def compile_models(module: DistillationModule, teachers: FrozenTeachers, batch: Batch) -> None:
    """Compile student and teacher, and run them on a small batch, so that failures surface before training starts.

    Losses are not run, because they may have state.

    Raises:
        InputError: a model cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    requests = module.requests([label for label, _ in module.labelled_losses()])
    module.student.compile_parts()
    teachers.compile_parts()
    try:
        with fork_random_states(batch.input_ids.device):
            teachers(batch, requests.teachers)
            module.student(batch, requests.student)
    except (TorchDynamoException, RuntimeError, PluginError) as error:  # the same batch worked without compilation
        raise InputError(
            f"torch cannot compile the models: {first_line(error)}", key="compile", hint="remove training.compile"
        ) from error


def teacher_of(loss: Loss) -> str:
    """Return the label of the teacher that a loss reads, if it reads one."""
    return loss.config.teacher or TEACHER


def union_of_requests(losses: Iterable[Loss]) -> ModelRequests:
    """Return the union of what losses request."""
    requests = [(teacher_of(loss), loss.requests()) for loss in losses]
    return _union(ModelRequests(one.student, {label: one.teacher} if one.teacher else {}) for label, one in requests)


def _union(requests: Iterable[ModelRequests]) -> ModelRequests:
    student, teachers = SignalRequest(), dict[str, SignalRequest]()
    for one in requests:
        student |= one.student
        for label, request in one.teachers.items():
            teachers[label] = teachers.get(label, SignalRequest()) | request
    return ModelRequests(student, teachers)


def find_losses_by_parameter(
    module: DistillationModule, batch: Batch, teachers: FrozenTeachers
) -> dict[str, frozenset[str]]:
    """Find the losses that reach each parameter, by one backward pass of each loss over a small batch.

    Buffers, which a loss may change in its forward pass, and random states are restored.

    Returns:
        Parameter name -> labels of the losses that reach it; empty if no loss reaches it.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    found: dict[str, set[str]] = {name: set() for name, _ in module.named_parameters()}
    with fork_random_states(batch.input_ids.device):
        for label, loss in module.labelled_losses():
            answers = teachers(batch, module.requests([label]).teachers)
            sums = [value for value in module.sums(batch, answers, [label]).values() if value.requires_grad]
            if sums:
                with plugin_faults(loss, f"losses.{label}"):
                    torch.autograd.backward(sums)
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    found[name].add(label)
            module.zero_grad(set_to_none=True)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return {name: frozenset(labels) for name, labels in found.items()}
