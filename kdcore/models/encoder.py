"""Run a Hugging Face encoder up to the deepest requested block and return the requested signals."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from kdcore.errors import InputError
from kdcore.layers import at_least_float32
from kdcore.models.architectures import Architecture
from kdcore.models.base import Encoder
from kdcore.models.capture import (
    Capture,
    PackedSignals,
    current_capture,
    unwatch_blocks,
    watch_blocks,
    watch_embeddings,
    watch_first_block_end,
)
from kdcore.models.configuration import with_blocks
from kdcore.models.heads import factored_logits, head_outputs, save_head
from kdcore.models.packing import AttentionCall, AttentionPaths, Packing
from kdcore.models.weight_loading import biases_of_head
from kdcore.signals import MASKED_LM, Batch, FactoredLogits, ModelInfo, Positions, SignalRequest, Signals, select_rows


class ShortenedBlocks(nn.ModuleList):
    """A list of blocks whose iteration stops after `depth`; parameters and their names are unchanged.

    With `recompute`, a training step keeps only the inputs of blocks and recomputes the rest in the backward pass.
    """

    depth: int | None = None
    recompute: bool = False

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = islice(super().__iter__(), self.depth)
        if self.recompute and self.training and torch.is_grad_enabled():
            return map(_RecomputedBlock, blocks)  # type: ignore[arg-type]
        return blocks


class _RecomputedBlock:
    """A block whose intermediate results are recomputed in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        capture = current_capture()
        assert capture is not None

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), capture.recomputing()

        return checkpoint(self._block, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _calls_kernel(module: nn.Module) -> bool:
    return hasattr(module, "is_causal")  # read by transformers' attention functions from the calling module


def _parts_beside_attention(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules that do not call the attention kernel and consist of more than one operation."""
    for child in module.children():
        if _calls_kernel(child):
            continue
        # torch does not compile the forward pass of its own modules, such as nn.Sequential.
        if type(child).__module__.startswith("torch.") or any(_calls_kernel(part) for part in child.modules()):
            yield from _parts_beside_attention(child)
        elif any(True for _ in child.children()):
            yield child


class TransformersEncoder(Encoder):
    """Wrap a network of transformers and run its forward pass up to the deepest requested block."""

    def __init__(
        self,
        network: nn.Module,
        architecture: Architecture,
        info: ModelInfo,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Wrap `network`, a base model or a model with a head; it must use kdcore's attention.

        Args:
            network: the network.
            architecture: description of its parts.
            info: description of the whole model; the network may contain only its first blocks.
            heads: further heads by name, each a separate module or a network of transformers without its base model.
        """
        super().__init__()
        self.info = info
        self.architecture = architecture
        self.network = network
        self.packs = architecture.packs
        self._attention_paths = AttentionPaths(f"{info.architecture} ({info.num_layers} blocks)")
        # Stored separately, so that the forward pass skips it: only a head may need it, but `AutoModel` expects it.
        self.pooler: nn.Module | None = None
        if self._skips_pooler and getattr(self._base, "pooler", None) is not None:
            self.pooler, self._base.pooler = self._base.pooler, None
        self.heads = nn.ModuleDict(heads or {})
        self._watch()
        parameters = inspect.signature(self._base.forward).parameters
        self.takes_token_types = getattr(self._base.config, "type_vocab_size", 0) > 1 and "token_type_ids" in parameters

    @property
    def _skips_pooler(self) -> bool:
        """Whether the forward pass of the base model works without its pooler."""
        return True

    def _watch(self) -> None:
        """Let the base model's forward pass end after any block, and capture hidden states."""
        blocks = ShortenedBlocks(self.architecture.block_list(self._base))
        self._base.set_submodule(self.architecture.blocks, blocks)
        watch_embeddings(self.architecture.embedding_output(self._base))
        watch_blocks(blocks)
        after = dict(self._base.named_modules()).get(self.architecture.after_first_block)
        if after is not None:
            watch_first_block_end(after)

    def head_parameters(self) -> list[str]:
        """Return the names of the parameters that the base model does not have."""
        base = [self._base, *filter(None, [self.pooler])]
        own = {id(parameter) for part in base for parameter in part.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) not in own]

    @property
    def _base(self) -> Any:
        return self.network.base_model

    @property
    def _blocks(self) -> ShortenedBlocks:
        blocks = self.architecture.block_list(self._base)
        assert isinstance(blocks, ShortenedBlocks)
        return blocks

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run the embeddings and the blocks up to the deepest requested one, and the head on the requested rows."""
        depth = request.depth(self.info.num_layers)
        self._blocks.depth = depth
        token_types = batch.token_types if self.takes_token_types else None
        packing = Packing(batch, self._attention_paths) if self._packs(batch) else None
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
            capture.hidden[depth - 1] = last  # after the final norm, if there is one
        return self._answer(batch, request, capture, last)

    def _packs(self, batch: Batch) -> bool:
        """Return whether to pack a batch. Unpadded batches are packed only for kernels that need no window mask."""
        if not self.packs or batch.attention_mask is not None:
            return self.packs
        config = self._base.config
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return False
        size, dtype = self.info.head_size, next(self._base.parameters()).dtype
        dropout = self.training and getattr(config, "attention_dropout", 0.0) > 0
        call = AttentionCall(dtype, size, size**-0.5, dropout, "window")
        return self._attention_paths.path(batch.input_ids.device, call).kernel in ("varlen_attn", "flash_attn")

    def _answer(
        self, batch: Batch, request: SignalRequest, capture: Capture, last: Tensor, pooled: Tensor | None = None
    ) -> Signals:
        """Apply the requested heads to the last hidden states, and return all signals.

        Args:
            batch: the batch.
            request: the request.
            capture: hidden states and inputs of the attention kernel.
            last: last hidden states (B, L, d), or (1, N, d) for a packed batch.
            pooled: (B, d) output of the base model's pooler, if it has run.
        """
        packing = capture.packing
        lm_network = self._network_of(MASKED_LM)
        logits: dict[Positions, Tensor] = {}
        for positions in request.prediction_positions:
            logits[positions] = self.architecture.lm_head(lm_network, self._rows(last, batch, packing, positions))
        factored: dict[Positions, FactoredLogits] = {}
        for positions in request.factored_positions:
            rows = self._rows(last, batch, packing, positions)
            factored[positions] = factored_logits(lm_network, self.architecture.lm_head, rows)
        heads = {name: self._outputs(name, last, pooled, batch, packing) for name in sorted(request.heads)}
        if packing is not None:
            return PackedSignals(batch, packing, capture, logits, factored, heads)
        return Signals(batch, capture.hidden, capture.attention, logits, factored=factored, heads=heads)

    def _network_of(self, name: str) -> nn.Module:
        """Return the network or module of a head."""
        module: nn.Module = self.heads[name] if name in self.heads else self.network  # noqa: SIM401
        return module

    def _outputs(self, name: str, last: Tensor, pooled: Tensor | None, batch: Batch, packing: Packing | None) -> Tensor:
        """Return the outputs of a head for all real tokens (N, C), or for sequences (B, C)."""
        head, network = self.info.head(name), self._network_of(name)
        assert head is not None
        own = not isinstance(network, PreTrainedModel)
        if head.level == "token":
            states = self._rows(last, batch, packing, "all")
            if not own:
                return head_outputs(network, states[None], None)[0]
        elif own and head.pooling == "own":
            states = self._rows(last, batch, packing, "all")
        elif own:
            states = self._pooled(last, batch, packing, head.pooling == "mean")
        if own:
            outputs: Tensor = network(states, batch.lengths) if head.pooling == "own" else network(states)
            return outputs
        if self.architecture.class_head is not None:
            mean = self.architecture.class_mean(self._base.config)
            return self.architecture.class_head(network, self.pooler, self._pooled(last, batch, packing, mean))
        states = last if packing is None else packing.padded(last.squeeze(0))
        if pooled is None and self.pooler is not None:
            pooled = self.pooler(states)
        return head_outputs(network, states, batch.attention_mask, pooled)

    def _rows(self, last: Tensor, batch: Batch, packing: Packing | None, positions: Positions) -> Tensor:
        """Select the states (rows, d) whose predictions are requested."""
        if packing is None:
            return select_rows(last, batch.masked_index if positions == "masked" else batch.token_index)
        states = last.squeeze(0)
        return states if positions == "all" else states.index_select(0, packing.rows_of(batch.masked_index))

    def _pooled(self, last: Tensor, batch: Batch, packing: Packing | None, mean: bool) -> Tensor:
        """Return one state per sequence (B, d): the mean over real tokens, or the state of the first token."""
        if packing is not None:
            states = last.squeeze(0)
            return packing.means(states) if mean else states.index_select(0, packing.first)
        if not mean:
            return last[:, 0]
        if batch.attention_mask is None:
            return last.mean(1)
        mask = batch.attention_mask[..., None]
        return ((at_least_float32(last) * mask).sum(1) / mask.sum(1)).to(last.dtype)

    def compile_parts(self) -> None:
        """Compile the parts between calls of the attention kernel, each as a separate graph.

        The kernel is already fused, and the shapes of its inputs vary from batch to batch.
        """
        for block in self._blocks.children():
            for part in _parts_beside_attention(block):
                part.compile(fullgraph=True, dynamic=True)

    def checkpoint_gradients(self) -> None:
        """Recompute each block from its inputs in the backward pass of training."""
        self._blocks.recompute = True

    def keep_blocks(self, blocks: Sequence[int]) -> None:
        """Drop all blocks except these, in the network and in its configuration."""
        before = self._blocks
        present = list(before.children())
        if not blocks or sorted(set(blocks)) != list(blocks) or not 0 <= blocks[0] <= blocks[-1] < len(present):
            raise InputError(f"blocks must be increasing numbers from 0 to {len(present) - 1}, found {list(blocks)}")
        if self.architecture.first_block_differs and blocks[0] != 0:
            raise InputError(f"a `{self.architecture.model_type}` requires its first block")
        unwatch_blocks(present)
        kept = ShortenedBlocks(present[block] for block in blocks)
        kept.recompute = before.recompute
        self._base.set_submodule(self.architecture.blocks, kept)
        watch_blocks(kept)
        previous = self.network.config
        config = with_blocks(previous, blocks)
        for module in self.network.modules():
            if getattr(module, "config", None) is previous:
                module.config = config
        self.info = replace(self.info, num_layers=len(blocks))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the weights; buffers keep their precision.

        Rotary frequencies in half precision would rotate late positions by wrong angles, and only during training,
        because an exported student has them in float32.
        """
        precise = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in precise.items():
            module, _, last = name.rpartition(".")
            setattr(self.get_submodule(module), last, buffer.to(self.get_buffer(name).device))
        return self

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write config.json and model.safetensors in float32, with the pooler where `AutoModel` expects it.

        Modules of heads are written to `head_NAME.safetensors`.
        """
        prefix = "" if self._base is self.network else f"{self.network.base_model_prefix}."
        state: dict[str, Tensor] = {}
        modules: dict[str, dict[str, Tensor]] = {name: {} for name in self.heads}
        for name, tensor in weights.items():
            if name.startswith("heads."):
                _, owner, rest = name.split(".", 2)
                modules[owner][rest] = tensor
            elif name.startswith("pooler."):
                state[f"{prefix}{name}"] = tensor
            else:
                state[name.removeprefix("network.")] = tensor
        for alias, bias in biases_of_head(self.network).items():
            state[bias] = state[alias].clone()
        # Tied weights are saved once; loading ties them again.
        for tied in self.network.all_tied_weights_keys:  # type: ignore[union-attr]
            state.pop(tied, None)
        transformers_logging.disable_progress_bar()
        self.architecture.save(self.network, folder, state)
        # transformers would write the training precision, to which loading would then round the weights.
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, own in modules.items():
            head = self.info.head(name)
            if head is not None and name not in self.unexported_heads:
                save_head(folder, head, self.info, own)

    @property
    def unexported_heads(self) -> tuple[str, ...]:
        """Return further heads of transformers, whose folders can contain only one head."""
        return tuple(name for name, module in self.heads.items() if isinstance(module, PreTrainedModel))
