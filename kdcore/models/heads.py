"""Handle heads of transformers' Auto classes, and heads with their own modules, stored in separate files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from kdcore.errors import DataError, InputError
from kdcore.signals import FactoredLogits, Head, ModelInfo


def auto_class_of(head: Head | None) -> Any:
    """Return the Auto class of transformers for encoders with `head`, or for encoders without a head if it is None.

    Raises:
        InputError: transformers has no such class.
    """
    name = "AutoModel" if head is None else head.auto_class
    found = getattr(transformers, name, None)
    if found is None:
        raise InputError(f"transformers has no class `{name}`, which the head `{head.name}` names" if head else name)
    return found


def has_class(config: PreTrainedConfig, head: Head) -> bool:
    """Return whether transformers has a class of this model type with the head."""
    return head.auto_class != "AutoModel" and type(config) in auto_class_of(head)._model_mapping


def own_module(head: Head, info: ModelInfo) -> nn.Module | None:
    """Return a head's module without weights; None for a transformers head."""
    with torch.device("meta"):
        return head.module(info)


class GivenStates(nn.Module):
    """Replace a base model with a module that returns states computed earlier."""

    outputs: BaseModelOutputWithPooling | None = None

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the given states."""
        assert self.outputs is not None
        return self.outputs


def head_outputs(network: Any, states: Tensor, mask: Tensor | None, pooled: Tensor | None = None) -> Tensor:
    """Apply only the head of a transformers network.

    Args:
        network: a network of an Auto class whose output has `logits`.
        states: (B, L, d) last hidden states.
        mask: (B, L) true on real tokens; None without padding.
        pooled: (B, d) output of the base model's pooler; None if the head does not read it.

    Returns:
        (B, C) or (B, L, C).
    """
    given = GivenStates()
    given.outputs = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)
    with _replaced(network, network.base_model_prefix, given):
        logits: Tensor = network(inputs_embeds=states, attention_mask=mask).logits
    return logits


def head_only(network: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
    """Drop a network's base model, so that its head can be applied to the states of another base model.

    Args:
        network: a network with a head.
        base: the other base model. Head weights that were tied to the dropped base model are tied to this one.
    """
    prefix = f"{network.base_model_prefix}."
    for target, source in network.all_tied_weights_keys.items():
        if source.startswith(prefix) and not target.startswith(prefix):
            module, _, name = target.rpartition(".")
            setattr(network.get_submodule(module), name, base.get_parameter(source.removeprefix(prefix)))
    setattr(network, network.base_model_prefix, GivenStates())
    return network


def factored_logits(network: Any, lm_head: Callable[[Any, Tensor], Tensor], states: Tensor) -> FactoredLogits:
    """Apply a masked-LM head up to its final matrix product, so that no tensor of size (rows, V) is created.

    Args:
        network: a network with a masked-LM head.
        lm_head: function that applies the head to states (rows, d).
        states: (rows, d).

    Raises:
        InputError: the head does not end with a plain linear map.
    """
    decoder = network.get_output_embeddings()
    name = next((name for name, module in network.named_modules() if module is decoder), None)
    if not isinstance(decoder, nn.Linear) or name is None:
        raise InputError("the masked-LM head does not end with a linear map, so its predictions cannot be factored")
    with _replaced(network, name, nn.Identity()):
        before = lm_head(network, states)
    if before.shape[-1] != decoder.in_features:
        raise InputError("the masked-LM head changes the outputs of its linear map, so they cannot be factored")
    return FactoredLogits(before, decoder.weight, decoder.bias)


@contextmanager
def _replaced(network: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    """Replace a submodule within the context, without registering a change of parameters."""
    parent, _, last = name.rpartition(".")
    modules = network.get_submodule(parent)._modules
    before, modules[last] = modules[last], other
    try:
        yield
    finally:
        modules[last] = before


def head_file(folder: Path, name: str) -> Path:
    """Return the path of a head's own file in an exported folder, for a head with its own module."""
    return folder / f"head_{name}.safetensors"


def save_head(folder: Path, head: Head, info: ModelInfo, weights: Mapping[str, Tensor]) -> None:
    """Write the weights of a head's own module, with the descriptions of the head and of its model as metadata."""
    model = {one.name: getattr(info, one.name) for one in fields(info) if one.name != "heads"}
    # A single key: safetensors writes several keys in random order, and equal heads should produce equal files.
    metadata = {"kdcore": json.dumps({"head": asdict(head), "model": model})}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, head_file(folder, head.name), metadata)


def load_head(folder: Path | str, head: Head) -> nn.Module:
    """Load the module of a head from a student's exported folder, on the CPU in eval mode.

    Its forward pass maps the student's last hidden states, (N, d) of real tokens or (B, d) pooled by `head.pooling`, to
    outputs (N, C) or (B, C).

    Args:
        folder: the exported folder.
        head: the head as returned by the task's `heads`.

    Raises:
        DataError: the folder does not contain the head's weights, they do not match the module, or the head was saved
            with a different level or pooling.
        InputError: the head has no module.
    """
    path = head_file(Path(folder), head.name)
    if not path.is_file():
        there = sorted(one.stem.removeprefix("head_") for one in path.parent.glob("head_*.safetensors"))
        what = f"has no file {path.name}" if path.parent.is_dir() else "does not exist"
        raise DataError(f"the folder {what}", where=str(folder), allowed=there or None)
    try:
        with safe_open(path, "pt") as file:
            described = json.loads(file.metadata()["kdcore"])
            info = ModelInfo(**described["model"])
            saved = {key: described["head"][key] for key in ("level", "pooling")}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the head `{head.name}` cannot be read: {error}", where=str(path)) from error
    for key, value in saved.items():
        if value != getattr(head, key):
            what = f"the head `{head.name}` was saved with {key} `{value}`, but is loaded with `{getattr(head, key)}`"
            raise DataError(what, where=str(path), hint="pass the head that the task's `heads` returned in training")
    module = head.module(info)
    if module is None:
        raise InputError(f"the head `{head.name}` has no module: transformers loads it with {head.auto_class}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"the weights do not match the head `{head.name}`: {error}", where=str(path)) from error
    return module.eval()
