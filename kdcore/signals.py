"""Define the data exchanged between losses, models and tasks: requests, batches and signals.

A loss declares before training which signals it reads (`Requests`). The core requests the union of these signals from
teacher and student, and nothing else. `Signals` expose real tokens only, so that losses do not depend on the layout of
a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from kdcore.deprecated import warn_deprecated
from kdcore.errors import InputError

Block = int | Literal["embeddings"]
"""Location of hidden states: a 0-based block, or the embedding output."""

AttentionPart = Literal["query", "key", "value"]
"""One of the three projections inside an attention block."""

Positions = Literal["masked", "all"]
"""Positions of predictions over the vocabulary: masked positions, or all real tokens."""


HeadLevel = Literal["token", "sequence"]
"""Granularity of a head's outputs or of a batch column: one row per real token, or one per sequence."""

MASKED_LM = "masked_lm"
SEQUENCE_CLASSES = "sequence_classes"


@dataclass(frozen=True)
class Head:
    """A head on the last hidden states of a model, with C outputs for every token or every sequence.

    The weights of a head belong to transformers' class `auto_class`, or to the module that a subclass returns from
    `module`.

    Attributes:
        name: name by which losses request the outputs, such as `sequence_classes`.
        level: whether there are outputs for every real token (N, C) or for every sequence (B, C).
        num_outputs: C; the vocabulary size for `masked_lm`.
        labels: names of the outputs in their order; empty if unknown or for regression.
        problem_type: as in configurations of transformers, such as `regression` or `multi_label_classification`.
        auto_class: name of the class of transformers that loads an export with this head.
        pooling: which state of a sequence the module of a `sequence` head receives: the state of the first token, or
            the mean over real tokens. With `own`, the module itself does the pooling, and receives the states of all
            real tokens (N, d), one sequence after another, and the `lengths` of the batch.
    """

    name: str
    level: HeadLevel
    num_outputs: int
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    auto_class: str = "AutoModel"
    pooling: Literal["first", "mean", "own"] = "first"

    @staticmethod
    def masked_lm(vocab_size: int) -> Head:
        """Return the masked-LM head: a prediction over the vocabulary for every token."""
        return Head(MASKED_LM, "token", vocab_size, auto_class="AutoModelForMaskedLM")

    @staticmethod
    def sequence_classes(
        labels: Sequence[str] = (), problem_type: str | None = None, num_outputs: int | None = None
    ) -> Head:
        """Return the head `sequence_classes` for these classes, or for regression if there are no classes.

        Args:
            labels: names of the classes.
            problem_type: problem type. The default is `single_label_classification`, or `regression` for a single
                output without a name.
            num_outputs: number of classes without names.
        """
        outputs = num_outputs or len(labels) or 1
        usual = "single_label_classification" if labels or outputs > 1 else "regression"
        auto_class = "AutoModelForSequenceClassification"
        return Head(SEQUENCE_CLASSES, "sequence", outputs, tuple(labels), problem_type or usual, auto_class)

    @staticmethod
    def token_classes(labels: Sequence[str] = (), num_outputs: int | None = None) -> Head:
        """Return the head `token_classes` for these classes, or for a number of classes without names."""
        outputs, auto_class = num_outputs or len(labels), "AutoModelForTokenClassification"
        return Head("token_classes", "token", outputs, tuple(labels), auto_class=auto_class)

    def module(self, info: ModelInfo) -> nn.Module | None:
        """Return a new float32 module that maps states (N, d) or (B, d) to outputs (N, C) or (B, C).

        Return None, the default, if transformers has the module under `auto_class`.

        Args:
            info: the model whose states the module receives.
        """
        return None


class ClassHead(Head):
    """Deprecated: use `Head.sequence_classes`."""

    def __new__(cls, labels: Sequence[str] = ()) -> Head:  # type: ignore[misc]
        """Return the head `sequence_classes`."""
        warn_deprecated("ClassHead", "Head.sequence_classes")
        return Head.sequence_classes(labels)


