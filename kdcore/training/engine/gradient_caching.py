"""Compute losses that couple a batch over all micro-batches and processes of a step (GradCache, arXiv 2101.06983).

The student runs twice on each micro-batch. The first passes, without a graph, produce the signals that the coupled
losses read. These are gathered from all processes, and every process computes the losses over the whole batch and their
gradients with respect to the signals. The second passes, with a graph, backpropagate them into the student.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from kdcore.faults import plugin_faults
from kdcore.layers import at_least_float32
from kdcore.signals import (
    MASKED_LM,
    AttentionPart,
    AttentionPattern,
    Batch,
    Block,
    Head,
    HeadChunk,
    PackedHeads,
    Positions,
    SignalRequest,
    Signals,
)
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.runtime.distributed import DistributedContext, fork_random_states

SignalRead = tuple[str, ...] | tuple[str, Block] | tuple[str, AttentionPart, int]
"""How a signal is read: the name of the method, and its arguments."""


@dataclass(frozen=True)
class CachedGradients:
    """Gradients of the coupled losses for one micro-batch, backpropagated after its second forward pass.

    Attributes:
        request: the student's signals that the coupled losses read.
        random_state: random state before the first forward pass, so that dropout is the same in the second pass.
        signals: gradients of the objective with respect to signals; each key describes how the signal is read.
        parameters: the micro-batch's part of the gradients of the losses' parameters, by name in the module.
        length: L of the whole batch.
    """

    request: SignalRequest
    random_state: RandomState
    signals: Mapping[SignalRead, Tensor]
    parameters: Mapping[str, Tensor]
    length: int

    def term(self, student: Signals, module: DistillationModule) -> Tensor:
        """Return a scalar whose gradient equals the gradient of the coupled losses through this micro-batch."""
        values = {name: module.get_parameter(name) for name in self.parameters}
        pairs = [(gradient, _read(student, read, self.length)) for read, gradient in self.signals.items()]
        pairs += [(gradient, values[name]) for name, gradient in self.parameters.items()]
        return torch.stack([(gradient * at_least_float32(value)).sum() for gradient, value in pairs]).sum()


@dataclass(frozen=True)
class RandomState:
    """State of torch's generators on the CPU and on a process's device."""

    cpu: Tensor
    device: torch.device
    accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Copy the current state."""
        accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, accelerator)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Use this state in the context, and restore the current one afterwards."""
        with fork_random_states(self.device):
            torch.set_rng_state(self.cpu)
            if self.accelerator is not None:
                torch.cuda.set_rng_state(self.accelerator, self.device)
            yield


def cache_gradients(
    module: DistillationModule,
    run_teachers: Callable[[Batch, Mapping[str, SignalRequest]], Mapping[str, Signals]],
    micro_batches: Sequence[Batch],
    whole: Batch,
    factors: Mapping[Term, float],
    labels: Collection[str],
    processes: DistributedContext,
    scale: float,
) -> tuple[dict[Term, Tensor], list[CachedGradients]]:
    """Compute coupled losses over the whole batch of a step; every process must call this.

    Args:
        module: student and losses.
        run_teachers: function that runs the teachers.
        micro_batches: this process's micro-batches in host memory.
        whole: all sequences of the step in host memory, with micro-batches in the order of `StepSamples.whole`.
        factors: weight / global count of each term.
        labels: labels of the coupled losses that are active.
        processes: the processes.
        scale: factor by which the objective is multiplied while gradients are in half precision; the returned gradients
            are unscaled.

    Returns:
        The sum of each term over the whole batch, equal on all processes, and the gradients for each micro-batch.
    """
    device, requests = processes.device, module.requests(labels)
    states: list[RandomState] = []
    own: list[Signals] = []
    theirs: list[Mapping[str, Signals]] = []
    for host_batch in micro_batches:
        batch = host_batch.to(device)
        states.append(RandomState.now(device))
        theirs.append(run_teachers(batch, requests.teachers))
        with torch.no_grad(), plugin_faults(module.student, "student"):
            own.append(module.student(batch, requests.student))
    rows = _StepRows(whole, len(micro_batches), processes, module.student.info.heads)
    moved = whole.to(device)
    student = _WholeSignals(moved, own, rows, tracked=True)
    their_rows = _StepRows(whole.teacher_view, len(micro_batches), processes, module.student.info.heads)
    teachers = {
        label: _WholeSignals(moved.teacher_view, [signals[label] for signals in theirs], their_rows, tracked=False)
        for label in requests.teachers
    }
    sums = module.sums_of(student, teachers, moved, labels)
    objective = torch.stack([factors[term] * value for term, value in sums.items()]).sum()
    parameters = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name.startswith(tuple(f"losses.{label}." for label in labels))
    }
    inputs = [*student.read.values(), *parameters.values()]
    found = torch.autograd.grad(scale * objective, inputs, allow_unused=True, materialize_grads=True)
    gradients = [at_least_float32(gradient) / scale for gradient in found]
    by_read = dict(zip(student.read, gradients, strict=False))
    # Every process has the whole gradient of the losses' parameters, and backward passes are summed over micro-batches.
    share = 1 / (processes.world_size * len(micro_batches))
    by_name = dict(zip(parameters, (gradient * share for gradient in gradients[len(by_read) :]), strict=True))
    cached = []
    for number, state in enumerate(states):
        parts = {read: rows.part(gradient, read, number) for read, gradient in by_read.items()}
        cached.append(CachedGradients(requests.student, state, parts, by_name, rows.length))
    return {term: value.detach() for term, value in sums.items()}, cached


class _StepRows:
    """Rows of each micro-batch of a step in the whole batch: micro-batch i of process r is number i * processes + r."""

    def __init__(self, whole: Batch, per_process: int, processes: DistributedContext, heads: Iterable[Head]) -> None:
        self._token_heads = {head.name for head in heads if head.level == "token"}
        self.length = int(whole.input_ids.shape[1])
        self.processes = processes
        count = per_process * processes.world_size
        size = whole.num_sequences // count
        masked = np.bincount(whole.masked_index.numpy() // self.length, minlength=whole.num_sequences)
        self._tokens: list[int] = whole.lengths.reshape(count, size).sum(1).tolist()
        self._masked: list[int] = masked.reshape(count, size).sum(1).tolist()
        self._sequences = [size] * count

    def rows(self, read: SignalRead) -> list[int]:
        """Return the number of rows of a signal in each micro-batch of the step."""
        by_token = read[0] in ("tokens", "packed_heads") or (read[0] == "outputs" and read[1] in self._token_heads)
        if by_token or read == ("logits", "all"):
            return self._tokens
        return self._masked if read[0] == "logits" else self._sequences

    def part(self, whole: Tensor, read: SignalRead, number: int) -> Tensor:
        """Select the rows of this process's micro-batch from a signal of the whole batch."""
        edges = [0, *accumulate(self.rows(read))]
        place = number * self.processes.world_size + self.processes.rank
        return whole[edges[place] : edges[place + 1]]

    def gather(self, parts: Sequence[Tensor], read: SignalRead) -> Tensor:
        """Concatenate the rows of all micro-batches of all processes; every process must call this."""
        world_size, rows = self.processes.world_size, self.rows(read)
        if world_size == 1:
            return torch.cat(list(parts))
        found = []
        for number, part in enumerate(parts):
            counts = rows[number * world_size : (number + 1) * world_size]
            padded = part.new_zeros((max(counts), *part.shape[1:]))
            padded[: len(part)] = part
            everyone = [torch.empty_like(padded) for _ in counts]
            dist.all_gather(everyone, padded)
            found += [one[:count] for one, count in zip(everyone, counts, strict=True)]
        return torch.cat(found)


