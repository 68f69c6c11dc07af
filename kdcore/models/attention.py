"""One attention function for all Hugging Face encoders: the fused kernel, with a tap on what goes into it.

It is registered with transformers under the name `kdcore`. Query, key and value are read where the kernel gets them,
that is after rotary embedding and with the block's own mask; hooks on the projections would miss both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kdcore.models.capture import current_capture
from kdcore.signals import AttentionTap

IMPLEMENTATION = "kdcore"


def tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention (the signature is transformers'), showing its inputs to the running capture."""
    capture = current_capture()
    if capture is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        capture.tap(AttentionTap(query, key, value, attention_mask, scale))
        if capture.packing is not None:
            dropout = float(kwargs.get("dropout", 0.0))
            return capture.packing.attend(query, key, value, attention_mask, dropout, scale), None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output, None


def attention_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask for the fused kernel, made without looking at its values.

    transformers asks whether the whole mask is true, which waits for the device at every step. A batch without padding
    comes with no mask at all, so the question has been answered on the host.

    Of sequences in a single row it is the mask of one sequence of whole length: None, or a window.
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
        # Padding with no real token inside its window would see nothing, and its softmax would be NaN, in kernels as in
        # losses; a later block would carry that into real tokens. What padding sees is nobody's concern.
        mask = mask | ~attention_mask[:, None, :, None]
    return mask


AttentionInterface.register(IMPLEMENTATION, tapped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, attention_mask)
