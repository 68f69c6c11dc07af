"""Load the weights of Hugging Face models, and compare them with config.json."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from kdcore.errors import DataError
from kdcore.models.architectures import Architecture
from kdcore.models.attention import IMPLEMENTATION
from kdcore.models.configuration import reason_of, with_num_layers
from kdcore.utils.lfs import refuse_pointers

logger = logging.getLogger("kdcore")

_WRAPPERS = {
    "module": "torch's DistributedDataParallel or an engine",
    "_orig_mod": "torch.compile",
    "model": "a training framework",
}
"""Wrappers that add a prefix to the names of a network's weights."""
_CLASS_HEADS: dict[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
"""Auto classes for heads with labelled outputs, by the suffix of their class names."""
_WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Loaded:
    """A loaded network, and the weights that are random because they were missing or mismatched.

    Attributes:
        network: the network.
        missing: names of missing weights.
        mismatched: found and expected sizes of mismatched weights, by name.
        unexpected: names of weights in the files that the network does not have.
    """

    network: PreTrainedModel
    missing: set[str]
    mismatched: Mapping[str, tuple[Any, Any]]
    unexpected: frozenset[str] = frozenset()

    @property
    def head(self) -> set[str]:
        """Names of a head's weights: all weights outside the base model."""
        prefix = f"{self.network.base_model_prefix}."
        if self.network.base_model is self.network:
            return set()
        return {name for name in self.network.state_dict() if not name.startswith(prefix)}

    @property
    def random(self) -> set[str]:
        """Names of the weights that are random."""
        return self.missing | set(self.mismatched)


def load_weights(
    auto: Any,
    path: str,
    config: PreTrainedConfig,
    attention: str,
    *,
    trust: bool,
    dtype: torch.dtype = torch.float32,
) -> Loaded:
    """Load weights in one precision; run the model's custom code only if `trust` is set.

    Args:
        auto: the Auto class of transformers.
        path: folder or hub name.
        config: the configuration, possibly with fewer blocks.
        attention: name of the attention function.
        trust: whether to run custom code.
        dtype: precision of the weights; they are loaded in this precision without a second copy of all weights.

    Raises:
        DataError: the weights are missing or not finite, or the custom code fails.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # do not report blocks and heads that are not loaded on purpose
    transformers_logging.disable_progress_bar()
    try:
        network, report = auto.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust,
            weights_only=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except UnpicklingError as error:
        refuse_pointers(Path(path), _WEIGHT_FILES)
        raise DataError(
            "pytorch_model.bin contains objects other than weights and was not loaded, because they could run code",
            where=path,
            hint="ask the author for model.safetensors",
        ) from error
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError, MemoryError),
        SafetensorError,
    ) as error:
        if trust and isinstance(error, (TypeError, LookupError, AttributeError)):
            raise DataError(f"the model's custom code failed: {error!r}", where=path) from error
        refuse_pointers(Path(path), _WEIGHT_FILES)
        raise DataError(
            f"the model's weights cannot be loaded: {reason_of(error)}",
            where=path,
            hint="the folder must contain a model.safetensors (or pytorch_model.bin) that matches config.json",
        ) from error
    except Exception as error:
        if not trust:
            raise
        raise DataError(f"the model's custom code failed: {error!r}", where=path) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = set(report["missing_keys"])
    # Weights that are missing in the files are not always initialised, for example the bias of Data2Vec's head.
    _refuse_not_finite({name: one for name, one in network.state_dict().items() if name not in missing}, path)
    for alias, bias in biases_of_head(network).items():
        if alias in missing and bias not in missing:  # transformers before 5 saved them once
            _set_parameter(network, alias, network.get_parameter(bias))
            missing.discard(alias)
    mismatched = {name: (found, needed) for name, found, needed in report["mismatched_keys"]}
    return Loaded(network, missing, mismatched, frozenset(report["unexpected_keys"]))


def biases_of_head(network: nn.Module) -> dict[str, str]:
    """Map the name of an output matrix's bias to its other name; empty if the bias has only one name."""
    pairs = getattr(network, "_tied_weights_keys", None) or {}
    return {alias: name for alias, name in pairs.items() if alias.endswith(".bias")}


def tie_biases(network: PreTrainedModel) -> None:
    """Make both names of an output matrix's bias refer to one parameter, even if the matrix itself is separate.

    transformers 5 then reads one name, and earlier versions the other.
    """
    for alias, bias in biases_of_head(network).items():
        _set_parameter(network, bias, network.get_parameter(alias))


def _set_parameter(network: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, parameter)


def _refuse_not_finite(weights: Mapping[str, Tensor], path: str) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise DataError(
                f"`{name}` contains NaN or infinity (found {count:,} of {tensor.numel():,} values, expected none)",
                where=path,
                hint="the model diverged when it was trained, or the file is damaged: use another copy or checkpoint",
            )


def refuse_incomplete(loaded: Loaded, path: str) -> None:
    """Reject a model with missing or mismatched weights.

    Raises:
        DataError: a weight is missing or mismatched; the message names the first one.
    """
    model_type = loaded.network.config.model_type
    if loaded.missing:
        first = min(loaded.missing)
        prefix, wrapper = _wrapper(loaded, first)
        if wrapper:
            raise DataError(
                f"the names of its weights start with `{prefix}` (found `{prefix}{first}`, expected `{first}`)",
                where=path,
                hint=f"they were saved from a network that was wrapped by {wrapper}: save the inner network with "
                "save_pretrained, or rename the weights",
            )
        raise DataError(
            f"{len(loaded.missing)} weights are missing, the first is `{first}`",
            where=path,
            hint=f"config.json describes a complete `{model_type}`: check that the weights belong to it",
        )
    for name, (found, needed) in sorted(loaded.mismatched.items()):
        raise DataError(
            f"the shape of `{name}` does not match config.json (found {tuple(found)}, expected {tuple(needed)})",
            where=path,
            hint=f"config.json and the weights belong to different `{model_type}` models",
        )


def _wrapper(loaded: Loaded, missing: str) -> tuple[str, str]:
    """Return the prefix that a wrapper has added to the names in the files, and the wrapper; empty if there is none."""
    base = f"{loaded.network.base_model_prefix}."
    wanted = missing.removeprefix(base)
    for name in sorted(loaded.unexpected):
        if name.endswith(f".{wanted}"):
            prefix = name.removesuffix(wanted).removesuffix(base)
            for part in prefix.split("."):
                if part in _WRAPPERS:
                    return prefix, _WRAPPERS[part]
    return "", ""


def adapt_to_weights(path: str, config: PreTrainedConfig, architecture: Architecture, *, trust: bool) -> None:
    """Correct a configuration's keys for heads and tied embeddings to match the weights.

    This loads the embeddings, the first block and the heads. Afterwards, `architectures` names a head if and only if
    all its weights exist, and `tie_word_embeddings` is false if the output matrix differs from the embeddings. Blocks
    that the configuration leaves out are reported with a warning.

    Raises:
        DataError: weights of the embeddings or of the first block are missing or do not match.
    """
    first = with_num_layers(config, 1) if architecture.described else config
    auto = AutoModelForMaskedLM if architecture.lm_head_classes else AutoModel
    loaded = load_weights(auto, path, first, architecture.attention, trust=trust)
    network, head = loaded.network, loaded.head
    poolers = {name for name in loaded.missing if "pooler." in name}
    mismatched = {name: sizes for name, sizes in loaded.mismatched.items() if name not in head}
    refuse_incomplete(replace(loaded, missing=loaded.missing - poolers - head, mismatched=mismatched), path)
    _warn_of_unused_blocks(loaded.unexpected, config, architecture, path)
    named = list(config.architectures or ())
    if architecture.lm_head_classes:
        lacking = head & loaded.random
        named = _named_heads(named, architecture.lm_head_classes, lacking, path)
        output = network.get_output_embeddings()
        words = network.get_input_embeddings().weight
        separate = output is not None and output.weight is not words and output.weight.shape == words.shape
        if config.tie_word_embeddings and separate and not lacking:
            logger.info(
                f"{path}: the output matrix differs from the input embeddings, so they stay separate "
                "(config.json has tie_word_embeddings: true)"
            )
            config.tie_word_embeddings = False
    config.architectures = named
    blocks = re.compile(rf"(^|\.){re.escape(architecture.blocks)}\.\d+\.")
    others = any(not blocks.search(name) for name in loaded.unexpected)
    for suffix, auto in _CLASS_HEADS.items():
        unnamed = suffix == "ForSequenceClassification" and not named and others
        if any(name.endswith(suffix) for name in named) or (unnamed and type(config) in auto._model_mapping):
            _check_class_head(suffix, path, config, first, architecture, trust=trust)


def _named_heads(named: list[str], classes: tuple[str, ...], lacking: set[str], path: str) -> list[str]:
    """Return `architectures`, containing one of these classes if and only if all weights of its head exist."""
    stated = [name for name in named if name in classes]
    if not lacking:
        return named if stated else [*named, classes[0]]
    if stated:
        logger.info(
            f"{path}: config.json lists {stated[0]}, but the weights have no such head "
            f"(`{min(lacking)}` is missing); it is not used"
        )
    return [name for name in named if name not in stated]


def _check_class_head(
    suffix: str,
    path: str,
    config: PreTrainedConfig,
    first: PreTrainedConfig,
    architecture: Architecture,
    *,
    trust: bool,
) -> None:
    """Keep a classification head in `architectures` if its weights exist; add one if none is listed."""
    loaded = load_weights(_CLASS_HEADS[suffix], path, first, architecture.attention, trust=trust)
    lacking = loaded.head & loaded.random
    if suffix == "ForSequenceClassification" and architecture.class_head_pools:
        lacking |= {name for name in loaded.missing if "pooler." in name}
    stated = tuple(name for name in config.architectures or () if name.endswith(suffix))
    if stated:
        config.architectures = _named_heads(list(config.architectures or ()), stated, lacking, path)
    elif not lacking and not _is_ambiguous(first, loaded.network):
        config.architectures = [*(config.architectures or ()), type(loaded.network).__name__]


def _is_ambiguous(config: PreTrainedConfig, network: PreTrainedModel) -> bool:
    """Return whether a head for token classification has the same weights."""
    if type(config) not in AutoModelForTokenClassification._model_mapping:
        return False
    with torch.device("meta"):
        other = AutoModelForTokenClassification.from_config(config, attn_implementation=IMPLEMENTATION)
    return set(other.state_dict()) == set(network.state_dict())


def _warn_of_unused_blocks(
    unexpected: Iterable[str], config: PreTrainedConfig, architecture: Architecture, path: str
) -> None:
    blocks = re.compile(rf"(?:^|\.){re.escape(architecture.blocks)}\.(\d+)\.")
    found = 1 + max((int(match[1]) for name in unexpected if (match := blocks.search(name))), default=0)
    stated = config.num_hidden_layers
    if found > stated:
        unused = f"block {stated} is" if found == stated + 1 else f"blocks {stated} to {found - 1} are"
        logger.warning(
            f"{path}: the weights have {found} blocks, but config.json has num_hidden_layers: {stated}; "
            f"{unused} not used"
        )