class _WholeSignals(Signals):
    """A model's signals for all sequences of a step, gathered from all processes when a loss reads them.

    Losses read them in the same order on every process.

    Attributes:
        read: the signals that were read, in float32; they require gradients if they are tracked.
    """

    def __init__(self, whole: Batch, parts: Sequence[Signals], rows: _StepRows, *, tracked: bool) -> None:
        super().__init__(whole, {}, {}, {})
        self.read: dict[SignalRead, Tensor] = {}
        self._parts = parts
        self._rows = rows
        self._tracked = tracked

    def tokens(self, block: Block) -> Tensor:
        """Return the hidden states of the real tokens after `block`: (N, d)."""
        return self._whole(("tokens", block))

    def first(self, block: Block) -> Tensor:
        """Return the hidden states of each sequence's first token after `block`: (B, d)."""
        return self._whole(("first", block))

    def logits(self, positions: Positions) -> Tensor:
        """Return predictions over the vocabulary: (M, V) at masked positions, (N, V) at all real tokens."""
        return self._whole(("logits", positions))

    def outputs(self, name: str) -> Tensor:
        """Return the outputs of a head: (N, C) or (B, C)."""
        return self.logits("all") if name == MASKED_LM else self._whole(("outputs", name))

    def heads(self, part: AttentionPart, block: int) -> Iterator[HeadChunk]:
        """Yield query, key or value of `block` as one chunk; a mask with a bias, or without structure, is additive."""
        read, whole = ("heads", part, block), self._batch
        states, one = self._whole(read), next(iter(self._parts[0].heads(part, block)))
        pattern = _without_bias(one.pattern)
        if block not in self._masks and pattern is not None:
            self._masks[block] = pattern.mask(whole)
        elif block not in self._masks:
            masks = [_additive_mask(signals, part, block, self._rows.length) for signals in self._parts]
            self._masks[block] = self._rows.gather(masks, read)
        yield HeadChunk(
            states,
            self._masks[block],
            whole.attention_mask,
            one.scale,
            lengths=whole.lengths,
            only_padding=pattern is not None and pattern.window is None,
            pattern=pattern,
        )

    def packed_heads(self, part: AttentionPart, block: int) -> PackedHeads:
        """Return query, key or value of `block` for the real tokens of the whole batch."""
        states, one = self._whole(("packed_heads", part, block)), self._parts[0].packed_heads(part, block)
        offsets = torch.tensor([0, *accumulate(self._batch.lengths.tolist())], dtype=torch.int32, device=states.device)
        longest = int(self._batch.lengths.max())
        return PackedHeads(states, offsets, longest, one.scale, _without_bias(one.pattern))

    def _whole(self, read: SignalRead) -> Tensor:
        if read not in self.read:
            parts = [_read(signals, read, self._rows.length).detach() for signals in self._parts]
            self.read[read] = at_least_float32(self._rows.gather(parts, read)).requires_grad_(self._tracked)
        return self.read[read]


