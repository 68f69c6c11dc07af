"""Check the attention signals, predictions, heads and descriptions of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore import AttentionPart, Batch, Encoder, Head, Model, SignalRequest, Signals
from kdcore_testing.failures import failing_as
from kdcore_testing.signal_cases import make_batch

LENGTHS = (6, 3, 5)
_PARTS: tuple[AttentionPart, ...] = ("query", "key", "value")
_LONGEST = 2048
_OTHER_TOKENS = 100

BySequence = dict[str, list[Tensor]]
"""Signals by kind, each with one tensor per sequence."""


def model_batch(model: Model, lengths: tuple[int, ...] = LENGTHS, extra: int = 0, first: int = 0) -> Batch:
    """Create sequences of the given lengths; the tokens of a sequence do not depend on the others.

    The second token of each sequence is to be predicted.

    Args:
        model: model whose vocabulary is used.
        lengths: number of tokens of each sequence.
        extra: number of additional padding tokens.
        first: number of the first sequence; sequences with the same number and length have the same tokens.
    """
    longest = max(lengths) + extra
    real = np.arange(longest) < np.asarray(lengths)[:, None]
    masked = real & (np.arange(longest) == 1)
    batch = make_batch(real, masked, np.zeros(real.shape, dtype=np.int64))
    tokens = np.full(real.shape, model.info.vocab_size // 2, dtype=np.int64)
    for row, length in enumerate(lengths):
        generator = np.random.default_rng(first + row)
        tokens[row, :length] = generator.integers(model.info.vocab_size // 2, model.info.vocab_size, length)
    batch.input_ids.copy_(torch.from_numpy(tokens))
    return batch


def assert_close(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor], what: str) -> None:
    """Check that signals are equal up to the rounding of float32.

    Args:
        one: signals by kind.
        other: like `one`.
        what: description of the violated requirement, such as `further padding changes the states`.
    """
    for place, states in one.items():
        distance = (states - other[place]).abs().max().item()
        scale = states.abs().max().item()
        assert distance <= 1e-4 * scale + 1e-6, f"{what} of {place!r} by up to {distance:.3g} (maximum: {scale:.3g})"


@torch.no_grad()
def check_description(whose: str, model: Model, encoder: Encoder) -> None:
    """Check `vocab_size` and `max_length` of a model by running its embeddings and first block.

    Args:
        whose: `teacher` or `student`.
        model: the model.
        encoder: its encoder in eval mode, with hidden states.
    """
    request, size = Signals.hidden(["embeddings", 0]), model.info.vocab_size

    def run(lengths: tuple[int, ...], token: int | None = None) -> Exception | None:
        batch = model_batch(model, lengths)
        if token is not None:
            batch.input_ids[0, 1] = token
        try:
            encoder(batch, request)
        except Exception as error:
            return error
        return None

    failure = run((3,), size - 1)
    assert failure is None, (
        f"`info.vocab_size` of the {whose} is {size}, but token {size - 1} fails: {type(failure).__name__}: {failure}"
    )
    assert run((3,), size) is not None, (
        f"`info.vocab_size` of the {whose} is {size}, but there is an embedding of token {size}"
    )
    longest = min(model.info.max_length, _LONGEST)
    failure = run((longest,))
    assert failure is None, (
        f"`info.max_length` of the {whose} is {model.info.max_length}, but a sequence of {longest} tokens fails: "
        f"{type(failure).__name__}: {failure}"
    )


def check_signals(whose: str, model: Model, load: Callable[[SignalRequest], Encoder]) -> None:
    """Check the attention signals, predictions and heads that `info` lists.

    Args:
        whose: `teacher` or `student`.
        model: the model.
        load: loads the teacher or builds the student for a request.
    """
    info = model.info
    if info.attention:
        with failing_as(f"the model refuses query, key and value (`info.attention` of the {whose} is True)"):
            encoder = load(Signals.attention(_PARTS, range(info.num_layers))).eval()
        _check_kind(whose, model, encoder, _attention)
    for head in info.heads:
        request = Signals.head(head.name)
        if head.name == "masked_lm":
            request |= Signals.predictions("masked")
        with failing_as(f"the model refuses the head `{head.name}`, which `info.heads` of the {whose} has"):
            encoder = load(request).eval()
        check_head(whose, model, encoder, head)


def check_head(whose: str, model: Model, encoder: Encoder, head: Head) -> None:
    """Check the outputs of one head; for the masked-LM head, also the predictions at masked positions."""
    _check_kind(whose, model, encoder, partial(_outputs, head=head))
    if head.name == "masked_lm":
        batch = model_batch(model)
        with torch.no_grad():
            signals = encoder(batch, Signals.predictions("all") | Signals.predictions("masked"))
        rows = torch.searchsorted(batch.token_index, batch.masked_index)
        every, masked = signals.logits("all")[rows], signals.logits("masked")
        what = f"the {whose}'s predictions at masked positions differ from those at all positions"
        assert_close({head.name: every}, {head.name: masked}, what)


def _check_kind(
    whose: str, model: Model, encoder: Encoder, read: Callable[[str, Model, Encoder, Batch], BySequence]
) -> None:
    """Check that signals depend only on the tokens of their sequence, and that a student's signals have a gradient."""

    def signals(*given: Any, **keys: Any) -> BySequence:
        return read(whose, model, encoder, model_batch(model, *given, **keys))

    found = signals()
    if whose == "student":
        for what, tensors in found.items():
            assert tensors[0].requires_grad, f"no gradient reaches the student from its {what}"
    with torch.no_grad():
        _compare(found, signals(), f"a second forward pass changes the {whose}'s")
        _compare(found, signals(extra=4), f"further padding changes the {whose}'s")
        if encoder.packs:
            encoder.packs = False
            _compare(found, signals(), f"packing changes the {whose}'s")
            encoder.packs = True
        parts = [signals(LENGTHS[:1]), signals(LENGTHS[1:], first=1)]
        split = {what: [one for part in parts for one in part[what]] for what in found}
        _compare(found, split, f"splitting the batch changes the {whose}'s")
        other = signals(first=_OTHER_TOKENS)
    for what, tensors in found.items():
        change = max((one - its).abs().max().item() for one, its in zip(tensors, other[what], strict=True))
        scale = max(one.abs().max().item() for one in tensors)
        assert change > 1e-6 * scale, f"other tokens do not change the {whose}'s {what}"


