"""Attention signals carry the structure of their mask, in the padded and in the packed layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from kdcore_testing.signal_cases import RecordingSignals, make_batch
from torch import Tensor

from kdcore import (
    AttentionPart,
    AttentionPattern,
    AttentionTap,
    Batch,
    Encoder,
    ModelInfo,
    ScoreMaps,
    SignalRequest,
    Signals,
    TransformersModel,
)
from kdcore.models.architectures import ARCHITECTURES

LENGTHS = (13, 4, 20, 1, 9)
BLOCKS = range(4)
REQUEST = Signals.attention(["query", "key", "value"], BLOCKS)
PARTS: tuple[AttentionPart, ...] = ("query", "key", "value")

pytestmark = pytest.mark.usefixtures("one_thread")


def mask_of(window: int | None, bias: Tensor | None, lengths: np.ndarray, width: int) -> Tensor:
    """Build an additive mask (B, A or 1, L, L) query by query."""
    scores = torch.full((len(lengths), 1 if bias is None else bias.shape[1], width, width), -torch.inf)
    for row, length in enumerate(lengths):
        for query in range(length):
            for key in range(length):
                if window is None or abs(query - key) <= window:
                    shared = None if bias is None else bias[min(row, bias.shape[0] - 1), :, query, key]
                    scores[row, :, query, key] = 0.0 if shared is None else shared.float()
    return scores


def additive(mask: Tensor | None, like: Tensor) -> Tensor:
    """Return a mask in additive form."""
    if mask is None:
        return torch.zeros_like(like)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20)], ids=["ragged", "full"])
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@torch.no_grad()
def test_lengths_window_and_bias_give_the_blocks_mask(model_type, packs, lengths, saved_model, token_batch):
    model = TransformersModel(TransformersModel.Config(path=str(saved_model(model_type))), "teacher", None)
    encoder, batch = model.load_teacher(REQUEST).eval(), token_batch(lengths)
    encoder.packs = packs
    signals = encoder(batch, REQUEST)
    windows, biases = set(), set()
    for block in BLOCKS:
        (chunk,) = signals.heads("query", block)
        assert chunk.pattern is not None
        windows.add(chunk.pattern.window)
        biases.add(chunk.pattern.bias is not None)
        expected = mask_of(chunk.pattern.window, chunk.pattern.bias, batch.lengths, max(lengths))
        found = additive(chunk.mask, expected).expand(expected.shape)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[row, :, :length], expected[row, :, :length])
    assert windows == ({None, 3} if model_type == "modernbert" else {None})  # `local_attention` of 6 on both sides
    assert biases == {model_type == "mpnet"}


@pytest.mark.parametrize("packs", [True, False])
@torch.no_grad()
def test_packed_heads_are_the_real_tokens_of_the_chunks(packs, saved_model, token_batch):
    model = TransformersModel(TransformersModel.Config(path=str(saved_model("modernbert"))), "teacher", None)
    encoder, batch = model.load_teacher(REQUEST).eval(), token_batch(LENGTHS, 23)
    encoder.packs = packs
    signals = encoder(batch, REQUEST)
    for block in BLOCKS:
        for part in PARTS:
            (chunk,) = signals.heads(part, block)
            packed = signals.packed_heads(part, block)
            rows = [chunk.states[row, :, :length].transpose(0, 1) for row, length in enumerate(LENGTHS)]
            torch.testing.assert_close(packed.states, torch.cat(rows))
            assert packed.offsets.tolist() == [0, *np.cumsum(LENGTHS)]
            assert packed.offsets.dtype == torch.int32
            assert (packed.longest, packed.scale, packed.pattern) == (20, chunk.scale, chunk.pattern)


class PlainEncoder(Encoder):
    """Attention of one block, delivered in the form that the test selects."""

    def __init__(self, form: str, window: int | None, info: ModelInfo) -> None:
        super().__init__()
        self.form, self.window, self.info = form, window, info
        generator = torch.Generator().manual_seed(7)
        self.table = torch.nn.Parameter(torch.randn(60, 3, 2, 4, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(1, 2, 30, 30, generator=generator))

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Look up query, key and value (B, A, L, d_k)."""
        states = self.table[batch.input_ids].permute(2, 0, 3, 1, 4).unbind(0)
        width = batch.input_ids.shape[1]
        pattern = AttentionPattern(self.window, self.bias[..., :width, :width])
        if self.form == "mask":  # as encoders of kdcore 0.1
            tap = AttentionTap(*states, pattern.mask(batch), 0.5)
        elif self.form == "pattern":
            tap = AttentionTap(*states, None, 0.5, pattern)
        else:
            tokens = [part.transpose(1, 2).flatten(0, 1)[batch.token_index] for part in states]
            tap = AttentionTap(*tokens, None, 0.5, pattern, packed=True)
        return Signals(batch, {}, {0: tap}, {})

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write nothing."""


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("form", ["mask", "pattern", "packed"])
def test_an_encoder_of_a_package_serves_attention_losses_in_every_form(form, window, token_batch):
    """The reference computes each query's divergence by itself, from the table and the bias."""
    info = ModelInfo("plain", 1, 8, 2, 4, 60, 30)
    batch, encoder = token_batch((9, 5, 1)), PlainEncoder(form, window, info).double()
    teacher = PlainEncoder("mask", window, info).double()
    with torch.no_grad():
        teacher.table.mul_(0.3)
    request = Signals.attention(["query", "key"], [0])
    student = encoder(batch, request)
    loss = ScoreMaps.attention(student, 0).kl_from(ScoreMaps.attention(teacher(batch, request), 0))
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
    encoder.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(batch.lengths):
        tokens = batch.input_ids[row, :length]
        for head in range(2):
            for query in range(length):
                keys = [key for key in range(length) if window is None or abs(query - key) <= window]
                logs = [
                    (
                        one.table[tokens[query], 0, head] @ one.table[tokens[keys], 1, head].T * 0.5
                        + one.bias[0, head, query, keys]
                    ).log_softmax(-1)
                    for one in (encoder, teacher)
                ]
                total = total + (logs[1].exp() * (logs[1] - logs[0])).sum()
    total.backward()
    torch.testing.assert_close(loss, total)
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_the_conformance_kit_serves_packed_heads() -> None:
    queries = torch.arange(48.0).reshape(2, 2, 3, 4)
    real = np.array([[True, True, False], [True, True, True]])
    batch = make_batch(real, np.zeros_like(real), np.zeros(real.shape, dtype=np.int64))
    packed = RecordingSignals(batch, {("query", 0): queries}).packed_heads("query", 0)
    torch.testing.assert_close(packed.states, queries.transpose(1, 2).reshape(6, 2, 4)[[0, 1, 3, 4, 5]])
    assert packed.offsets.tolist() == [0, 2, 5]
