"""The choice of attention for unpadded tokens, and the calls that follow, with kernels of a GPU in float64 on a CPU."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdcore.models import packing
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.packing import (
    AttentionCall,
    AttentionKernels,
    Packing,
    choose_attention_path,
    countable_attention,
)
from kdcore.models.transformers import TransformersModel
from kdcore.relations import ScoreMaps
from kdcore.signals import AttentionPattern, Signals

LENGTHS = (13, 4, 20, 1)
TORCH_2_10 = frozenset({"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "is_causal", "return_aux"})
TORCH_2_11 = TORCH_2_10 - {"is_causal"} | {"scale", "window_size"}
A100 = AttentionKernels("cuda", (8, 0), TORCH_2_11)
PLAIN = AttentionCall(torch.bfloat16, 64, 64**-0.5, dropout=False, mask="none")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("kernels", "call", "kernel", "head_size", "reason"),
    [
        (A100, PLAIN, "varlen_attn", 64, "supports"),
        (A100, replace(PLAIN, dtype=torch.float16), "varlen_attn", 64, "supports"),
        (A100, replace(PLAIN, mask="window"), "varlen_attn", 64, "supports"),
        (A100, replace(PLAIN, head_size=26, scale=26**-0.5), "varlen_attn", 32, "supports"),
        (A100, replace(PLAIN, head_size=256, scale=0.1), "varlen_attn", 256, "supports"),
        (A100, replace(PLAIN, head_size=257), "padded", 257, "256"),
        (A100, replace(PLAIN, dtype=torch.float32), "padded", 64, "found float32"),
        (A100, replace(PLAIN, mask="other"), "padded", 64, "no bias or mask"),
        (A100, replace(PLAIN, dropout=True), "padded", 64, "flash-attn is not installed"),
        (replace(A100, flash_attn=True), replace(PLAIN, dropout=True), "flash_attn", 64, "no dropout"),
        (replace(A100, flash_attn=True), replace(PLAIN, head_size=26, dropout=True), "flash_attn", 32, "no dropout"),
        (replace(A100, flash_attn=True), replace(PLAIN, mask="other", dropout=True), "padded", 64, "no bias or mask"),
        (replace(A100, capability=(7, 5), flash_attn=True), PLAIN, "padded", 64, "7.5"),
        (replace(A100, capability=(7, 0)), PLAIN, "padded", 64, "7.0"),
        (replace(A100, capability=(12, 0)), PLAIN, "varlen_attn", 64, "supports"),
        (replace(A100, varlen=None), PLAIN, "padded", 64, "has no varlen_attn"),
        (replace(A100, varlen=None, flash_attn=True), PLAIN, "flash_attn", 64, "has no varlen_attn"),
        (replace(A100, varlen=TORCH_2_10), PLAIN, "varlen_attn", 64, "supports"),
        (replace(A100, varlen=TORCH_2_10), replace(PLAIN, scale=1.0), "padded", 64, "no scale"),
        (replace(A100, varlen=TORCH_2_10), replace(PLAIN, head_size=26, scale=26**-0.5), "padded", 26, "no scale"),
        (replace(A100, varlen=TORCH_2_10), replace(PLAIN, mask="window"), "padded", 64, "no window_size"),
        (AttentionKernels("xpu"), PLAIN, "padded", 64, "found xpu"),
        (AttentionKernels("cpu"), PLAIN, "sequences", 64, "CPU"),
    ],
)
def test_the_path_follows_from_the_preconditions_of_the_kernels(kernels, call, kernel, head_size, reason):
    path = choose_attention_path(call, kernels)
    assert (path.kernel, path.head_size) == (kernel, head_size)
    assert reason in path.reason


def reference(query, key, value, ends, scale, window):
    """Attention of each sequence by its definition, in float64."""
    outputs = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        own, theirs, values = (states[start:end].double().transpose(0, 1) for states in (query, key, value))
        scores = own @ theirs.transpose(1, 2) * scale
        places = torch.arange(end - start)
        if window >= 0:
            scores = scores.masked_fill((places[:, None] - places).abs() > window, -torch.inf)
        outputs.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


class Gpu:
    """The kernels of a GPU, which compute on the CPU and check what those of a GPU check."""

    def __init__(self, monkeypatch, kernels):
        self.calls = []
        monkeypatch.setattr(AttentionKernels, "of", lambda device: kernels)
        # float64 replaces half precision, so that results can be compared exactly.
        monkeypatch.setattr(
            packing,
            "choose_attention_path",
            lambda call, kernels: choose_attention_path(replace(call, dtype=torch.bfloat16), kernels),
        )
        arguments = kernels.varlen or frozenset()

        def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
            if options.keys() - arguments:
                raise TypeError(f"unexpected keyword arguments {options.keys() - arguments}")
            self.check(query, key, value, cu_seq_q, max_q)
            window = options.get("window_size", (-1, -1))[0]
            scale = options.get("scale") or query.shape[-1] ** -0.5
            self.calls.append(("varlen_attn", tuple(query.shape), window))
            return reference(query, key, value, cu_seq_q, scale, window)

        def flash_attn_varlen_func(
            query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, **more
        ):
            self.check(query, key, value, cu_seqlens_q, max_seqlen_q)
            window = more.get("window_size", (-1, -1))[0]
            self.calls.append(("flash_attn", dropout_p, more["deterministic"]))
            return reference(query, key, value, cu_seqlens_q, softmax_scale, window)

        monkeypatch.setattr(packing, "_varlen_attention", lambda: varlen_attn)
        module = ModuleType("flash_attn")
        module.flash_attn_varlen_func = flash_attn_varlen_func
        monkeypatch.setitem(sys.modules, "flash_attn", module)

    def check(self, query, key, value, ends, longest):
        assert query.shape == key.shape == value.shape
        assert query.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
        assert ends.dtype == torch.int32
        assert ends[0] == 0
        assert ends[-1] == len(query)
        assert longest == int(ends.diff().max())


def encoder_of(path, request):
    teacher = TransformersModel(TransformersModel.Config(path=str(path)), "teacher", None)
    return teacher.load_teacher(request).eval().double()


@torch.no_grad()
@pytest.mark.parametrize("arguments", [TORCH_2_10, TORCH_2_11], ids=["torch 2.10", "torch 2.11"])
@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "mpnet"])
def test_a_model_computes_the_same_with_the_kernels_of_a_gpu(
    model_type, heads, arguments, saved_model, token_batch, monkeypatch
):
    request = Signals.hidden([0, 3]) | Signals.attention(["query", "key"], [3])
    # Head sizes 16, 8 and 4, of which the last has to be padded.
    encoder, batch = encoder_of(saved_model(model_type, num_attention_heads=heads), request), token_batch(LENGTHS, 24)
    wanted = encoder(batch, request)
    gpu = Gpu(monkeypatch, replace(A100, varlen=arguments))
    found = encoder_of(saved_model(model_type, num_attention_heads=heads), request)(batch, request)
    for block in (0, 3):
        torch.testing.assert_close(found.tokens(block), wanted.tokens(block), rtol=1e-10, atol=1e-10)
    for one, other in zip(found.heads("query", 3), wanted.heads("query", 3), strict=True):
        torch.testing.assert_close(one.states, other.states, rtol=1e-10, atol=1e-10)
    called = [kernel for kernel, *_ in gpu.calls]
    windows = [window for *_, window in gpu.calls]
    if model_type == "mpnet" or (heads == 8 and arguments is TORCH_2_10):
        assert called == []
    elif model_type == "modernbert" and arguments is TORCH_2_10:
        assert windows == [-1, -1]  # blocks with windows are padded
    elif model_type == "modernbert":
        assert windows == [-1, 3, 3, -1]  # `local_attention: 6` keeps 3 tokens on each side
    else:
        assert windows == [-1] * 4
        assert {shape[2] for _, shape, _ in gpu.calls} == {max(8, 32 // heads)}


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_windows_use_the_kernel_without_padding_too(model_type, saved_model, token_batch, monkeypatch):
    """torch's other kernels would compute the whole map of every sequence and mask it."""
    request = Signals.hidden([0, 3]) | Signals.attention(["query"], [1, 3])
    encoder, batch = encoder_of(saved_model(model_type), request), token_batch((20, 20, 20))
    wanted = encoder(batch, request)
    gpu = Gpu(monkeypatch, A100)
    found = encoder_of(saved_model(model_type), request)(batch, request)
    for block in (0, 3):
        torch.testing.assert_close(found.tokens(block), wanted.tokens(block), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.first(block), wanted.first(block), rtol=1e-10, atol=1e-10)
    for block in (1, 3):
        own, theirs = (ScoreMaps.relations(signals, "query", block) for signals in (found, wanted))
        assert own.squared_error_from(theirs) < 1e-12
        for one, other in zip(found.heads("query", block), wanted.heads("query", block), strict=True):
            assert (one.mask is None) == (other.mask is None)
            assert one.mask is None or torch.equal(one.mask.expand_as(other.mask), other.mask)
    assert [window for *_, window in gpu.calls] == ([-1, 3, 3, -1] if model_type == "modernbert" else [])


