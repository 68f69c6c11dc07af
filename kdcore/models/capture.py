"""What one forward pass is asked for, and what hooks on the network saw of it.

The hooks hold nothing but the number of their block, so that a network can be copied; what they see goes to the pass
that is running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdcore.models.packing import Packing
from kdcore.signals import AttentionTap, Block, SignalRequest


class Capture:
    """The signals of one forward pass.

    Attributes:
        hidden: hidden states (B, L, d) as the blocks handed them on, of those asked for.
        attention: what the kernel got, of the blocks asked for.
        packing: how the tokens are laid out if there is no padding among them; None if there is.
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
        """Receive what hooks and kernel see while this lasts."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def enter(self, block: int) -> None:
        """A block starts: what the kernel gets from now on is its."""
        self._running = block

    def leave(self, block: Block, states: Tensor) -> None:
        """A block, or the embeddings, have handed on `states`."""
        self._running = None
        if block in self._hidden_blocks:
            self.hidden[block] = states

    def tap(self, tap: AttentionTap) -> None:
        """The kernel has been called."""
        if self._running in self._tapped_blocks:
            assert self._running is not None
            self.attention[self._running] = tap


_current: ContextVar[Capture | None] = ContextVar("capture", default=None)


def current_capture() -> Capture | None:
    """The capture of the forward pass that is running, if one is."""
    return _current.get()


def watch(embeddings: nn.Module, blocks: Iterator[nn.Module]) -> None:
    """Hook the module that makes the embedding output, and the blocks."""
    embeddings.register_forward_hook(partial(_leave, "embeddings"))
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(partial(_enter, index))
        block.register_forward_hook(partial(_leave, index))


def _enter(block: int, module: nn.Module, args: tuple[Any, ...]) -> None:
    capture = _current.get()
    if capture is not None:
        capture.enter(block)


def _leave(block: Block, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    capture = _current.get()
    if capture is not None:
        capture.leave(block, output if isinstance(output, Tensor) else output[0])
