"""Run one or several frozen teachers, and combine the outputs of composite ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdcore.errors import RecipeError
from kdcore.faults import plugin_faults
from kdcore.layers import at_least_float32
from kdcore.models.base import Encoder
from kdcore.recipe.schema import TEACHER
from kdcore.signals import MASKED_LM, SEQUENCE_CLASSES, Batch, Block, Head, ModelInfo, Positions, SignalRequest, Signals

Combination = Literal["average", "concat"]


class CompositeTeacher:
    """The average or the concatenation of several teachers, described before they are loaded.

    - `average`: hidden states are averaged element by element. Predictions over the vocabulary or over classes are
      averaged as probabilities at temperature 1 (with several labels per text, the probability of each label is
      averaged); losses read the logits of the averages. The outputs of regression heads are averaged. The outputs of
      other heads cannot be averaged.
    - `concat`: hidden states of the same block are concatenated along their width, in the order of the members.

    Attributes:
        combination: how the members are combined.
        members: their labels.
        info: description of the composite for losses.
    """

    def __init__(self, combination: Combination, members: Mapping[str, ModelInfo]) -> None:
        """Describe the composite.

        Raises:
            RecipeError: members of an average have different classes, or the same classes in a different order.
        """
        self.combination = combination
        self.members = tuple(members)
        self._infos = dict(members)
        infos = list(members.values())
        first = infos[0]
        averages = combination == "average"
        names = set.intersection(*({head.name for head in info.heads} for info in infos)) if averages else set()
        heads = []
        for head in first.heads:
            if head.name in names:
                if head.name != MASKED_LM:
                    self._require_equal("problem types", partial(_problem_type, name=head.name))
                    self._require_equal("classes", partial(_outputs_of, name=head.name, infos=infos))
                labels = next((labels for info in infos if (labels := _labels(info, head.name))), ())
                heads.append(replace(head, labels=labels))
        self.info = ModelInfo(
            architecture=f"{combination} of {', '.join(info.architecture for info in infos)}",
            num_layers=min(info.num_layers for info in infos),
            hidden_size=first.hidden_size if averages else sum(info.hidden_size for info in infos),
            num_heads=first.num_heads if averages else sum(info.num_heads for info in infos),
            head_size=first.head_size,
            vocab_size=first.vocab_size,
            max_length=min(info.max_length for info in infos),
            heads=heads,
        )

    def check(self, request: SignalRequest) -> None:
        """Reject signals that cannot be combined.

        Raises:
            RecipeError: a signal cannot be combined; the message names it.
        """
        if request.attention_parts:
            raise RecipeError(
                f"queries, keys and values of several teachers cannot be combined by `{self.combination}`",
                hint="select one of the teachers for losses on attention",
            )
        if request.hidden_blocks:
            self._require_equal("numbers of blocks", lambda info: info.num_layers)
            if self.combination == "average":
                self._require_equal("hidden sizes", lambda info: info.hidden_size)
        if self.combination == "concat" and (request.prediction_positions or request.heads):
            raise RecipeError("predictions of several teachers cannot be concatenated", hint="use `average`")
        for name in request.heads:
            head = self.info.head(name)
            if head is not None and _average_of(head) is None:
                raise RecipeError(f"outputs of the head `{name}` cannot be averaged", hint="name one of the teachers")
        if request.factored_positions:
            raise RecipeError("predictions of several teachers cannot be factored", hint="use a loss that reads logits")
        if request.prediction_positions:
            self._require_equal("vocabulary sizes", lambda info: info.vocab_size)

    def combine(self, batch: Batch, members: Sequence[Signals]) -> Signals:
        """Return the signals of the composite, given the signals of its members in order."""
        return _CompositeSignals(batch, self.combination, members, self.info)

    def _require_equal(self, what: str, value: Callable[[ModelInfo], object]) -> None:
        found = {label: value(info) for label, info in self._infos.items()}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"`{label}`: {_in_words(one)}" for label, one in found.items())
            raise RecipeError(f"the combined teachers have different {what} (found {listed})")


class _CompositeSignals(Signals):
    """Combine the signals of the members when a loss reads them."""

    def __init__(self, batch: Batch, combination: Combination, members: Sequence[Signals], info: ModelInfo) -> None:
        super().__init__(batch, {}, {}, {})
        self._members = members
        self._combine = _mean if combination == "average" else _concatenation
        self._info = info

    def tokens(self, block: Block) -> Tensor:
        """Return the combined hidden states of the real tokens: (N, d)."""
        return self._combine([member.tokens(block) for member in self._members])

    def first(self, block: Block) -> Tensor:
        """Return the combined hidden states of each sequence's first token: (B, d)."""
        return self._combine([member.first(block) for member in self._members])

    def logits(self, positions: Positions) -> Tensor:
        """Return logarithms of the mean probabilities: (M, V) or (N, V), float32."""
        return _log_mean_probabilities([member.logits(positions) for member in self._members])

    def outputs(self, name: str) -> Tensor:
        """Return logits of the mean probabilities, or the mean outputs of regression heads, in float32."""
        if name == MASKED_LM:
            return self.logits("all")
        head = self._info.head(name)
        average = None if head is None else _average_of(head)
        assert average is not None
        return average([member.outputs(name) for member in self._members])


