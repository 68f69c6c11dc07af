"""A Hugging Face encoder that answers signal requests and runs no block beyond the deepest one asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from kdcore.models.architectures import Architecture
from kdcore.models.attention import set_tap
from kdcore.models.base import Encoder
from kdcore.signals import AttentionTap, Batch, Block, ModelInfo, Positions, SignalRequest, Signals, select_rows


class _Blocks(nn.ModuleList):
    """A list of blocks that shows only the first `depth` to the forward pass; parameters and names stay whole."""

    depth: int

    def __iter__(self) -> Iterator[nn.Module]:
        return islice(super().__iter__(), self.depth)

    def __len__(self) -> int:
        return min(self.depth, len(self._modules))


class _Capture:
    """What one forward pass has been asked for, and has seen so far."""

    def __init__(self, request: SignalRequest) -> None:
        self.hidden_blocks = request.hidden_blocks
        self.tapped_blocks = {block for _, block in request.attention_parts}
        self.hidden: dict[Block, Tensor] = {}
        self.attention: dict[int, AttentionTap] = {}


class TransformersEncoder(Encoder):
    """Wraps a network of transformers; its forward pass is the network's own, shortened."""

    def __init__(self, network: nn.Module, architecture: Architecture, info: ModelInfo) -> None:
        """Take over `network`, a base model or a `...ForMaskedLM` one whose attention is kdcore's.

        `info` describes the whole model, of which the network may hold only the first blocks.
        """
        super().__init__()
        self.info = info
        self.architecture = architecture
        self.network = network
        # Kept apart, so that the forward pass does not run it: no signal reads it, but `AutoModel` expects it.
        self.pooler: nn.Module | None = None
        if getattr(self._base, "pooler", None) is not None:
            self.pooler, self._base.pooler = self._base.pooler, None
        self._capture: _Capture | None = None
        blocks = architecture.block_list(self._base)
        blocks.__class__ = _Blocks
        assert isinstance(blocks, _Blocks)
        blocks.depth = len(blocks._modules)
        self._blocks = [blocks]  # in a list: registered once, under its own name in the network
        for index, block in enumerate(blocks):
            self._watch(index, block)

    @property
    def _base(self) -> Any:
        return self.network.base_model

    def _watch(self, index: int, block: nn.Module) -> None:
        def keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._capture is not None and "embeddings" in self._capture.hidden_blocks:
                self._capture.hidden["embeddings"] = args[0]

        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._capture is not None and index in self._capture.hidden_blocks:
                self._capture.hidden[index] = output if isinstance(output, Tensor) else output[0]

        def keep_tap(tap: AttentionTap) -> None:
            if self._capture is not None and index in self._capture.tapped_blocks:
                self._capture.attention[index] = tap

        if index == 0:
            block.register_forward_pre_hook(keep_input)
        block.register_forward_hook(keep_output)
        set_tap(block, keep_tap)

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run the embeddings and the blocks up to the deepest one asked for, and the head on the rows asked for."""
        depth = request.depth(self.info.num_layers)
        self._blocks[0].depth = depth
        self._capture = capture = _Capture(request)
        try:
            output = self._base(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        finally:
            self._capture = None
        last: Tensor = output.last_hidden_state
        if depth == 0:
            capture.hidden["embeddings"] = last
        elif depth == self.info.num_layers and depth - 1 in capture.hidden:
            capture.hidden[depth - 1] = last  # after the final norm, where there is one
        logits: dict[Positions, Tensor] = {}
        for positions in request.prediction_positions:
            index = batch.masked_index if positions == "masked" else batch.token_index
            logits[positions] = self.architecture.lm_head(self.network, select_rows(last, index))
        return Signals(batch, capture.hidden, capture.attention, logits)

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write config.json and model.safetensors in float32, with the pooler where `AutoModel` looks for it."""
        prefix = "" if self._base is self.network else f"{self.network.base_model_prefix}."
        state = {}
        for name, tensor in weights.items():
            if name.startswith("pooler."):
                state[f"{prefix}{name}"] = tensor
            else:
                state[name.removeprefix("network.")] = tensor
        self.network.config.dtype = torch.float32
        transformers_logging.disable_progress_bar()
        self.network.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
