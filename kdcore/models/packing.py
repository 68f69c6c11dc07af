"""Real tokens only: the sequences of a padded batch, one behind the other in a single row.

Everything in an encoder but attention works token by token, and so does not care where one sequence ends and the next
begins as long as each token is told its position. Attention is computed sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kdcore.signals import Batch

_varlen_attention: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attention
except ImportError:  # torch before 2.10
    _varlen_attention = None


class Packing:
    """Where the real tokens of a padded batch stand when there is nothing else.

    Attributes:
        width: L, the length that sequences are padded to.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.width = int(batch.input_ids.shape[1])
        lengths = batch.lengths.tolist()
        self._runs = [(len(list(run)), length) for length, run in groupby(lengths)]

    def model_inputs(self, position_offset: int, token_types: Tensor | None) -> dict[str, Tensor]:
        """What a base model is called with: a single row of N tokens, and each one's position."""
        inputs = {"input_ids": self.packed(self._batch.input_ids), "position_ids": self._columns[None]}
        inputs["position_ids"] = inputs["position_ids"] + position_offset
        if token_types is not None:
            inputs["token_type_ids"] = self.packed(token_types)
        return inputs

    def packed(self, padded: Tensor) -> Tensor:
        """The real tokens' entries (1, N) of (B, L)."""
        return padded.reshape(-1).index_select(0, self._batch.token_index)[None]

    def rows_of(self, flat_index: Tensor) -> Tensor:
        """Where tokens stand among the real ones, given their flat positions in the padded batch."""
        return torch.searchsorted(self._batch.token_index, flat_index)

    @cached_property
    def first(self) -> Tensor:
        """(B,): where each sequence begins."""
        sequences = torch.arange(self._batch.num_sequences, device=self._batch.token_index.device)
        return self.rows_of(sequences * self.width)

    @cached_property
    def _columns(self) -> Tensor:
        return self._batch.token_index % self.width

    def means(self, states: Tensor) -> Tensor:
        """The mean (B, d) over each sequence's tokens of states (N, d)."""
        rows = self._batch.token_index // self.width
        sums = states.new_zeros((self._batch.num_sequences, states.shape[-1])).index_add(0, rows, states)
        assert self._batch.attention_mask is not None
        return sums / self._batch.attention_mask.sum(1, keepdim=True)

    def padded(self, states: Tensor) -> Tensor:
        """(B, L, ...) with zeros in the padding, of (N, ...)."""
        size = self._batch.num_sequences * self.width
        whole = states.new_zeros((size, *states.shape[1:])).index_copy(0, self._batch.token_index, states)
        return whole.view(-1, self.width, *states.shape[1:])

    def whole_mask(self, mask: Tensor | None) -> Tensor:
        """A block's mask for all sequences, broadcastable to (B, A, L, L), of its own for one of whole length.

        Queries in the padding see what the block itself lets them see, so that no row is empty.
        """
        assert self._batch.attention_mask is not None
        rows = self._batch.attention_mask
        if mask is None:
            return rows[:, None, None, :]
        if mask.is_floating_point():
            return torch.where(rows[:, None, None, :], mask, torch.finfo(mask.dtype).min)
        return (mask & rows[:, None, None, :]) | ~rows[:, None, :, None]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
    ) -> Tensor:
        """Attention of each sequence to itself: (1, N, A, d_k), of three tensors (1, A, N, d_k).

        Args:
            query: of all real tokens.
            key: likewise.
            value: likewise.
            mask: the block's own for one sequence of length L, broadcastable to (1, A, L, L); None without one.
            dropout: share of the attention probabilities that is dropped.
            scale: factor on the products.
        """
        tokens = [states.squeeze(0).transpose(0, 1) for states in (query, key, value)]
        if query.device.type == "cpu":
            output = self._attend_in_turn(tokens, mask, dropout, scale)
        elif mask is None and dropout == 0 and query.dtype in (torch.float16, torch.bfloat16) and _varlen_attention:
            ends, longest = self._ends, self._longest
            output = _varlen_attention(*tokens, ends, ends, longest, longest, scale=scale)
        else:
            output = self._attend_padded(tokens, mask, dropout, scale)
        return output[None]

    def _attend_in_turn(self, tokens: list[Tensor], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        """One call for each run of sequences of the same length: each is cheap where there is no device to start."""
        sizes = [count * length for count, length in self._runs]
        outputs = []
        for (count, length), *parts in zip(self._runs, *(torch.split(states, sizes) for states in tokens), strict=True):
            query, key, value = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in parts)
            seen = None if mask is None else mask[..., :length, :length]
            output = scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scale)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)

    def _attend_padded(self, tokens: list[Tensor], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        """One call for all, with padding, which only attention then computes."""
        query, key, value = (self.padded(states).transpose(1, 2) for states in tokens)
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=self.whole_mask(mask), dropout_p=dropout, scale=scale
        )
        return output.transpose(1, 2).flatten(0, 1).index_select(0, self._batch.token_index)

    @cached_property
    def _ends(self) -> Tensor:
        last = self._batch.token_index.new_full((1,), self._batch.num_tokens)
        return torch.cat([self.first, last]).to(torch.int32)

    @cached_property
    def _longest(self) -> int:
        return int(self._batch.lengths.max())
