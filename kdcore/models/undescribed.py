"""Support encoders of transformers without a description: examine what they compute, and read their outputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig

from kdcore.errors import DataError
from kdcore.models.architectures import Architecture, padding_offset
from kdcore.models.attention import IMPLEMENTATION
from kdcore.models.base import Encoder
from kdcore.models.capture import CallCapture
from kdcore.models.configuration import reason_of, with_num_layers
from kdcore.models.encoder import TransformersEncoder
from kdcore.models.heads import head_outputs
from kdcore.signals import Batch, SignalRequest, Signals

_LENGTHS = (9, 4)
_VOCABULARY = 200
_TOLERANCE = 1e-4
"""Tolerance for equal states, relative to the largest value; the order of summation causes smaller differences."""


class UndescribedEncoder(TransformersEncoder):
    """Wrap a network of transformers of unknown structure. It always runs all blocks, on padded rows."""

    @property
    def _skips_pooler(self) -> bool:
        """Whether the forward pass of the network works without the base model's pooler."""
        return "ForSequenceClassification" not in type(self.network).__name__

    def _watch(self) -> None:
        """Do nothing: outputs are read after the forward pass."""

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run the whole network, and heads on the requested rows."""
        mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
        types = (
            {"token_type_ids": batch.token_types} if self.takes_token_types and batch.token_types is not None else {}
        )
        capture = CallCapture(request)
        with capture.running():
            output = self._base(
                input_ids=batch.input_ids,
                attention_mask=mask,
                output_hidden_states=bool(request.hidden_blocks),
                return_dict=True,
                **types,
            )
        for block in request.hidden_blocks:
            capture.hidden[block] = output.hidden_states[0 if block == "embeddings" else block + 1]
        return self._answer(batch, request, capture, output[0], getattr(output, "pooler_output", None))

    def compile_parts(self) -> None:
        """Reject compilation."""
        Encoder.compile_parts(self)

    def checkpoint_gradients(self) -> None:
        """Reject checkpointing."""
        Encoder.checkpoint_gradients(self)

    def keep_blocks(self, blocks: Sequence[int]) -> None:
        """Refuse to drop blocks."""
        Encoder.keep_blocks(self, blocks)


def examine(config: PreTrainedConfig, architecture: Architecture, where: str) -> Architecture:
    """Complete an architecture without a description by examining a small network of its type.

    Raises:
        DataError: the model is not an encoder whose states of real tokens are independent of padding.
    """
    stated = tuple(sorted((key, repr(value)) for key, value in config.to_dict().items() if key != "architectures"))
    if (architecture.model_type, stated) not in _examined:
        torch_state = torch.get_rng_state()
        try:
            _examined[architecture.model_type, stated] = _examine(config, architecture)
        except _UnsupportedError as reason:
            raise DataError(
                f"`{architecture.model_type}` is not supported by the model `transformers`: {reason}",
                where=where,
                hint="a package can add support with a subclass of kdcore.Model, registered in the group "
                "`kdcore.models`",
            ) from reason.__cause__
        finally:
            torch.set_rng_state(torch_state)
    return _examined[architecture.model_type, stated]


_examined: dict[tuple[str, tuple[tuple[str, str], ...]], Architecture] = {}


class _UnsupportedError(Exception):
    """Raised with the reason why a model is not supported."""


@torch.no_grad()
def _examine(config: PreTrainedConfig, architecture: Architecture) -> Architecture:
    if getattr(config, "is_encoder_decoder", False):
        raise _UnsupportedError("it is an encoder with a decoder")
    small = _shortened(config)
    base = _network(AutoModel, small, "eager")
    for name in ("input_ids", "attention_mask"):
        if name not in inspect.signature(base.forward).parameters:
            raise _UnsupportedError(f"its forward pass has no argument `{name}`")
    usual = torch.tensor(sorted(set(range(small.vocab_size)) - _special_ids(config)))
    tokens = usual[torch.arange(len(_LENGTHS) * max(_LENGTHS)) * 7 % len(usual)].view(len(_LENGTHS), -1)
    mask = (torch.arange(tokens.shape[1]) < torch.tensor(_LENGTHS)[:, None]).long()
    together = _states(base, small, tokens, mask)
    short = min(_LENGTHS)
    alone = _states(base, small, tokens[1:, :short], mask[1:, :short])
    for block, (one, other) in enumerate(zip(alone, together, strict=True)):
        if not _equal(one[0], other[1, :short]):
            raise _UnsupportedError(f"its hidden state {block} of real tokens depends on the length of the padding")
    changed = tokens.clone()
    changed[0, -1] = usual[len(usual) // 2]
    if _equal(_states(base, small, changed, mask)[-1][0, 0], together[-1][0, 0]):
        raise _UnsupportedError("its states of a token do not depend on the tokens after it, as in a decoder")
    changes: dict[str, Any] = {"blocks": _block_list(config)}
    if _has_positions_after_padding(base):
        changes["position_offset"] = padding_offset
    if architecture.lm_head_classes and not _applies_head(small, tokens, mask):
        changes["lm_head_classes"] = ()
    if _calls_kernel_in_every_block(base, small, tokens, mask):
        changes["attention"] = IMPLEMENTATION
    return replace(architecture, **changes)


def _shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration with only a few blocks and token ids, if its class supports this."""
    changed = copy.deepcopy(config)
    try:
        changed = with_num_layers(changed, min(2, config.num_hidden_layers))
    except Exception:  # some classes do not allow the number of blocks to be set
        changed = copy.deepcopy(config)
    changed.vocab_size = min(config.vocab_size, max([_VOCABULARY, *(token + 1 for token in _special_ids(config))]))
    return changed