def test_padded_heads_have_the_gradients_of_the_own_size(token_batch, monkeypatch):
    batch, count = token_batch(LENGTHS, 24), sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(count, 2, 26, generator=generator, dtype=torch.float64) for _ in range(3)]
    results = []
    for kernels in (None, A100):
        if kernels is not None:
            Gpu(monkeypatch, kernels)
        states = [one.clone().requires_grad_() for one in start]
        output = Packing(batch).attend(*states, None, 0.0, 26**-0.5)
        assert output.shape == (1, count, 2, 26)
        output.square().sum().backward()
        results.append([output.detach(), *(one.grad for one in states)])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("installed", [True, False])
def test_dropout_of_attention_uses_flash_attn_where_it_is_installed(installed, token_batch, monkeypatch, caplog):
    gpu = Gpu(monkeypatch, replace(A100, flash_attn=installed))
    states = torch.randn(sum(LENGTHS), 2, 32, dtype=torch.float64)
    with caplog.at_level(logging.INFO, "kdcore"):
        output = Packing(token_batch(LENGTHS, 24)).attend(states, states, states, None, 0.1, 32**-0.5)
    assert output.shape == (1, sum(LENGTHS), 2, 32)
    assert gpu.calls == ([("flash_attn", 0.1, False)] if installed else [])
    assert ("flash_attn, because" if installed else "padded, because") in caplog.text


