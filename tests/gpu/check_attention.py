"""Attention over packed sequences against its definition in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from recording import Setting
from torch import Tensor

from kdcore.models.packing import AttentionCall, AttentionKernels, Packing, choose_attention_path
from kdcore.signals import AttentionPattern, Batch

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the norm of the difference, relative to the norm of the reference."""
DRAWS = 32


def make_batch(lengths: Sequence[int]) -> Batch:
    """Return a padded batch with sequences of these lengths."""
    real = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    none = torch.zeros(0, dtype=torch.long)
    ids = torch.zeros(real.shape, dtype=torch.long)
    index = torch.from_numpy(np.flatnonzero(real))
    return Batch(ids, torch.from_numpy(real), np.asarray(lengths), index, none, none)


def reference(
    tokens: Sequence[Tensor], lengths: Sequence[int], window: int | None, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Return output and gradients (N, A, d) by the definition, in float64, one sequence after the other."""
    query, key, value = (states.double().requires_grad_() for states in tokens)
    outputs, scale = [], query.shape[-1] ** -0.5
    parts = (torch.split(states, list(lengths)) for states in (query, key, value))
    for q, k, v in zip(*parts, strict=True):
        scores = torch.einsum("iad,jad->aij", q, k) * scale
        if window is not None:
            place = torch.arange(len(q), device=q.device)
            scores = scores.masked_fill((place[:, None] - place).abs() > window, -torch.inf)
        outputs.append(torch.einsum("aij,jad->iad", scores.softmax(-1), v))
    output = torch.cat(outputs)
    return (output.detach(), *torch.autograd.grad(output, (query, key, value), upstream.double()))


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def attend(
    batch: Batch, tokens: Sequence[Tensor], window: int | None, dropout: float, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Return output and gradients (N, A, d) as kdcore computes them."""
    query, key, value = (states.clone().requires_grad_() for states in tokens)
    packing, mask, pattern = Packing(batch), None, AttentionPattern(window, None)
    if window is not None:
        place = torch.arange(packing.width, device=query.device)
        mask = ((place[:, None] - place).abs() <= window)[None, None]
    output = packing.attend(query, key, value, mask, dropout, query.shape[-1] ** -0.5, pattern)[0]
    return (output.detach(), *torch.autograd.grad(output, (query, key, value), upstream))


def check_attention(setting: Setting) -> None:
    """Compare forward and gradient for every dtype, head size, length and window; then check dropout."""
    findings, device = setting.findings, torch.device(setting.device)
    short = [[13, 1, 40, 7]] if setting.small else [[13, 1, 128, 77], [700, 512, 1]]
    sizes = (6, 8) if setting.small else (26, 32, 64, 80)
    cases = [(size, lengths, None) for size in sizes for lengths in short]
    cases += [(sizes[-2], short[0], 5), (sizes[-2], [200, 1] if setting.small else [8192, 1], None)]
    cases += [] if setting.small else [(64, [8192, 300], 64)]
    errors: dict[str, tuple[str, float]] = {}
    for size, lengths, window in cases:
        heads = 4 if max(lengths) < 4096 else 2
        generator = torch.Generator().manual_seed(size)
        shape = (sum(lengths), heads, size)
        # Values of bf16 are exact in every other dtype, so that one reference serves all.
        drawn = [torch.randn(shape, generator=generator).bfloat16().to(device) for _ in range(4)]
        expected = reference(drawn[:3], lengths, window, drawn[3])
        batch = make_batch(lengths).to(device)
        for dtype, limit in TOLERANCE.items():
            *tokens, upstream = (states.to(dtype) for states in drawn)
            name = f"{dtype} size {size} lengths {lengths} window {window}".removeprefix("torch.")
            found = attend(batch, tokens, window, 0.0, upstream)
            error = max(relative(one, other) for one, other in zip(found, expected, strict=True))
            call = AttentionCall(dtype, size, size**-0.5, False, "none" if window is None else "window")
            kernel = choose_attention_path(call, AttentionKernels.of(device)).kernel
            errors[name] = (kernel, error)
            findings.note("errors", errors)
            findings.expect(error < limit, f"{name}: error {error:.1e} of {kernel}, expected below {limit:.0e}")
    _dropout(setting, sizes[-2], short[0])
    _means(setting)


def _dropout(setting: Setting, size: int, lengths: Sequence[int]) -> None:
    """Check that the mean over draws approaches the value without dropout, and that gradients use the same draw."""
    device, generator = torch.device(setting.device), torch.Generator().manual_seed(0)
    drawn = [torch.randn((sum(lengths), 4, size), generator=generator).bfloat16().to(device) for _ in range(4)]
    expected = reference(drawn[:3], lengths, None, drawn[3])[0]
    batch = make_batch(lengths).to(device)
    torch.manual_seed(0)
    for dtype, limit in TOLERANCE.items():
        name = f"{dtype} with dropout".removeprefix("torch.")
        *tokens, upstream = (states.to(dtype) for states in drawn)
        mean, identity = torch.zeros_like(expected), 0.0
        for _ in range(DRAWS):
            output, *_, gradient = attend(batch, tokens, None, 0.1, upstream)
            mean += output.double() / DRAWS
            # The output is linear in the values: <output, upstream> = <values, gradient> for one draw.
            forward, backward = (output.double() * upstream).sum(), (tokens[2].double() * gradient).sum()
            scale = output.double().norm() * upstream.double().norm()
            identity = max(identity, float((forward - backward).abs() / scale))
        once, many = relative(output, expected), relative(mean, expected)
        setting.findings.note(name, {"one draw": once, f"mean of {DRAWS}": many, "gradient": identity})
        setting.findings.expect(once > 0.1, f"{name}: nothing is dropped (difference {once:.1e})")
        setting.findings.expect(many < 0.15, f"{name}: the mean over draws is biased (difference {many:.2f})")
        setting.findings.expect(identity < limit, f"{name}: the gradient is that of another draw ({identity:.1e})")


def _means(setting: Setting) -> None:
    """Check the mean over the tokens of a sequence, which half precision must not accumulate."""
    lengths = [100, 3] if setting.small else [2048, 2000]
    states = 1 + torch.randn(sum(lengths), 64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([part.double().mean(0) for part in torch.split(states, lengths)])
    batch = make_batch(lengths).to(torch.device(setting.device))
    for dtype, limit in TOLERANCE.items():
        error = relative(Packing(batch).means(states.to(setting.device, dtype)).cpu(), expected)
        name = f"{dtype} mean over tokens".removeprefix("torch.")
        setting.findings.note(name, error)
        setting.findings.expect(error < limit, f"{name}: error {error:.1e}, expected below {limit:.0e}")
