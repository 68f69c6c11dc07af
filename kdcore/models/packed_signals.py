"""Return the signals of a network that computed real tokens only."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from kdcore.models.capture import Capture
from kdcore.models.packing import Packing
from kdcore.signals import AttentionPart, Batch, Block, HeadChunk, Positions, Signals


class PackedSignals(Signals):
    """Signals of a network that received only real tokens: states are (1, N, d)."""

    def __init__(
        self,
        batch: Batch,
        packing: Packing,
        capture: Capture,
        logits: dict[Positions, Tensor],
        class_logits: Tensor | None,
    ) -> None:
        super().__init__(batch, capture.hidden, capture.attention, logits, class_logits)
        self._packing = packing
        self._masks: dict[int, Tensor] = {}
        self._heads: dict[tuple[AttentionPart, int], Tensor] = {}

    def tokens(self, block: Block) -> Tensor:
        """Return the hidden states of the real tokens after `block`: (N, d)."""
        return self._hidden[block].squeeze(0)

    def first(self, block: Block) -> Tensor:
        """Return the hidden states of each sequence's first token after `block`: (B, d)."""
        return self._hidden[block].squeeze(0).index_select(0, self._packing.first)

    def heads(self, part: AttentionPart, block: int) -> Iterator[HeadChunk]:
        """Yield query, key or value of `block` as one chunk, with zeros in the padding."""
        tap = self._attention[block]
        if (part, block) not in self._heads:
            states: Tensor = getattr(tap, part)
            self._heads[part, block] = self._packing.padded(states.squeeze(0).transpose(0, 1)).transpose(1, 2)
        if block not in self._masks:
            self._masks[block] = self._packing.whole_mask(tap.mask)
        yield HeadChunk(
            self._heads[part, block],
            self._masks[block],
            self._batch.attention_mask,
            tap.scale,
            lengths=self._batch.lengths,
            only_padding=tap.mask is None,
        )
