"""Embeddings of all samples, as they were when each was last seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize


class Memory(nn.Module):
    """One row a sample and side, the same on all processes because all write the same.

    Everything is a buffer and so part of checkpoints. Rows that were never seen are random directions.
    """

    embeddings: Tensor
    log_mean: Tensor
    draws: Tensor
    classes: Tensor

    def __init__(self, samples: int, size: int, momentum: float) -> None:
        """Make an empty memory.

        Args:
            samples: number of rows a side.
            size: width of an embedding.
            momentum: how much of its old value a row keeps when it is written.
        """
        super().__init__()
        self.samples = samples
        self.momentum = momentum
        self.register_buffer("embeddings", normalize(torch.randn(2, samples, size), dim=-1))
        # Logarithm of Z / n for each direction; infinite until it has been estimated.
        self.register_buffer("log_mean", torch.full((2,), torch.inf))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.register_buffer("classes", torch.full((samples,), -1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers, but never cast them.

        A row moves by half of what is new every time its sample is seen, a few times in a run. In half precision the
        rows, and Z above all, would lose digits each time, and a resumed run would not go on as the stopped one.
        """
        precise = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in precise.items():
            if (moved := getattr(self, name)).dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    def draw(self, ids: Tensor, labels: Tensor | None, count: int) -> Tensor:
        """Other samples for each of these: (B, count) row numbers, with replacement.

        They depend on the sample and on how often has been drawn, not on any process's random state: so a resumed run
        draws what the undisturbed one would have, on any device. Outside of training they are always the same.

        Args:
            ids: (B,) the samples.
            labels: (B,) their classes, of which none is drawn; None to draw from all other samples.
            count: how many for each.
        """
        turn = self.draws if self.training else torch.zeros_like(self.draws)
        numbers = _mix(_mix(_mix(turn) + ids)[:, None] + torch.arange(count, device=ids.device))
        if labels is None:
            chosen = numbers % (self.samples - 1)
            return chosen + (chosen >= ids[:, None])
        # Sorted by class, the rows of one class are a stretch that is left out.
        classes, rows = self.classes.sort(stable=True)
        start = torch.searchsorted(classes, labels)[:, None]
        members = torch.searchsorted(classes, labels, right=True)[:, None] - start
        members = members.clamp_max(self.samples - 1)  # all samples are of one class: there is no other to draw
        chosen = numbers % (self.samples - members)
        return rows[chosen + members * (chosen >= start)]

    def log_mean_of(self, scores: Tensor) -> Tensor:
        """Logarithm of Z / n for each direction: of the first training batch of all processes, kept from then on.

        Before that, validation estimates its own from what it has.

        Args:
            scores: (2, B, 1 + K) similarities divided by the temperature.
        """
        estimate = scores.detach().flatten(1).logsumexp(1) - math.log(scores[0].numel())
        if self.training:
            everyone = gather(estimate)
            estimate = everyone.logsumexp(0) - math.log(len(everyone))
        # No question to the device whether it is there already: that would wait for it in every step.
        known = torch.where(self.log_mean.isinf(), estimate.to(self.log_mean.dtype), self.log_mean)
        if self.training:
            self.log_mean.copy_(known)
        return known

    @torch.no_grad()
    def see_classes(self, ids: Tensor, labels: Tensor) -> None:
        """Note the classes of this micro-batch's samples, of all processes."""
        self.classes[gather(ids).flatten()] = gather(labels).flatten()

    @torch.no_grad()
    def write(self, ids: Tensor, embeddings: Tensor) -> None:
        """Move the rows of this micro-batch's samples, of all processes, towards their new embeddings.

        Args:
            ids: (B,) the samples.
            embeddings: (2, B, size) of student and teacher.
        """
        new = gather(embeddings.detach().to(self.embeddings.dtype)).transpose(0, 1).flatten(1, 2)
        everyone = gather(ids).flatten()
        # Where epochs meet, a sample may be there twice. The last one counts, whatever order a device writes in.
        places = torch.arange(len(everyone), device=ids.device)
        last = torch.where(everyone[:, None] == everyone, places, -1).amax(1)
        moved = self.momentum * self.embeddings[:, everyone] + (1 - self.momentum) * new[:, last]
        self.embeddings[:, everyone] = normalize(moved, dim=-1)
        self.draws += 1


def gather(tensor: Tensor) -> Tensor:
    """The tensor of every process, in their order, along a new first axis; all have one of the same shape."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def _mix(numbers: Tensor) -> Tensor:
    """Numbers from 0 to 2^62 that look random, each from one int64 (the finaliser of SplitMix64; products wrap)."""
    numbers = numbers + _signed(0x9E3779B97F4A7C15)
    numbers = (numbers ^ _shift(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ _shift(numbers, 27)) * _signed(0x94D049BB133111EB)
    return _shift(numbers ^ _shift(numbers, 31), 2)


def _shift(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as unsigned numbers do."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