def test_flash_attn_is_deterministic_where_torch_has_to_be(token_batch, monkeypatch):
    gpu = Gpu(monkeypatch, replace(A100, flash_attn=True))
    states = torch.randn(sum(LENGTHS), 2, 32, dtype=torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        Packing(token_batch(LENGTHS, 24)).attend(states, states, states, None, 0.1, 32**-0.5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert gpu.calls == [("flash_attn", 0.1, True)]


def test_operations_of_attention_are_counted_on_real_tokens(token_batch, monkeypatch):
    gpu = Gpu(monkeypatch, A100)
    states = torch.randn(sum(LENGTHS), 2, 32, dtype=torch.float64)
    math = sdpa_kernel(SDPBackend.MATH)  # torch does not count its fused kernel for CPUs
    with countable_attention(), math, FlopCounterMode(display=False) as counter:
        Packing(token_batch(LENGTHS, 24)).attend(states, states, states, None, 0.0, 32**-0.5)
    assert gpu.calls == []
    assert counter.get_total_flops() == sum(2 * 2 * length**2 * 64 for length in LENGTHS)


@torch.no_grad()
def test_a_model_chooses_once_and_logs_the_reason(saved_model, token_batch, monkeypatch, caplog):
    request = Signals.hidden([3])
    encoder, batch = encoder_of(saved_model("modernbert"), request), token_batch(LENGTHS, 24)
    Gpu(monkeypatch, replace(A100, varlen=TORCH_2_10))
    with caplog.at_level(logging.INFO, "kdcore"):
        for _ in range(3):
            encoder(batch, request)
    whole, windows = caplog.messages
    assert "modernbert" in whole
    assert "varlen_attn, because" in whole
    assert "windows" in windows
    assert "padded, because" in windows
    assert "no window_size" in windows


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_masks_are_made_once_a_batch_whatever_the_number_of_blocks(model_type, saved_model, token_batch, monkeypatch):
    request = Signals.hidden([3]) | Signals.attention(["query"], [0, 1, 2, 3])
    encoder, batch = encoder_of(saved_model(model_type), request), token_batch(LENGTHS, 24)
    Gpu(monkeypatch, replace(A100, capability=(7, 5)))
    made, extended = [], Packing._extended
    monkeypatch.setattr(Packing, "_extended", lambda self, mask: made.append(mask) or extended(self, mask))
    signals = encoder(batch, request)
    for block in range(4):
        signals.heads("query", block)
    assert len(made) == (2 if model_type == "modernbert" else 1)


@pytest.mark.parametrize("model_type", ["mpnet", "modernbert"])
def test_shared_masks_have_the_gradients_of_blocks_that_are_recomputed(
    model_type, saved_model, token_batch, monkeypatch
):
    """A learned bias is a part of MPNet's mask."""
    request, gradients = Signals.hidden([3]), []
    Gpu(monkeypatch, replace(A100, capability=(7, 5)))
    for recomputes in (False, True):
        encoder = encoder_of(saved_model(model_type), request).train()
        if recomputes:
            encoder.checkpoint_gradients()
        torch.manual_seed(1)
        encoder(token_batch(LENGTHS, 24), request).tokens(3).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-12, msg=name)


def test_a_window_without_a_known_mask_is_left_to_the_padded_path(token_batch, monkeypatch):
    gpu = Gpu(monkeypatch, A100)
    states = torch.randn(sum(LENGTHS), 2, 32, dtype=torch.float64)
    mask = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
    output = Packing(token_batch(LENGTHS, 24)).attend(states, states, states, mask, 0.0, 1.0, AttentionPattern())
    torch.testing.assert_close(output[0, 0], states[0])  # the first token attends to itself only
    assert gpu.calls == []
