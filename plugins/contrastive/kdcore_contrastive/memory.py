"""Store the embeddings of all samples in a memory bank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize


class Memory(nn.Module):
    """A memory bank with one row per sample and model, equal on all processes because all of them write the same rows.

    All state is in buffers and therefore in checkpoints. Rows of samples that have not been seen yet are random.
    """

    embeddings: Tensor
    log_mean: Tensor
    draws: Tensor
    classes: Tensor

    def __init__(self, samples: int, size: int, momentum: float) -> None:
        """Create a memory with random rows.

        Args:
            samples: number of rows per model.
            size: width of an embedding.
            momentum: weight of the old value when a row is updated.
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

        Rows are updated a few times in a run. In half precision the rows, and above all Z, would lose digits with each
        update, and a resumed run would differ from an uninterrupted one.
        """
        precise = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in precise.items():
            if (moved := getattr(self, name)).dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    def draw(self, ids: Tensor, labels: Tensor | None, count: int) -> Tensor:
        """Draw other samples for each sample, with replacement: (B, count) row numbers.

        The rows depend on the sample and the number of earlier draws, not on random states, so that a resumed run draws
        the same samples as an uninterrupted one, on any device. Outside of training they are fixed.

        Args:
            ids: (B,) the samples.
            labels: (B,) their classes, which are excluded; None to draw from all other samples.
            count: number of draws per sample.
        """
        turn = self.draws if self.training else torch.zeros_like(self.draws)
        numbers = _mix(_mix(_mix(turn) + ids)[:, None] + torch.arange(count, device=ids.device))
        if labels is None:
            chosen = numbers % (self.samples - 1)
            return chosen + (chosen >= ids[:, None])
        # Sorted by class, the rows of the excluded class are contiguous.
        classes, rows = self.classes.sort(stable=True)
        start = torch.searchsorted(classes, labels)[:, None]
        members = torch.searchsorted(classes, labels, right=True)[:, None] - start
        members = members.clamp_max(self.samples - 1)  # if all samples have the same class
        chosen = numbers % (self.samples - members)
        return rows[chosen + members * (chosen >= start)]

    def log_mean_of(self, scores: Tensor) -> Tensor:
        """Return the logarithm of Z / n for each direction, estimated from the first training batch of all processes.

        Before that, validation uses an estimate from its own batch.

        Args:
            scores: (2, B, 1 + K) similarities divided by the temperature.
        """
        estimate = log_mean_of_batch(scores)
        if self.training:
            everyone = gather(estimate)
            estimate = everyone.logsumexp(0) - math.log(len(everyone))
        # torch.where instead of an if statement, which would synchronize with the device in every step.
        known = torch.where(self.log_mean.isinf(), estimate.to(self.log_mean.dtype), self.log_mean)
        if self.training:
            self.log_mean.copy_(known)
        return known

    @torch.no_grad()
    def see_classes(self, ids: Tensor, labels: Tensor) -> None:
        """Store the classes of this micro-batch's samples, of all processes."""
        self.classes[gather(ids).flatten()] = gather(labels).flatten()

    @torch.no_grad()
    def write(self, ids: Tensor, embeddings: Tensor) -> None:
        """Move the rows of this micro-batch's samples on all processes towards their new embeddings.

        Args:
            ids: (B,) the samples.
            embeddings: (2, B, size) of student and teacher.
        """
        new = gather(embeddings.detach().to(self.embeddings.dtype)).transpose(0, 1).flatten(1, 2)
        everyone = gather(ids).flatten()
        # At an epoch boundary a sample may occur twice. Use the last one, because the write order is undefined.
        places = torch.arange(len(everyone), device=ids.device)
        last = torch.where(everyone[:, None] == everyone, places, -1).amax(1)
        moved = self.momentum * self.embeddings[:, everyone] + (1 - self.momentum) * new[:, last]
        self.embeddings[:, everyone] = normalize(moved, dim=-1)
        self.draws += 1


def log_mean_of_batch(scores: Tensor) -> Tensor:
    """Return the logarithm of the mean exponential of each direction's scores (2, B, 1 + K): (2,)."""
    return scores.detach().flatten(1).logsumexp(1) - math.log(scores[0].numel())


def gather(tensor: Tensor) -> Tensor:
    """All-gather a tensor of equal shape along a new first axis, in the order of ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def _mix(numbers: Tensor) -> Tensor:
    """Hash int64 numbers to pseudo-random numbers from 0 to 2^62 (the finaliser of SplitMix64; products wrap)."""
    numbers = numbers + _signed(0x9E3779B97F4A7C15)
    numbers = (numbers ^ _shift(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ _shift(numbers, 27)) * _signed(0x94D049BB133111EB)
    return _shift(numbers ^ _shift(numbers, 31), 2)


def _shift(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as for unsigned numbers."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
