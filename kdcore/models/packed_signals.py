"""Return the signals of a network that computed real tokens only."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kdcore.models.capture import Capture
from kdcore.models.packing import Packing
from kdcore.signals import Batch, Block, FactoredLogits, Positions, Signals


class PackedSignals(Signals):
    """Signals of a network that received only real tokens: states are (1, N, d)."""

    def __init__(
        self,
        batch: Batch,
        packing: Packing,
        capture: Capture,
        logits: Mapping[Positions, Tensor],
        factored: Mapping[Positions, FactoredLogits],
        heads: Mapping[str, Tensor],
    ) -> None:
        super().__init__(batch, capture.hidden, capture.attention, logits, factored=factored, heads=heads)
        self._packing = packing

    def tokens(self, block: Block) -> Tensor:
        """Return the hidden states of the real tokens after `block`: (N, d)."""
        return self._hidden[block].squeeze(0)

    def first(self, block: Block) -> Tensor:
        """Return the hidden states of each sequence's first token after `block`: (B, d)."""
        return self._hidden[block].squeeze(0).index_select(0, self._packing.first)

    def _mask(self, block: int) -> Tensor | None:
        """Return the dense mask of a block, broadcastable to (B, A, L, L)."""
        if block not in self._masks:
            self._masks[block] = self._packing.whole_mask(self._attention[block].mask)
        return self._masks[block]