_UNSET: Any = object()


@dataclass(frozen=True, init=False)
class ModelInfo:
    """The description of a model that is available to losses and tasks before the model is loaded.

    Attributes:
        architecture: the family, such as `bert`.
        num_layers: number of blocks of the whole model, even if only a part of it is loaded.
        hidden_size: width d of the hidden states.
        num_heads: number A of attention heads in a block.
        head_size: width d_k of one head.
        vocab_size: number of rows of the embedding table.
        max_length: maximum length of a sequence in tokens.
        heads: the heads that losses can read, sorted by name: for a teacher, the heads with which it was saved; for a
            student, the heads with which it can be trained.
        position_pad_id: token that is not counted as a position, as in RoBERTa; None if positions do not depend on ids.
        attention: whether losses can read query, key and value.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    head_size: int
    vocab_size: int
    max_length: int
    heads: tuple[Head, ...] = ()
    position_pad_id: int | None = None
    attention: bool = True

    def __init__(
        self,
        architecture: str,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        head_size: int,
        vocab_size: int,
        max_length: int,
        has_lm_head: bool = _UNSET,
        num_classes: int | None = _UNSET,
        class_labels: tuple[str, ...] = _UNSET,
        *,
        heads: Iterable[Head] = (),
        position_pad_id: int | None = None,
        attention: bool = True,
    ) -> None:
        """Describe a model; `has_lm_head`, `num_classes` and `class_labels` are deprecated: use `heads`."""
        by_name = {head.name: head for head in heads}
        given = [value is not _UNSET for value in (has_lm_head, num_classes, class_labels)]
        if any(given):
            warn_deprecated("ModelInfo(has_lm_head=, num_classes=, class_labels=)", "ModelInfo(heads=)")
        if given[0]:
            by_name.pop(MASKED_LM, None)
            by_name |= {MASKED_LM: Head.masked_lm(vocab_size)} if has_lm_head else {}
        if given[1] or given[2]:
            before = by_name.pop(SEQUENCE_CLASSES, None)
            outputs = num_classes if given[1] else before.num_outputs if before else None
            labels = class_labels if given[2] else ()
            if outputs is not None:
                by_name[SEQUENCE_CLASSES] = Head.sequence_classes(labels, num_outputs=outputs)
        values = (architecture, num_layers, hidden_size, num_heads, head_size, vocab_size, max_length)
        ordered = tuple(by_name[name] for name in sorted(by_name))
        for one, value in zip(fields(self), (*values, ordered, position_pad_id, attention), strict=True):
            object.__setattr__(self, one.name, value)

    def head(self, name: str) -> Head | None:
        """Return the head of this name; None if the model does not have it."""
        return next((head for head in self.heads if head.name == name), None)

    @property
    def has_lm_head(self) -> bool:
        """Deprecated: use `head("masked_lm")`."""
        warn_deprecated("ModelInfo.has_lm_head", 'ModelInfo.head("masked_lm")')
        return self.head(MASKED_LM) is not None

    @property
    def num_classes(self) -> int | None:
        """Deprecated: use `head("sequence_classes")`."""
        warn_deprecated("ModelInfo.num_classes", 'ModelInfo.head("sequence_classes")')
        head = self.head(SEQUENCE_CLASSES)
        return None if head is None else head.num_outputs

    @property
    def class_labels(self) -> tuple[str, ...]:
        """Deprecated: use `head("sequence_classes")`."""
        warn_deprecated("ModelInfo.class_labels", 'ModelInfo.head("sequence_classes")')
        head = self.head(SEQUENCE_CLASSES)
        return () if head is None else head.labels


@dataclass(frozen=True, init=False)
class SignalRequest:
    """The signals requested from one model (teacher or student). Combine with `|`.

    Attributes:
        hidden_blocks: hidden states after these blocks.
        attention_parts: (part, block) pairs of query, key and value.
        prediction_positions: positions of predictions over the vocabulary, as logits.
        factored_positions: positions of predictions over the vocabulary, as `FactoredLogits`.
        heads: names of other heads whose outputs are requested.
    """

    hidden_blocks: frozenset[Block] = frozenset()
    attention_parts: frozenset[tuple[AttentionPart, int]] = frozenset()
    prediction_positions: frozenset[Positions] = frozenset()
    factored_positions: frozenset[Positions] = frozenset()
    heads: frozenset[str] = frozenset()

    def __init__(
        self,
        hidden_blocks: frozenset[Block] = frozenset(),
        attention_parts: frozenset[tuple[AttentionPart, int]] = frozenset(),
        prediction_positions: frozenset[Positions] = frozenset(),
        class_logits: bool = False,
        *,
        factored_positions: frozenset[Positions] = frozenset(),
        heads: frozenset[str] = frozenset(),
    ) -> None:
        """Request signals; `class_logits` is deprecated: use `heads`."""
        if class_logits:
            warn_deprecated("SignalRequest(class_logits=True)", 'Signals.head("sequence_classes")')
            heads = heads | {SEQUENCE_CLASSES}
        values = (hidden_blocks, attention_parts, prediction_positions, factored_positions, heads)
        for one, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, one.name, value)

    @property
    def class_logits(self) -> bool:
        """Deprecated: use `"sequence_classes" in heads`."""
        warn_deprecated("SignalRequest.class_logits", "SignalRequest.heads")
        return SEQUENCE_CLASSES in self.heads

    @property
    def predicts_tokens(self) -> bool:
        """Return whether predictions over the vocabulary are requested, in any form."""
        return bool(self.prediction_positions or self.factored_positions)

    def __or__(self, other: SignalRequest) -> SignalRequest:
        return SignalRequest(**{one.name: getattr(self, one.name) | getattr(other, one.name) for one in fields(self)})

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self))

    def depth(self, num_layers: int) -> int:
        """Return the number of blocks, counted from the first, that this request needs."""
        if self.predicts_tokens or self.heads:
            return num_layers
        blocks = {block for block in self.hidden_blocks if block != "embeddings"}
        blocks |= {block for _, block in self.attention_parts}
        return max((int(block) + 1 for block in blocks), default=0)

    def deepest_block(self, num_layers: int) -> Block:
        """Return the last block that this request needs."""
        return self.depth(num_layers) - 1 if self.depth(num_layers) else "embeddings"


@dataclass(frozen=True)
class Requests:
    """The signals of both models and the extra batch columns that a loss reads. Combine with `|`.

    Attributes:
        teacher: signals of the teacher; empty if the loss does not need a teacher.
        student: signals of the student.
        columns: names of batch columns beyond the standard ones, such as `sample_ids`.
    """

    teacher: SignalRequest = field(default_factory=SignalRequest)
    student: SignalRequest = field(default_factory=SignalRequest)
    columns: frozenset[str] = frozenset()

    def __or__(self, other: Requests) -> Requests:
        return Requests(self.teacher | other.teacher, self.student | other.student, self.columns | other.columns)


@dataclass(frozen=True)
class Units:
    """The units of a batch for models with different tokenizers: the shortest spans between common token boundaries.

    Attributes:
        tokens: (K,) int64, the tokens of all units, unit by unit, as positions among the N real tokens.
        starts: (U,) int64, start of each unit in `tokens`; no unit is empty.
        lengths: (B,) int64 NumPy array, number of units in each sequence; stays on the host.
    """

    tokens: Tensor
    starts: Tensor
    lengths: np.ndarray

    def means(self, states: Tensor) -> Tensor:
        """Average states of the real tokens (N, d) over the tokens of each unit: (U, d), at least float32."""
        precise = states.to(torch.promote_types(states.dtype, torch.float32))
        return embedding_bag(self.tokens, precise, self.starts, mode="mean")

    def map(self, change: Callable[[Tensor], Tensor]) -> Units:
        """Return the units with a function applied to their tensors."""
        return replace(self, tokens=change(self.tokens), starts=change(self.starts))


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B sequences, padded on the right to L tokens, with all counts available on the host.

    A teacher whose tokenizer differs from the student's receives a batch of its own tokens, `teacher_view`, whose units
    are the same spans of text, in the same order, as those of the student's batch.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) bool, true on real tokens; None without padding.
        lengths: (B,) int64 NumPy array, number of real tokens in each sequence; stays on the host.
        token_index: (N,) int64, flat positions `row * L + column` of the real tokens.
        masked_index: (M,) int64, flat positions whose token is to be predicted.
        masked_labels: (M,) int64, the tokens to be predicted there.
        columns: further columns by name: one row per sequence (B, ...), or a value for every position (B, L), which
            is ignored in the padding.
        token_types: (B, L) int64, 1 on tokens of the second text of a pair; None if there are no pairs.
        units: units of the tokens; None if both models have the same tokens, in which case each token is a unit.
        teacher: the batch of the teacher's tokens; None if it is this batch.
        split: split of the samples; None for a batch not drawn by a task. This and the next two attributes stay on the
            host.
        samples: (B,) int64 NumPy array, indices of the samples in the split.
        epochs: (B,) int64 NumPy array, number of times that each sample has been seen before.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    lengths: np.ndarray
    token_index: Tensor
    masked_index: Tensor
    masked_labels: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    token_types: Tensor | None = None
    units: Units | None = None
    teacher: Batch | None = None
    split: str | None = None
    samples: np.ndarray | None = None
    epochs: np.ndarray | None = None

    @property
    def teacher_view(self) -> Batch:
        """Return the batch that the teacher receives: this one if both models have the same tokens."""
        return self if self.teacher is None else self.teacher

    def of_samples(self, split: str, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Return the batch with its split, samples and epochs, for both models."""
        teacher = None if self.teacher is None else self.teacher.of_samples(split, samples, epochs)
        return replace(self, teacher=teacher, split=split, samples=samples, epochs=epochs)

    @property
    def num_sequences(self) -> int:
        """Return B, the number of sequences."""
        return int(self.input_ids.shape[0])

    @property
    def num_tokens(self) -> int:
        """Return N, the number of real tokens."""
        return int(self.token_index.shape[0])

    @property
    def num_masked(self) -> int:
        """Return M, the number of tokens to be predicted."""
        return int(self.masked_index.shape[0])

    def token_column(self, name: str) -> Tensor:
        """Return the values (N,) of a column (B, L) at the real tokens, in the order of `Signals.tokens`."""
        flat = self.columns[name].reshape(-1)
        return flat.index_select(0, self.token_index)

    @property
    def num_units(self) -> int:
        """Return U, the number of units: N if both models have the same tokens."""
        return self.num_tokens if self.units is None else int(self.units.starts.shape[0])

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to `device`; copies from pinned memory are asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Copy the batch to pinned memory, from which copies to a GPU overlap with computation."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            attention_mask=None if self.attention_mask is None else change(self.attention_mask),
            token_index=change(self.token_index),
            masked_index=change(self.masked_index),
            masked_labels=change(self.masked_labels),
            columns={name: change(column) for name, column in self.columns.items()},
            token_types=None if self.token_types is None else change(self.token_types),
            units=None if self.units is None else self.units.map(change),
            teacher=None if self.teacher is None else self.teacher._map(change),
        )


