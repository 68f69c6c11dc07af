"""Create synthetic signals and batches for checks of losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdcore import (
    AttentionPart,
    AttentionPattern,
    AttentionTap,
    Batch,
    Block,
    HeadChunk,
    ModelInfo,
    PackedHeads,
    Positions,
    SignalRequest,
    Signals,
)

Read = (
    tuple[Literal["hidden"], Block]
    | tuple[AttentionPart, int]
    | tuple[Literal["logits"], Positions]
    | tuple[Literal["outputs"], str]
)
"""One signal: its kind and its location."""


class UnaskedSignalError(AssertionError):
    """A loss read a signal that it had not requested."""


class RecordingSignals(Signals):
    """Signals that record reads and raise an error for signals that were not requested."""

    def __init__(self, batch: Batch, tensors: Mapping[Read, Tensor]) -> None:
        self.read: set[Read] = set()
        self._own_batch = batch
        self._tensors = tensors
        super().__init__(batch, {}, {}, {})

    def _take(self, read: Read) -> Tensor:
        if read not in self._tensors:
            raise UnaskedSignalError(f"`forward` reads {read[0]} of {read[1]!r}, which `requests` does not include")
        self.read.add(read)
        return self._tensors[read]

    def tokens(self, block: Block) -> Tensor:
        """Return the hidden states of the real tokens: (N, d)."""
        states = self._take(("hidden", block))
        return states.reshape(-1, states.shape[-1]).index_select(0, self._own_batch.token_index)

    def first(self, block: Block) -> Tensor:
        """Return the hidden states of the first tokens: (B, d)."""
        return self._take(("hidden", block))[:, 0]

    def heads(self, part: AttentionPart, block: int) -> Iterator[HeadChunk]:
        """Yield all sequences as one chunk."""
        states = self._take((part, block))
        rows = self._own_batch.attention_mask
        mask = None if rows is None else rows[:, None, None, :]
        tap = AttentionTap(states, states, states, mask, states.shape[-1] ** -0.5)
        yield HeadChunk(states, tap.mask, rows, tap.scale)

    def packed_heads(self, part: AttentionPart, block: int) -> PackedHeads:
        """Return the real tokens of all sequences."""
        states = self._take((part, block))
        tap = AttentionTap(states, states, states, None, states.shape[-1] ** -0.5, AttentionPattern())
        return Signals(self._own_batch, {}, {block: tap}, {}).packed_heads(part, block)

    def logits(self, positions: Positions) -> Tensor:
        """Return the rows of the logits at the requested positions: (rows, V)."""
        logits = self._take(("logits", positions))
        index = self._own_batch.masked_index if positions == "masked" else self._own_batch.token_index
        return logits.reshape(-1, logits.shape[-1]).index_select(0, index)

    def outputs(self, name: str) -> Tensor:
        """Return the outputs of a head: (B, C), or (N, C) at the real tokens."""
        if name == "masked_lm":
            return self.logits("all")
        outputs = self._take(("outputs", name))
        if outputs.ndim == 2:
            return outputs
        return outputs.reshape(-1, outputs.shape[-1]).index_select(0, self._own_batch.token_index)


def reads_of(request: SignalRequest) -> list[Read]:
    """Return every single signal of a request, in a fixed order."""
    reads: list[Read] = [("hidden", block) for block in request.hidden_blocks]
    reads += list(request.attention_parts)
    reads += [("logits", positions) for positions in request.prediction_positions]
    reads += [("outputs", name) for name in request.heads]
    return sorted(reads, key=str)


def make_batch(
    real: np.ndarray, masked: np.ndarray, labels: np.ndarray, columns: Mapping[str, np.ndarray] | None = None
) -> Batch:
    """Create a batch for synthetic signals.

    Args:
        real: (B, L) bool, true on real tokens.
        masked: (B, L) bool, true where a token is to be predicted.
        labels: (B, L) int, the tokens to be predicted.
        columns: additional columns, one row per sequence.
    """
    flat_masked = np.flatnonzero(masked)
    return Batch(
        input_ids=torch.zeros(real.shape, dtype=torch.int64),
        attention_mask=None if real.all() else torch.from_numpy(real),
        lengths=real.sum(1),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.from_numpy(flat_masked),
        masked_labels=torch.from_numpy(labels.reshape(-1)[flat_masked].astype(np.int64)),
        columns={name: torch.from_numpy(np.asarray(column)) for name, column in (columns or {}).items()},
    )


@dataclass(frozen=True)
class Case:
    """A batch with the signals of both models, padded to length L; created by `make_case`.

    Attributes:
        real: (B, L) bool.
        masked: (B, L) bool.
        labels: (B, L) int64.
        columns: one row per sequence.
        student: a tensor with B rows for every requested signal of the student.
        teacher: the same for the teacher.
    """

    real: np.ndarray
    masked: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, np.ndarray]
    student: Mapping[Read, Tensor]
    teacher: Mapping[Read, Tensor]

    @property
    def batch(self) -> Batch:
        """Return the batch of the signals."""
        return make_batch(self.real, self.masked, self.labels, self.columns)

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """Return the case with a function applied to every signal."""
        sides = ({read: change(tensor) for read, tensor in side.items()} for side in (self.student, self.teacher))
        student, teacher = sides
        return replace(self, student=student, teacher=teacher)

    def rows(self, chosen: slice) -> Case:
        """Return the case with some of the sequences."""
        part = self.map(lambda tensor: tensor[chosen])
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return replace(
            part, real=self.real[chosen], masked=self.masked[chosen], labels=self.labels[chosen], columns=columns
        )

    def padded(self, extra: int, generator: np.random.Generator) -> Case:
        """Return the case with `extra` columns of padding, in which signals are noise."""

        def widen(read: Read, tensor: Tensor) -> Tensor:
            if read[0] == "outputs" and tensor.ndim == 2:
                return tensor
            axis = 1 if read[0] in ("hidden", "logits", "outputs") else 2
            shape = list(tensor.shape)
            shape[axis] = extra
            noise = torch.from_numpy(10 * generator.standard_normal(shape)).to(tensor.dtype)
            return torch.cat([tensor, noise], dim=axis)

        def grow(array: np.ndarray) -> np.ndarray:
            return np.pad(array, ((0, 0), (0, extra)))

        def grow_column(column: np.ndarray) -> np.ndarray:
            return grow(column) if column.shape == self.real.shape else column

        return replace(
            self,
            real=grow(self.real),
            masked=grow(self.masked),
            labels=grow(self.labels),
            columns={name: grow_column(np.asarray(column)) for name, column in self.columns.items()},
            student={read: widen(read, tensor) for read, tensor in self.student.items()},
            teacher={read: widen(read, tensor) for read, tensor in self.teacher.items()},
        )


def make_case(
    requests: tuple[SignalRequest, SignalRequest],
    infos: tuple[ModelInfo, ModelInfo],
    lengths: Sequence[int],
    generator: np.random.Generator,
    columns: Mapping[str, np.ndarray],
) -> Case:
    """Draw normally distributed signals.

    Args:
        requests: requests to student and teacher.
        infos: descriptions of student and teacher.
        lengths: number of real tokens of each sequence.
        generator: random number generator.
        columns: additional columns of the batch.
    """
    size, longest = len(lengths), max(lengths)
    real = np.arange(longest) < np.asarray(lengths)[:, None]
    masked = (generator.random(real.shape) < 0.4) & real
    masked[:, 0] = True

    def draw(read: Read, info: ModelInfo) -> Tensor:
        return torch.from_numpy(generator.standard_normal(shape_of(read, info, size, longest)))

    student, teacher = (
        {read: draw(read, info) for read in reads_of(request)} for request, info in zip(requests, infos, strict=True)
    )
    labels = generator.integers(0, infos[0].vocab_size, real.shape)
    return Case(real, masked, labels, columns, student, teacher)


def shape_of(read: Read, info: ModelInfo, size: int, length: int) -> tuple[int, ...]:
    """Return the shape of a signal for `size` sequences of `length` tokens."""
    if read[0] == "outputs":
        head = info.head(read[1])
        assert head is not None, f"the loss requests the head `{read[1]}`, which the model does not have"
        return (size, head.num_outputs) if head.level == "sequence" else (size, length, head.num_outputs)
    shapes = {"hidden": (size, length, info.hidden_size), "logits": (size, length, info.vocab_size)}
    return shapes.get(read[0], (size, info.num_heads, length, info.head_size))


def given_reads(arrays: Mapping[str, Any]) -> dict[Read, Tensor]:
    """Convert the mapping passed to `compute_loss` to signals."""
    reads: dict[Read, Tensor] = {}
    for block, array in enumerate(arrays.get("hidden", ())):
        reads["hidden", block] = torch.as_tensor(array)
    if "embeddings" in arrays:
        reads["hidden", "embeddings"] = torch.as_tensor(arrays["embeddings"])
    parts: tuple[AttentionPart, ...] = ("query", "key", "value")
    for part in parts:
        for block, array in enumerate(arrays.get(part, ())):
            reads[part, block] = torch.as_tensor(array)
    if "logits" in arrays:
        reads["logits", "masked"] = reads["logits", "all"] = torch.as_tensor(arrays["logits"])
    if "classes" in arrays:
        reads["outputs", "sequence_classes"] = torch.as_tensor(arrays["classes"])
    for name, array in arrays.get("outputs", {}).items():
        reads["outputs", name] = torch.as_tensor(array)
    return reads
