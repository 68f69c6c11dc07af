"""Compute DeBERTa's disentangled attention with a fused kernel, as a bias on the scores of contents."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class FusedDisentangledAttention(nn.Module):
    """Replacement of transformers' `DisentangledSelfAttention` with the same weights under the same names.

    The score of a query i and a key j is `(q_i k_j + q_i r_ij + k_j s_ij) / sqrt(t d_k)`, where r and s are projections
    of the embedding of their relative position, and t is the number of terms (DeBERTa, section 3.1). The kernel
    computes the first term from the projections of contents; the other two are its position bias.
    """

    is_causal = False  # read by the kernel

    def __init__(self, original: Any, implementation: str) -> None:
        super().__init__()
        self.implementation = implementation
        self.num_heads: int = original.num_attention_heads
        self.query_proj, self.key_proj, self.value_proj = original.query_proj, original.key_proj, original.value_proj
        self.dropout = original.dropout
        listed = set(original.pos_att_type) & {"c2p", "p2c"}
        self.terms = listed if original.relative_attention else set()
        # Without relative attention transformers still counts the listed terms in its divisor.
        self.scale: float = (self.query_proj.out_features // self.num_heads * (1 + len(listed))) ** -0.5
        if not original.relative_attention:
            return
        self.span: int = original.pos_ebd_size
        self.pos_dropout = original.pos_dropout
        self.shares_projections: bool = original.share_att_key
        if not self.shares_projections and "c2p" in self.terms:
            self.pos_key_proj = original.pos_key_proj
        if not self.shares_projections and "p2c" in self.terms:
            self.pos_query_proj = original.pos_query_proj

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Compute attention; the signature is the same as in transformers.

        Args:
            hidden_states: (B, L, d).
            attention_mask: bool, broadcastable to (B, A, L, L); None without padding.
            output_attentions: must be false, because the kernel does not return probabilities.
            query_states: must be None: queries are projections of `hidden_states`.
            relative_pos: (1, L, L) distance of query and key, or its bucket.
            rel_embeddings: (2 * span, d) embeddings of relative positions.
        """
        assert not output_attentions
        assert query_states is None
        query = self._heads(self.query_proj(hidden_states))
        key = self._heads(self.key_proj(hidden_states))
        value = self._heads(self.value_proj(hidden_states))
        bias = None
        if self.terms:
            assert relative_pos is not None
            bias = self._position_bias(query, key, relative_pos[0], self.pos_dropout(rel_embeddings))
        attend = ALL_ATTENTION_FUNCTIONS[self.implementation]
        dropout = self.dropout.p if self.training else 0.0
        output, _ = attend(
            self, query, key, value, attention_mask, scaling=self.scale, position_bias=bias, dropout=dropout
        )
        return output.flatten(2), None

    def _heads(self, states: Tensor) -> Tensor:
        """Split (..., n, d) into heads (..., A, n, d_k)."""
        return states.view(*states.shape[:-1], self.num_heads, -1).transpose(-3, -2)

    def _position_bias(self, query: Tensor, key: Tensor, relative: Tensor, table: Tensor) -> Tensor:
        """Compute the scaled scores between contents and relative positions: (B, A, L, L)."""
        rows = (relative + self.span).clamp(0, 2 * self.span - 1)  # (L, L), query by key
        table = table[: 2 * self.span]
        scores = query.new_zeros(())
        if "c2p" in self.terms:
            project = self.key_proj if self.shares_projections else self.pos_key_proj
            by_position = query @ self._heads(project(table)).transpose(-1, -2)  # (B, A, L, 2 * span)
            scores = scores + by_position.gather(-1, rows.expand(*query.shape[:3], -1))
        if "p2c" in self.terms:
            project = self.query_proj if self.shares_projections else self.pos_query_proj
            by_position = key @ self._heads(project(table)).transpose(-1, -2)
            scores = scores + by_position.gather(-1, rows.T.expand(*key.shape[:3], -1)).transpose(-1, -2)
        return self.scale * scores


def run_blocks(encoder: Any, hidden_states: Tensor, attention_mask: Tensor, **kwargs: Any) -> BaseModelOutput:
    """Replace the encoder's forward pass: run any number of blocks, and omit the mask if there is no padding.

    Args:
        encoder: transformers' `DebertaV2Encoder`.
        hidden_states: (B, L, d) output of the embeddings.
        attention_mask: (B, L) bool; without padding, the floating-point tensor of ones that the base model creates.
        kwargs: settings of the outputs of transformers' encoder, which are ignored.
    """
    padded = attention_mask.dtype == torch.bool
    mask = attention_mask[:, None, None, :] if padded else None
    relative, table = encoder.get_rel_pos(hidden_states), encoder.get_rel_embedding()
    states = hidden_states
    for index, block in enumerate(encoder.layer):
        states, _ = block(states, mask, relative_pos=relative, rel_embeddings=table)
        if index == 0 and encoder.conv is not None:
            states = encoder.conv(hidden_states, states, attention_mask.long())
    return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


def use_fused_attention(base: Any) -> None:
    """Replace the attention of every block of a base model; names of parameters do not change."""
    encoder, implementation = base.encoder, base.config._attn_implementation
    encoder.forward = MethodType(run_blocks, encoder)
    for block in encoder.layer:
        block.attention.self = FusedDisentangledAttention(block.attention.self, implementation)