class FrozenTeachers:
    """Run the teachers in eval mode and without gradients; teachers with empty requests are not run."""

    def __init__(self, encoders: Mapping[str, Encoder], composites: Mapping[str, CompositeTeacher]) -> None:
        """Freeze the encoders.

        Args:
            encoders: the loaded teachers that some loss reads, by label.
            composites: composite teachers by label.
        """
        self._encoders = dict(encoders)
        self._composites = composites
        self._compiled = False
        for encoder in self._encoders.values():
            encoder.eval().requires_grad_(False)

    def to(self, target: torch.dtype | torch.device) -> FrozenTeachers:
        """Move all teachers, or cast those whose precision is not fixed."""
        for encoder in self._encoders.values():
            if isinstance(target, torch.device) or not encoder.keeps_precision:
                encoder.to(target)
        return self

    def deepest_block(self, requests: Mapping[str, SignalRequest]) -> tuple[str | None, Block, int]:
        """Return label, deepest requested block and hidden size of the first requested teacher.

        The label is None if no teacher is requested.
        """
        for label, request in requests_of_models(requests, self._composites).items():
            info = self._encoders[label].info
            return label, request.deepest_block(info.num_layers), info.hidden_size
        return None, "embeddings", 0

    def prefetch(self, batch: Batch) -> None:
        """Let each teacher start reading the data that it needs for a batch in host memory."""
        for encoder in self._encoders.values():
            encoder.prefetch(batch.teacher_view)

    def compile_parts(self) -> None:
        """Compile the teachers; repeated calls have no effect."""
        for encoder in () if self._compiled else self._encoders.values():
            encoder.compile_parts()
        self._compiled = True

    @torch.no_grad()
    def __call__(self, batch: Batch, requests: Mapping[str, SignalRequest]) -> dict[str, Signals]:
        """Run each teacher once on its view of a micro-batch, for the union of the requests to it.

        Args:
            batch: the micro-batch.
            requests: requests by label of the teacher, composites included.

        Returns:
            The signals by label; teachers with empty requests are not run and have no signals.
        """
        view = batch.teacher_view
        signals: dict[str, Signals] = {}
        for label, request in requests_of_models(requests, self._composites).items():
            with plugin_faults(self._encoders[label], TEACHER if label == TEACHER else f"teachers.{label}"):
                signals[label] = self._encoders[label](view, request)
        for label, request in requests.items():
            if request and label in self._composites:
                composite = self._composites[label]
                signals[label] = composite.combine(view, [signals[member] for member in composite.members])
        return signals


def requests_of_models(
    requests: Mapping[str, SignalRequest], composites: Mapping[str, CompositeTeacher]
) -> dict[str, SignalRequest]:
    """Replace requests to composite teachers with requests to their members; empty requests are left out."""
    found: dict[str, SignalRequest] = {}
    for label, request in requests.items():
        for member in composites[label].members if label in composites else (label,):
            if request:
                found[member] = found.get(member, SignalRequest()) | request
    return found


def _average_of(head: Head) -> Callable[[Sequence[Tensor]], Tensor] | None:
    """Return how to average the outputs of a head; None if their meaning is unknown."""
    if head.problem_type == "regression":
        return _mean
    if head.problem_type == "multi_label_classification":
        return _mean_of_labels
    classifies = head.problem_type == "single_label_classification" or head.labels or head.name in _CLASSES
    return _log_mean_probabilities if classifies else None


_CLASSES = (SEQUENCE_CLASSES, "token_classes")


def _mean(parts: Sequence[Tensor]) -> Tensor:
    total: Tensor = sum(at_least_float32(part) for part in parts)  # type: ignore[assignment]
    return total / len(parts)


def _concatenation(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=-1)


def _log_mean_probabilities(parts: Sequence[Tensor]) -> Tensor:
    # Summed as logarithms: a probability that underflows would be minus infinity, and its divergence not a number.
    return reduce(torch.logaddexp, (at_least_float32(part).log_softmax(-1) for part in parts)) - math.log(len(parts))


def _mean_of_labels(parts: Sequence[Tensor]) -> Tensor:
    """Return logits of the mean of each label's probability, from log-probabilities of the label and its complement."""
    sides = [[logsigmoid(sign * at_least_float32(part)) for part in parts] for sign in (1, -1)]
    positive, negative = (reduce(torch.logaddexp, side) for side in sides)
    return positive - negative


def _labels(info: ModelInfo, name: str) -> tuple[str, ...]:
    head = info.head(name)
    return () if head is None else head.labels


def _outputs_of(info: ModelInfo, name: str, infos: Sequence[ModelInfo]) -> tuple[int, tuple[str, ...]]:
    """Return the number and names of a head's outputs; missing names are taken from a model that has them."""
    head = info.head(name)
    assert head is not None
    known = next((labels for one in infos if (labels := _labels(one, name))), ())
    return head.num_outputs, tuple(label.casefold() for label in head.labels or known)


def _problem_type(info: ModelInfo, name: str) -> str | None:
    head = info.head(name)
    return None if head is None else head.problem_type


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        count, names = value
        return ", ".join(names) or f"{count} without names"
    return str(value)
