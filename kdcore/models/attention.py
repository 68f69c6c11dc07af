"""Provide one attention function for all Hugging Face encoders. It captures the inputs of the fused kernel.

It is registered with transformers under the name `kdcore`. Query, key and value are captured at the kernel, after
rotary embedding and with the block's mask; hooks on the projections would miss both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kdcore.models.capture import current_capture
from kdcore.signals import AttentionPattern, AttentionTap

IMPLEMENTATION = "kdcore"


def tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention (with transformers' signature) and pass its inputs to the active capture.

    Args:
        module: the caller.
        query: (B, A, L, d_k).
        key: like `query`.
        value: like `query`.
        attention_mask: a boolean mask from kdcore's mask function, or an additive mask; None if nothing is masked.
        scaling: scale factor of the dot products; `d_k ** -0.5` if None.
        position_bias: added to the scaled scores, broadcastable to (B, A, L, L).
        sliding_window: a query only attends to keys at a smaller distance; the mask already includes this limit.
        kwargs: further arguments from transformers, such as `dropout`.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    pattern = None
    if attention_mask is None or attention_mask.dtype == torch.bool:
        pattern = AttentionPattern(None if sliding_window is None else sliding_window - 1, position_bias)
    if position_bias is not None:
        attention_mask = create_position_bias_mask(position_bias, attention_mask, False, query, key)
    capture = current_capture()
    if capture is not None and capture.packing is not None:
        query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
        capture.tap(AttentionTap(query, key, value, attention_mask, scale, pattern, packed=True))
        dropout = float(kwargs.get("dropout", 0.0))
        return capture.packing.attend(query, key, value, attention_mask, dropout, scale, pattern), None
    if capture is not None:
        capture.tap(AttentionTap(query, key, value, attention_mask, scale, pattern))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **kwargs)
    return output, None


def attention_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Build the mask for the fused kernel without reading its values.

    transformers checks whether the whole mask is true, which synchronises with the device at every step. Here, a batch
    without padding has no mask, so this check is not needed.

    For sequences packed in a single row, the result is the mask of one full-length sequence, which is either None or a
    window mask.
    """
    capture = current_capture()
    if capture is not None and capture.packing is not None:
        width = capture.packing.width
        window: Tensor | None = sdpa_mask(*args, **kwargs | {"batch_size": 1, "q_length": width, "kv_length": width})
        return window
    if attention_mask is not None:
        kwargs["allow_is_bidirectional_skip"] = False
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    if attention_mask is not None and mask is not None and kwargs.get("local_size") is not None:
        # A padding position without a real token in its window has an empty row, whose softmax is NaN in kernels and
        # losses; a later block would spread it to real tokens. The attention of padding does not affect any result.
        mask = mask | ~attention_mask[:, None, :, None]
    return mask


AttentionInterface.register(IMPLEMENTATION, tapped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, attention_mask)
