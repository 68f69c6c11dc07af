"""A Hugging Face encoder that answers signal requests and runs no block beyond the deepest one asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from kdcore.models.architectures import Architecture
from kdcore.models.base import Encoder
from kdcore.models.capture import Capture, watch
from kdcore.models.packed_signals import PackedSignals
from kdcore.models.packing import Packing
from kdcore.signals import Batch, ModelInfo, Positions, SignalRequest, Signals, select_rows


class ShortenedBlocks(nn.ModuleList):
    """A list of blocks that shows only the first `depth` to the forward pass; parameters and names stay whole."""

    depth: int | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        return islice(super().__iter__(), self.depth)


def _calls_kernel(module: nn.Module) -> bool:
    return hasattr(module, "is_causal")  # which transformers' attention functions read of the module that calls them


def _parts_beside_attention(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules that do not call the attention kernel, and consist of more than a single operation."""
    for child in module.children():
        if _calls_kernel(child):
            continue
        # What torch compiles are forward passes that are not its own, of which nn.Sequential's is one.
        if type(child).__module__.startswith("torch.") or any(_calls_kernel(part) for part in child.modules()):
            yield from _parts_beside_attention(child)
        elif any(True for _ in child.children()):
            yield child


class TransformersEncoder(Encoder):
    """Wraps a network of transformers; its forward pass is the network's own, shortened."""

    def __init__(self, network: nn.Module, architecture: Architecture, info: ModelInfo) -> None:
        """Take over `network`, a base model or one with a head, whose attention is kdcore's.

        `info` describes the whole model, of which the network may hold only the first blocks.
        """
        super().__init__()
        self.info = info
        self.architecture = architecture
        self.network = network
        self.packs = architecture.packs
        # Kept apart, so that the forward pass does not run it: at most a head reads it, but `AutoModel` expects it.
        self.pooler: nn.Module | None = None
        if getattr(self._base, "pooler", None) is not None:
            self.pooler, self._base.pooler = self._base.pooler, None
        blocks = ShortenedBlocks(architecture.block_list(self._base))
        self._base.set_submodule(architecture.blocks, blocks)
        watch(architecture.embedding_output(self._base), iter(blocks))
        self._takes_token_types = (
            getattr(self._base.config, "type_vocab_size", 0) > 1
            and "token_type_ids" in inspect.signature(self._base.forward).parameters
        )

    @property
    def _base(self) -> Any:
        return self.network.base_model

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run the embeddings and the blocks up to the deepest one asked for, and the head on the rows asked for."""
        depth = request.depth(self.info.num_layers)
        blocks = self.architecture.block_list(self._base)
        assert isinstance(blocks, ShortenedBlocks)
        blocks.depth = depth
        token_types = batch.token_types if self._takes_token_types else None
        packing = Packing(batch) if self.packs and batch.attention_mask is not None else None
        capture = Capture(request, packing)
        with capture.running():
            if packing is not None:
                inputs = packing.model_inputs(self.architecture.position_offset(self._base.config), token_types)
            else:
                inputs = {"input_ids": batch.input_ids} | (
                    {} if token_types is None else {"token_type_ids": token_types}
                )
            last: Tensor = self._base(attention_mask=None if packing else batch.attention_mask, **inputs)[0]
        if depth == self.info.num_layers and depth - 1 in capture.hidden:
            capture.hidden[depth - 1] = last  # after the final norm, where there is one
        logits: dict[Positions, Tensor] = {}
        for positions in request.prediction_positions:
            rows = self._rows(last, batch, packing, positions)
            logits[positions] = self.architecture.lm_head(self.network, rows)
        class_logits = None
        if request.class_logits:
            assert self.architecture.class_head is not None
            class_logits = self.architecture.class_head(self.network, self.pooler, self._pooled(last, batch, packing))
        if packing is not None:
            return PackedSignals(batch, packing, capture, logits, class_logits)
        return Signals(batch, capture.hidden, capture.attention, logits, class_logits)

    def _rows(self, last: Tensor, batch: Batch, packing: Packing | None, positions: Positions) -> Tensor:
        """States (rows, d) whose predictions are asked for."""
        if packing is None:
            return select_rows(last, batch.masked_index if positions == "masked" else batch.token_index)
        states = last.squeeze(0)
        return states if positions == "all" else states.index_select(0, packing.rows_of(batch.masked_index))

    def _pooled(self, last: Tensor, batch: Batch, packing: Packing | None) -> Tensor:
        """One state a sequence, (B, d), for the head on whole sequences."""
        mean = self.architecture.class_mean(self._base.config)
        if packing is not None:
            states = last.squeeze(0)
            return packing.means(states) if mean else states.index_select(0, packing.first)
        if not mean:
            return last[:, 0]
        if batch.attention_mask is None:
            return last.mean(1)
        mask = batch.attention_mask[..., None]
        return (last * mask).sum(1) / mask.sum(1)

    def compile_parts(self) -> None:
        """Compile what lies between one call of the attention kernel and the next: a graph of its own for each part.

        The kernel itself is one already, and what it is called with differs from batch to batch.
        """
        for block in self.architecture.block_list(self._base).children():
            for part in _parts_beside_attention(block):
                part.compile(fullgraph=True, dynamic=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the weights; buffers keep their precision.

        Rotary frequencies cast to half precision would turn late positions by wrong angles, and only in training: an
        exported student has them in float32 again.
        """
        precise = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in precise.items():
            module, _, last = name.rpartition(".")
            setattr(self.get_submodule(module), last, buffer.to(self.get_buffer(name).device))
        return self

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write config.json and model.safetensors in float32, with the pooler where `AutoModel` looks for it."""
        prefix = "" if self._base is self.network else f"{self.network.base_model_prefix}."
        state = {}
        for name, tensor in weights.items():
            if name.startswith("pooler."):
                state[f"{prefix}{name}"] = tensor
            else:
                state[name.removeprefix("network.")] = tensor
        # Of weights that are tied, the network is saved with one; loading ties them again.
        for tied in self.network.all_tied_weights_keys:  # type: ignore[union-attr]
            state.pop(tied, None)
        self.network.config.dtype = torch.float32
        transformers_logging.disable_progress_bar()
        self.architecture.save(self.network, folder, state)