@dataclass(frozen=True)
class AttentionPattern:
    """The structure of a block's attention, except for the lengths of the sequences, which the batch provides.

    Every query attends to the real keys of its sequence within the window.

    Attributes:
        window: maximum distance between a query and its keys; None if there is no limit.
        bias: added to the scaled scores, broadcastable to (B, A, L, L); None without a bias.
    """

    window: int | None = None
    bias: Tensor | None = None

    def mask(self, batch: Batch) -> Tensor | None:
        """Return the mask, broadcastable to (B, A, L, L): bool, or additive with a bias; None if nothing is masked.

        With a window, padding queries attend to everything, so that no row is empty.
        """
        rows = batch.attention_mask
        seen = None if rows is None else rows[:, None, None, :]
        if self.window is not None:
            places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
            near = ((places[:, None] - places).abs() <= self.window)[None, None]
            seen = near if rows is None else (near & rows[:, None, None, :]) | ~rows[:, None, :, None]
        if self.bias is None or seen is None:
            return seen if self.bias is None else self.bias
        return torch.where(seen, self.bias, torch.finfo(self.bias.dtype).min)


@dataclass(frozen=True)
class AttentionTap:
    """The inputs of one block's attention kernel.

    Attributes:
        query: (B, A, L, d_k), after rotary embedding if the model has one; packed: (N, A, d_k).
        key: like `query`.
        value: like `query`.
        mask: the block's mask (padding, window, bias) as passed to the kernel: bool (true where a key is attended to)
            or additive, broadcastable to (B, A, L, L); None if all positions attend to each other, or if `pattern`
            describes it.
        scale: factor applied to `query @ key^T` before the softmax.
        pattern: the structure of the mask; None if only the mask is known.
        packed: whether the states contain only the N real tokens, one sequence after another, without padding. Requires
            a `pattern`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    pattern: AttentionPattern | None = None
    packed: bool = False


@dataclass(frozen=True)
class HeadChunk:
    """Heads of some of the batch's sequences, laid out for attention.

    Attributes:
        states: (b, A, l, d_k).
        mask: the block's mask, broadcastable to (b, A, l, l): bool or additive; None if nothing is masked.
        rows: (b, l) bool, true on real tokens; None without padding.
        scale: the block's scale factor for `query @ key^T`.
        lengths: (b,) NumPy array, number of real tokens of each sequence, for processing sequences one by one; None if
            unknown.
        only_padding: whether `mask` is guaranteed to mask padding only.
        pattern: the structure of the mask apart from the lengths; None if only the mask is known.
    """

    states: Tensor
    mask: Tensor | None
    rows: Tensor | None
    scale: float
    lengths: np.ndarray | None = None
    only_padding: bool = False
    pattern: AttentionPattern | None = None


@dataclass(frozen=True)
class PackedHeads:
    """Heads of the real tokens without padding, one sequence after another, for kernels that read ragged batches.

    Attributes:
        states: (N, A, d_k).
        offsets: (B + 1,) int32, the start of each sequence and N at the end.
        longest: number of tokens in the longest sequence; known on the host.
        scale: the block's scale factor for `query @ key^T`.
        pattern: the structure of the mask apart from the lengths; None if only the dense mask of `heads` is known.
    """

    states: Tensor
    offsets: Tensor
    longest: int
    scale: float
    pattern: AttentionPattern | None


@dataclass(frozen=True)
class FactoredLogits:
    """Predictions over the vocabulary before the last product: logits are `states @ weight^T + bias`.

    Attributes:
        states: (M, d) at masked positions, or (N, d).
        weight: (V, d), one row per token of the vocabulary.
        bias: (V,); None without a bias.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Return the logits (rows, V) of some of the positions."""
        return nn.functional.linear(self.states[rows], self.weight, self.bias)


class Signals:
    """The signals of a model for one micro-batch. Static methods create requests, and the other methods read signals.

    | request | read |
    | --- | --- |
    | `Signals.hidden(blocks)` | `tokens(block)`, `units(block)`, `first(block)` |
    | `Signals.attention(parts, blocks)` | `heads(part, block)`, `packed_heads(...)`, `unit_heads(part, block)` |
    | `Signals.predictions(positions)` | `logits(positions)` |
    | `Signals.predictions(positions, factored=True)` | `factored(positions)` |
    | `Signals.head(name)` | `outputs(name)` |
    """

    def __init__(
        self,
        batch: Batch,
        hidden: Mapping[Block, Tensor],
        attention: Mapping[int, AttentionTap],
        logits: Mapping[Positions, Tensor],
        class_logits: Tensor | None = None,
        *,
        factored: Mapping[Positions, FactoredLogits] | None = None,
        heads: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store the requested signals; `class_logits` is deprecated: use `heads`."""
        self._batch = batch
        self._hidden = hidden
        self._attention = attention
        self._logits = logits
        self._factored = factored or {}
        self._outputs = dict(heads or {})
        if class_logits is not None:
            warn_deprecated("Signals(class_logits=)", "Signals(heads=)")
            self._outputs[SEQUENCE_CLASSES] = class_logits
        self._tokens: dict[Block, Tensor] = {}
        self._masks: dict[int, Tensor | None] = {}
        self._heads: dict[tuple[AttentionPart, int], Tensor] = {}

    @staticmethod
    def hidden(blocks: Iterable[Block]) -> SignalRequest:
        """Request hidden states after `blocks`."""
        return SignalRequest(hidden_blocks=frozenset(blocks))

    @staticmethod
    def attention(parts: Iterable[AttentionPart], blocks: Iterable[int]) -> SignalRequest:
        """Request query, key or value projections inside `blocks`."""
        parts = tuple(parts)
        return SignalRequest(attention_parts=frozenset((part, block) for block in blocks for part in parts))

    @staticmethod
    def predictions(positions: Positions, *, factored: bool = False) -> SignalRequest:
        """Request predictions over the vocabulary at `positions`: logits, or their factors."""
        if factored:
            return SignalRequest(factored_positions=frozenset({positions}))
        return SignalRequest(prediction_positions=frozenset({positions}))

    @staticmethod
    def head(name: str) -> SignalRequest:
        """Request the outputs of a head, such as `sequence_classes`."""
        return Signals.predictions("all") if name == MASKED_LM else SignalRequest(heads=frozenset({name}))

    @staticmethod
    def classes() -> SignalRequest:
        """Deprecated: use `head("sequence_classes")`."""
        warn_deprecated("Signals.classes()", 'Signals.head("sequence_classes")')
        return Signals.head(SEQUENCE_CLASSES)

    def tokens(self, block: Block) -> Tensor:
        """Return the hidden states of the real tokens after `block`: (N, d)."""
        if block not in self._tokens:
            self._tokens[block] = select_rows(self._hidden[block], self._batch.token_index)
        return self._tokens[block]

    def units(self, block: Block) -> Tensor:
        """Return the hidden states after `block`, averaged over each unit: (U, d), with the same U for both models.

        If both models have the same tokens, these are `tokens(block)`.
        """
        units = self._batch.units
        return self.tokens(block) if units is None else units.means(self.tokens(block))

    def first(self, block: Block) -> Tensor:
        """Return the hidden states of each sequence's first token after `block`: (B, d)."""
        return self._hidden[block][:, 0]

    def heads(self, part: AttentionPart, block: int) -> Iterator[HeadChunk]:
        """Yield query, key or value of `block` in chunks of whole sequences, the same for every part and model."""
        tap = self._attention[block]
        states: Tensor = getattr(tap, part)
        if tap.packed:
            if (part, block) not in self._heads:
                self._heads[part, block] = self._unpack(states).transpose(1, 2)
            states = self._heads[part, block]
        yield HeadChunk(
            states,
            self._mask(block),
            self._batch.attention_mask,
            tap.scale,
            lengths=self._batch.lengths,
            only_padding=tap.pattern is not None and tap.pattern.window is None and tap.pattern.bias is None,
            pattern=tap.pattern,
        )

    def packed_heads(self, part: AttentionPart, block: int) -> PackedHeads:
        """Return query, key or value of `block` for the real tokens, without padding and without a dense mask."""
        tap, batch = self._attention[block], self._batch
        states: Tensor = getattr(tap, part)
        if not tap.packed:
            states = states.transpose(1, 2).flatten(0, 1).index_select(0, batch.token_index)
        starts = torch.arange(batch.num_sequences, device=batch.token_index.device) * batch.input_ids.shape[1]
        offsets = torch.searchsorted(
            batch.token_index, torch.cat([starts, starts.new_full((1,), batch.input_ids.numel())])
        )
        return PackedHeads(states, offsets.to(torch.int32), int(batch.lengths.max()), tap.scale, tap.pattern)

    def _mask(self, block: int) -> Tensor | None:
        """Return the dense mask of a block, broadcastable to (B, A, L, L)."""
        tap = self._attention[block]
        if tap.mask is not None or tap.pattern is None:
            return tap.mask
        if block not in self._masks:
            self._masks[block] = tap.pattern.mask(self._batch)
        return self._masks[block]

    def _unpack(self, states: Tensor) -> Tensor:
        """Lay out states of the real tokens (N, ...) as (B, L, ...), with zeros in the padding."""
        size = self._batch.input_ids.shape
        padded = states.new_zeros((size.numel(), *states.shape[1:])).index_copy(0, self._batch.token_index, states)
        return padded.view(*size, *states.shape[1:])

    def unit_heads(self, part: AttentionPart, block: int) -> Iterator[HeadChunk]:
        """Yield query, key or value of `block`, averaged over each unit, with units in place of tokens.

        If both models have the same tokens, these are `heads(part, block)`. Otherwise all sequences are one chunk, and
        every unit attends to every unit of its sequence: the block's window and bias apply to tokens only.
        """
        units = self._batch.units
        if units is None:
            yield from self.heads(part, block)
            return
        chunks = list(self.heads(part, block))
        lengths = np.split(self._batch.lengths, np.cumsum([chunk.states.shape[0] for chunk in chunks])[:-1])
        tokens = []
        for chunk, own in zip(chunks, lengths, strict=True):
            states = chunk.states.transpose(1, 2)  # (b, l, A, d_k)
            tokens.append(select_rows(states.flatten(2), _real_rows(own, states.shape[1], states.device)))
        means = units.means(torch.cat(tokens))
        longest = int(units.lengths.max())
        index = _real_rows(units.lengths, longest, means.device)
        whole = means.new_zeros((len(units.lengths) * longest, means.shape[1])).index_copy(0, index, means)
        heads = whole.view(len(units.lengths), longest, *chunks[0].states.shape[1::2]).transpose(1, 2)
        rows = torch.from_numpy(np.arange(longest) < units.lengths[:, None]).to(means.device, non_blocking=True)
        yield HeadChunk(heads, None, rows, chunks[0].scale, units.lengths, only_padding=True)

    def logits(self, positions: Positions) -> Tensor:
        """Return predictions over the vocabulary: (M, V) at masked positions, (N, V) at all real tokens."""
        return self._logits[positions]

    def factored(self, positions: Positions) -> FactoredLogits:
        """Return predictions over the vocabulary before the last product: states (M, d) or (N, d), and weights.

        Raises:
            InputError: the model does not provide its predictions in this form.
        """
        if positions not in self._factored:
            raise InputError("the model cannot provide factored predictions", hint="use a loss that reads logits")
        return self._factored[positions]

    def outputs(self, name: str) -> Tensor:
        """Return the outputs of a head: (N, C) at all real tokens or (B, C), depending on the head's level."""
        return self.logits("all") if name == MASKED_LM else self._outputs[name]

    @property
    def class_logits(self) -> Tensor:
        """Deprecated: use `outputs("sequence_classes")`."""
        warn_deprecated("Signals.class_logits", 'Signals.outputs("sequence_classes")')
        return self.outputs(SEQUENCE_CLASSES)


def _real_rows(lengths: np.ndarray, width: int, device: torch.device) -> Tensor:
    """Return flat positions of the entries within `lengths` in rows of `width`."""
    index = np.flatnonzero(np.arange(width) < lengths[:, None])
    return torch.from_numpy(index).to(device, non_blocking=True)


def select_rows(states: Tensor, flat_index: Tensor) -> Tensor:
    """Select rows of (B, L, d) at flat positions: (rows, d). Does not copy if all rows are selected."""
    flat = states.reshape(-1, states.shape[-1])
    return flat if flat_index.shape[0] == flat.shape[0] else flat.index_select(0, flat_index)
