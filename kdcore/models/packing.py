"""Pack the real tokens of a padded batch into a single row, one sequence after another.

Everything in an encoder except attention is computed per token, so sequence boundaries do not matter as long as each
token has its position. Attention is computed per sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kdcore.layers import at_least_float32
from kdcore.signals import Batch

_varlen_attention: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attention
except ImportError:  # torch before 2.10
    _varlen_attention = None


class Packing:
    """The layout of a padded batch's real tokens in a single row.

    Attributes:
        width: L, the padded length of sequences.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.width = int(batch.input_ids.shape[1])
        lengths = batch.lengths.tolist()
        self._runs = [(len(list(run)), length) for length, run in groupby(lengths)]

    def model_inputs(self, position_offset: int, token_types: Tensor | None) -> dict[str, Tensor]:
        """Return the inputs of a base model: a single row of N tokens with their positions."""
        inputs = {"input_ids": self.packed(self._batch.input_ids), "position_ids": self._columns[None]}
        inputs["position_ids"] = inputs["position_ids"] + position_offset
        if token_types is not None:
            inputs["token_type_ids"] = self.packed(token_types)
        return inputs

    def packed(self, padded: Tensor) -> Tensor:
        """Select the entries of real tokens (1, N) from (B, L)."""
        return padded.reshape(-1).index_select(0, self._batch.token_index)[None]

    def rows_of(self, flat_index: Tensor) -> Tensor:
        """Convert flat positions in the padded batch to positions among the real tokens."""
        return torch.searchsorted(self._batch.token_index, flat_index)

    @cached_property
    def first(self) -> Tensor:
        """Return the start position of each sequence: (B,)."""
        sequences = torch.arange(self._batch.num_sequences, device=self._batch.token_index.device)
        return self.rows_of(sequences * self.width)

    @cached_property
    def _columns(self) -> Tensor:
        return self._batch.token_index % self.width

    def means(self, states: Tensor) -> Tensor:
        """Average states (N, d) over the tokens of each sequence: (B, d)."""
        rows = self._batch.token_index // self.width
        precise = at_least_float32(states)  # a GPU would round a sum in half precision after every token
        sums = precise.new_zeros((self._batch.num_sequences, states.shape[-1])).index_add(0, rows, precise)
        assert self._batch.attention_mask is not None
        return (sums / self._batch.attention_mask.sum(1, keepdim=True)).to(states.dtype)

    def padded(self, states: Tensor) -> Tensor:
        """Unpack (N, ...) to (B, L, ...), with zeros in the padding."""
        size = self._batch.num_sequences * self.width
        whole = states.new_zeros((size, *states.shape[1:])).index_copy(0, self._batch.token_index, states)
        return whole.view(-1, self.width, *states.shape[1:])

    def whole_mask(self, mask: Tensor | None) -> Tensor:
        """Extend a block's mask for one sequence of full length to all sequences, broadcastable to (B, A, L, L).

        Padding queries keep the block's mask, so that no row is empty.
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
        """Compute attention within each sequence: (1, N, A, d_k).

        Args:
            query: (N, A, d_k), of all real tokens.
            key: likewise.
            value: likewise.
            mask: the block's mask for one sequence of length L, broadcastable to (1, A, L, L), or None.
            dropout: fraction of the attention probabilities to drop.
            scale: factor on the products.
        """
        tokens = [query, key, value]
        if query.device.type == "cpu":
            output = self._attend_in_turn(tokens, mask, dropout, scale)
        elif mask is None and dropout == 0 and query.dtype in (torch.float16, torch.bfloat16) and _varlen_attention:
            ends, longest = self._ends, self._longest
            output = _varlen_attention(*tokens, ends, ends, longest, longest, scale=scale)
        else:
            output = self._attend_padded(tokens, mask, dropout, scale)
        return output[None]

    def _attend_in_turn(self, tokens: list[Tensor], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        """Call the kernel once per run of sequences of equal length; on a CPU, calls have little overhead."""
        sizes = [count * length for count, length in self._runs]
        outputs = []
        for (count, length), *parts in zip(self._runs, *(torch.split(states, sizes) for states in tokens), strict=True):
            query, key, value = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in parts)
            seen = None if mask is None else mask[..., :length, :length]
            output = scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scale)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)

    def _attend_padded(self, tokens: list[Tensor], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        """Call the kernel once for all sequences; only attention is computed on padding."""
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
