"""Capture the requested signals of one forward pass with hooks on the network.

The hooks store only the number of their block, so that a network can be copied. Captured tensors are stored in the
active `Capture`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdcore.models.packing import Packing
from kdcore.signals import AttentionTap, Batch, Block, FactoredLogits, Positions, SignalRequest, Signals


class Capture:
    """The signals of one forward pass.

    Attributes:
        hidden: hidden states (B, L, d) returned by the requested blocks.
        attention: inputs of the attention kernel in the requested blocks.
        packing: layout of the tokens in a packed batch; None for a padded batch.
    """

    def __init__(self, request: SignalRequest, packing: Packing | None = None) -> None:
        self.packing = packing
        self.hidden: dict[Block, Tensor] = {}
        self.attention: dict[int, AttentionTap] = {}
        self._hidden_blocks = request.hidden_blocks
        self._tapped_blocks = {block for _, block in request.attention_parts}
        self._running: int | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Receive the tensors of hooks and kernel inside this context."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def enter(self, block: int) -> None:
        """Record that a block starts; the next kernel call belongs to it."""
        self._running = block

    def leave(self, block: Block, states: Tensor) -> None:
        """Store the output of a block or of the embeddings, if requested."""
        self._running = None
        if block in self._hidden_blocks:
            self.hidden[block] = states

    def tap(self, tap: AttentionTap) -> None:
        """Store the kernel inputs of the running block, if requested."""
        if self._running in self._tapped_blocks:
            assert self._running is not None
            self.attention[self._running] = tap

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Compute a block again as in this forward pass, without capturing anything."""
        token = _current.set(Capture(SignalRequest(), self.packing))
        try:
            yield
        finally:
            _current.reset(token)


class CallCapture(Capture):
    """The signals of a network without a description, which calls the attention kernel once in every block.

    Attributes:
        calls: number of calls of the kernel.
    """

    def __init__(self, request: SignalRequest) -> None:
        super().__init__(request)
        self.calls = 0

    def tap(self, tap: AttentionTap) -> None:
        """Store the kernel inputs of the block whose number equals the number of this call, if requested."""
        if self.calls in self._tapped_blocks:
            self.attention[self.calls] = tap
        self.calls += 1


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


_current: ContextVar[Capture | None] = ContextVar("capture", default=None)


def current_capture() -> Capture | None:
    """Return the capture of the running forward pass, or None."""
    return _current.get()


def watch_embeddings(embeddings: nn.Module) -> None:
    """Hook the module that makes the embedding output."""
    embeddings.register_forward_hook(partial(_leave, "embeddings"))


def watch_blocks(blocks: Iterable[nn.Module]) -> None:
    """Hook the blocks, which are counted from 0."""
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(partial(_enter, index))
        block.register_forward_hook(partial(_leave, index))


def watch_first_block_end(module: nn.Module) -> None:
    """Hook the module whose output replaces the output of the first block."""
    module.register_forward_hook(partial(_leave, 0))


def unwatch_blocks(blocks: Iterable[nn.Module]) -> None:
    """Remove from blocks the hooks that `watch_blocks` registered."""
    for block in blocks:
        for hooks in (block._forward_pre_hooks, block._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(hook, partial) and hook.func in (_enter, _leave):
                    del hooks[number]


def _enter(block: int, module: nn.Module, args: tuple[Any, ...]) -> None:
    capture = _current.get()
    if capture is not None:
        capture.enter(block)


def _leave(block: Block, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    capture = _current.get()
    if capture is not None:
        capture.leave(block, output if isinstance(output, Tensor) else output[0])