def _special_ids(config: PreTrainedConfig) -> set[int]:
    stated = config.to_dict()
    return {value for key, value in stated.items() if key.endswith(("_id", "_index")) and isinstance(value, int)}


def _network(auto: Any, config: PreTrainedConfig, attention: str) -> Any:
    """Create a network with random weights that let every input change the outputs."""
    try:
        network = auto.from_config(copy.deepcopy(config), attn_implementation=attention).float().eval()
    except Exception as error:
        raise _UnsupportedError(f"the network cannot be built: {reason_of(error)}") from error
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return network


def _states(base: Any, config: PreTrainedConfig, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the hidden states of the embeddings and of every block, each (B, L, d)."""
    try:
        output = base(input_ids=tokens, attention_mask=mask, output_hidden_states=True, return_dict=True)
        states: tuple[Tensor, ...] = output.hidden_states
    except Exception as error:
        raise _UnsupportedError(f"its forward pass on token ids fails: {reason_of(error)}") from error
    if len(states) != config.num_hidden_layers + 1:
        raise _UnsupportedError(
            f"the number of its hidden states is {len(states)} (expected one more than the number of its blocks, "
            f"{config.num_hidden_layers})"
        )
    expected = (*tokens.shape, config.hidden_size)
    for block, one in enumerate(states):
        if tuple(one.shape) != expected:
            raise _UnsupportedError(f"its hidden state {block} has the shape {tuple(one.shape)}, not {expected}")
    return states


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def _block_list(config: PreTrainedConfig) -> str:
    """Return the path of the outermost list with one entry per block; empty unless there is exactly one."""
    with torch.device("meta"):
        base = AutoModel.from_config(copy.deepcopy(config))
    found: list[str] = []
    for name, module in base.named_modules():
        whole = isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
        if whole and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found[0] if len(found) == 1 else ""


def _has_positions_after_padding(base: nn.Module) -> bool:
    """Return whether positions start after the padding id, as in RoBERTa."""
    tables = [module for name, module in base.named_modules() if name.endswith("position_embeddings")]
    return any(isinstance(table, nn.Embedding) and table.padding_idx is not None for table in tables)


def _applies_head(config: PreTrainedConfig, tokens: Tensor, mask: Tensor) -> bool:
    """Return whether a masked-LM head computes the same predictions from given states."""
    network, real = _network(AutoModelForMaskedLM, config, "eager"), mask.bool()
    try:
        logits = network(input_ids=tokens, attention_mask=mask).logits
        states = network.base_model(input_ids=tokens, attention_mask=mask, return_dict=True)[0]
        return _equal(head_outputs(network, states[real][None], None)[0], logits[real])
    except Exception:  # the head may need more than states
        return False


def _calls_kernel_in_every_block(base: Any, config: PreTrainedConfig, tokens: Tensor, mask: Tensor) -> bool:
    """Return whether the network computes the same result with kdcore's attention, called once in every block."""
    if not getattr(base, "_supports_attention_backend", False):
        return False
    tapped = _network(AutoModel, config, IMPLEMENTATION)
    tapped.load_state_dict(base.state_dict())
    layers, real = range(config.num_hidden_layers), mask.bool()
    capture = CallCapture(Signals.attention(["query"], layers))
    with capture.running():
        states = _states(tapped, config, tokens, mask)
    shape = (tokens.shape[0], config.num_attention_heads, tokens.shape[1])
    taps = [capture.attention.get(block) for block in layers]
    complete = all(tap is not None and tap.query.shape[:3] == tap.key.shape[:3] == shape for tap in taps)
    same = zip(states, _states(base, config, tokens, mask), strict=True)
    return complete and capture.calls == len(layers) and all(_equal(one[real], other[real]) for one, other in same)