def _read(signals: Signals, read: SignalRead, length: int) -> Tensor:
    """Read a signal of one micro-batch; `heads` are padded to the length of the whole batch: (B, A, L, d_k)."""
    name, *arguments = read
    if name == "heads":
        chunks = [chunk.states for chunk in signals.heads(*arguments)]
        return torch.cat([pad(states, (0, 0, 0, length - states.shape[2])) for states in chunks])
    if name == "packed_heads":
        return signals.packed_heads(*arguments).states
    found: Tensor = getattr(signals, str(name)) if not arguments else getattr(signals, str(name))(*arguments)
    return found


def _without_bias(pattern: AttentionPattern | None) -> AttentionPattern | None:
    """Return the structure of a mask if it does not depend on the length of the batch."""
    return pattern if pattern is not None and pattern.bias is None else None


def _additive_mask(signals: Signals, part: AttentionPart, block: int, length: int) -> Tensor:
    """Return a block's mask for a micro-batch as numbers to add to the scores: (B, 1 or A, L, L)."""
    masks = []
    for chunk in signals.heads(part, block):
        size, _, own, _ = chunk.states.shape
        mask = chunk.states.new_zeros((1, 1, 1, 1), dtype=torch.float32)
        if chunk.mask is not None:
            floating = chunk.mask.is_floating_point()
            mask = chunk.mask.float() if floating else torch.where(chunk.mask, 0.0, torch.finfo(torch.float32).min)
        mask = mask[(None,) * (4 - mask.ndim)]
        masks.append(pad(mask.expand(size, -1, own, own), (0, length - own, 0, length - own)))
    return torch.cat(masks)
