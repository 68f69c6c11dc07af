"""Run MPNet's attention on the fused kernel; transformers has no setting to replace its own implementation."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from kdcore.models.attention import tapped_attention
from kdcore.models.capture import current_capture


def position_bias(encoder: Any, states: Tensor) -> Tensor:
    """Replace the encoder's `compute_position_bias`: (B, A, L, L), or (1, A, L, L) for packed states (1, N, d)."""
    capture = current_capture()
    if capture is not None and capture.packing is not None:
        states = states.new_empty((1, capture.packing.width))
    bias: Tensor = type(encoder).compute_position_bias(encoder, states)
    if capture is not None and capture.packing is not None:
        capture.packing.prepare_whole_mask(bias)
    return bias


class FusedMPNetAttention(nn.Module):
    """Replacement for transformers' `MPNetSelfAttention` with the same weights under the same names.

    The relative position bias, shared by all blocks, becomes part of the mask.
    """

    is_causal = False  # read by the kernel

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.num_heads: int = original.num_attention_heads
        self.q, self.k, self.v, self.o = original.q, original.k, original.v, original.o
        self.dropout = original.dropout

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor]:
        """Compute attention, with the signature that transformers expects.

        Args:
            hidden_states: (B, L, d).
            attention_mask: bool, broadcastable to (B, A, L, L), as created by kdcore's mask function.
            position_bias: (B, A, L, L), added to the scores.
            output_attentions: must be false, because the kernel does not return probabilities.
        """
        assert not output_attentions
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        dropout = self.dropout.p if self.training else 0.0
        output, _ = tapped_attention(
            self, query, key, value, attention_mask, position_bias=position_bias, dropout=dropout
        )
        return (self.o(output.flatten(2)),)


def use_fused_attention(base: nn.Module) -> None:
    """Replace the attention of every block with the fused attention; parameter names do not change."""
    encoder: Any = base.get_submodule("encoder")
    encoder.compute_position_bias = MethodType(position_bias, encoder)
    blocks = base.get_submodule("encoder.layer")
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        attention = block.get_submodule("attention")
        attention.attn = FusedMPNetAttention(attention.attn)