def _compare(one: BySequence, other: BySequence, what: str) -> None:
    for signal, tensors in one.items():
        distance = max((a - b).abs().max().item() for a, b in zip(tensors, other[signal], strict=True))
        scale = max(tensor.abs().max().item() for tensor in tensors)
        assert distance <= 1e-4 * scale + 1e-6, f"{what} {signal} by up to {distance:.3g} (maximum: {scale:.3g})"


def _shaped(whose: str, what: str, found: Tensor, expected: Sequence[int], names: str) -> None:
    assert tuple(found.shape) == tuple(expected), (
        f"the shape of the {whose}'s {what} is {tuple(found.shape)}, expected {tuple(expected)}: {names}"
    )
    assert torch.isfinite(found).all(), f"values of the {whose}'s {what} are not finite"


def _attention(whose: str, model: Model, encoder: Encoder, batch: Batch) -> BySequence:
    """Return query, key, value (l, A, d_k) and attention maps (A, l, l) of each block."""
    info, found = model.info, BySequence()
    signals = encoder(batch, Signals.attention(_PARTS, range(info.num_layers)))
    lengths = batch.lengths.tolist()
    for block in range(info.num_layers):
        chunks = {}
        for part in _PARTS:
            what = f"{part} of block {block}"
            try:
                states = signals.packed_heads(part, block).states
                chunks[part] = list(signals.heads(part, block))
            except KeyError as error:
                raise AssertionError(f"the {whose} does not return the requested {what}") from error
            expected = (batch.num_tokens, info.num_heads, info.head_size)
            _shaped(whose, what, states, expected, "tokens, `info.num_heads`, `info.head_size`")
            found[what] = list(states.split(lengths))
            for one in chunks[part]:
                size = (len(one.states), info.num_heads, one.states.shape[2], info.head_size)
                _shaped(whose, what, one.states, size, "sequences, `info.num_heads`, tokens, `info.head_size`")
            rows = sum(len(one.states) for one in chunks[part])
            assert rows == batch.num_sequences, f"the {whose}'s {what} has {rows} sequences of {batch.num_sequences}"
        maps: list[Tensor] = []
        for query, key in zip(chunks["query"], chunks["key"], strict=True):
            scores = query.states @ key.states.transpose(-1, -2) * query.scale
            if query.mask is not None:
                hidden = query.mask.dtype == torch.bool
                scores = scores.masked_fill(~query.mask, -torch.inf) if hidden else scores + query.mask
            for weights in scores.softmax(-1):
                length = lengths[len(maps)]
                outside = weights[:, :length, length:]
                assert not outside.numel() or outside.max() < 1e-6, (
                    f"the {whose}'s mask of block {block} lets tokens attend to padding"
                )
                maps.append(weights[:, :length, :length])
        found[f"attention map of block {block}"] = maps
    return found


def _outputs(whose: str, model: Model, encoder: Encoder, batch: Batch, head: Head) -> BySequence:
    """Return the outputs (l, C) or (1, C) of a head, and predictions (m, V) at masked positions."""
    what, of_tokens = f"outputs of `{head.name}`", head.level == "token"
    request = Signals.head(head.name)
    if head.name == "masked_lm":
        what = "predictions at all positions"
        request |= Signals.predictions("masked")
    signals = encoder(batch, request)
    try:
        outputs = signals.outputs(head.name)
        masked = signals.logits("masked") if head.name == "masked_lm" else None
    except KeyError as error:
        raise AssertionError(f"the {whose} does not return the requested {what}") from error
    count = batch.num_tokens if of_tokens else batch.num_sequences
    unit = "tokens" if of_tokens else "sequences"
    _shaped(whose, what, outputs, (count, head.num_outputs), f"{unit}, outputs of the head in `info`")
    found = {what: list(outputs.split(batch.lengths.tolist() if of_tokens else 1))}
    if masked is not None:
        size = (batch.num_masked, model.info.vocab_size)
        _shaped(whose, "predictions at masked positions", masked, size, "masked positions, `info.vocab_size`")
        found["predictions at masked positions"] = list(masked.split(1))
    return found
