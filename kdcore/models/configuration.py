"""Read, describe and check configurations of Hugging Face encoders, and derive configurations for students."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from kdcore.errors import DataError, InputError, first_line, similar
from kdcore.models.architectures import ARCHITECTURES, Architecture, architecture_of
from kdcore.models.attention import IMPLEMENTATION
from kdcore.signals import Head, ModelInfo
from kdcore.utils.lfs import refuse_pointers
from kdcore.utils.model_files import check_model_files

_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
_UNNAMED = re.compile(r"LABEL_\d+")  # transformers' default name of a class
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "embedding_size",
    "local_attention",
)
_MOST_BLOCKS, _LARGEST_SIZE = 1_000, 1 << 24
_RHYTHM = "global_attn_every_n_layers"
_REFUSALS = (StrictDataclassError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)

Architectures = Mapping[str, Architecture]
"""Supported architectures by model type."""


@dataclass(frozen=True)
class Base:
    """The model from which a student takes its sizes.

    Attributes:
        config: its configuration, whose model type may not be supported by the student's model.
        architecture: its architecture.
    """

    config: PreTrainedConfig
    architecture: Architecture


def describe(config: PreTrainedConfig, architecture: Architecture) -> ModelInfo:
    """Describe a model with this configuration for losses and tasks."""
    return ModelInfo(
        architecture=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings - architecture.position_offset(config),
        heads=saved_heads(config, architecture),
        position_pad_id=architecture.position_offset(config) - 1 if architecture.needs_padding_id else None,
        attention=architecture.attention == IMPLEMENTATION,
    )


def saved_heads(config: PreTrainedConfig, architecture: Architecture) -> list[Head]:
    """Return the heads that a model with this configuration was saved with; labels are in Unicode normal form C."""
    names = config.architectures or ()
    labels = [normalize("NFC", config.id2label[index]) for index in sorted(config.id2label)]
    named = labels if len(labels) > 1 and not all(_UNNAMED.fullmatch(label) for label in labels) else []
    heads = []
    if any(name in architecture.lm_head_classes for name in names):
        heads.append(Head.masked_lm(config.vocab_size))
    if labels and any(name.endswith("ForSequenceClassification") for name in names):
        heads.append(Head.sequence_classes(named, config.problem_type, len(labels)))
    if labels and any(name.endswith("ForTokenClassification") for name in names):
        heads.append(Head.token_classes(named, len(labels)))
    return heads


def set_head(config: PreTrainedConfig, head: Head) -> None:
    """Set the keys of a configuration that describe a head with labelled outputs."""
    config.num_labels = head.num_outputs
    if head.labels:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
    config.problem_type = head.problem_type


def block_kinds(config: PreTrainedConfig, architecture: Architecture) -> list[str]:
    """Return the kind of each block in words; a block can only be copied to a block of the same kind."""
    kinds = [kind.replace("_", " ") for kind in getattr(config, "layer_types", None) or ()]
    kinds = kinds or ["block"] * config.num_hidden_layers
    if kinds and architecture.first_block_differs:
        kinds[0] = f"the first, {kinds[0]}"
    return kinds


def read_config(path: str, architectures: Architectures) -> PreTrainedConfig:
    """Read the configuration of a folder or hub model without running its custom code.

    A relative of one of the architectures is read as that architecture.

    Raises:
        DataError: the configuration is missing, invalid, or of an unsupported model.
    """
    folder = Path(path)
    refuse_pointers(folder, ["config.json"])
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = _hint_on_parts(folder) or "give a Hugging Face model folder"
        raise DataError("config.json is missing", where=path, hint=hint)
    check_model_files(folder)
    try:
        stated, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        if not folder.exists():
            raise DataError(
                "neither an existing folder nor a model on the hub",
                where=path,
                hint=f"check the spelling, or download the model first ({reason_of(error)})",
            ) from error
        raise DataError(f"the model's configuration cannot be read: {reason_of(error)}", where=path) from error
    if not isinstance(stated.get("model_type"), str):
        hint = _hint_on_parts(folder) or _hint_on_type(stated.get("architectures"), architectures)
        raise DataError("config.json has no model_type", where=path, hint=hint)
    stated = _as_own(stated, architectures)
    architecture = architecture_of(stated["model_type"], path, architectures)
    cls = _config_class(architecture)
    # Output settings in the file serve other uses of the model; here they would cost time or change the outputs.
    outputs = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
    try:
        config = cls.from_dict(stated | outputs)
    except _REFUSALS as error:
        raise DataError(f"the model's configuration cannot be read: {reason_of(error)}", where=path) from error
    problem = _problem(config, architecture) or _position_problem(config, architecture)
    if problem is not None:
        raise DataError(problem, where=path, hint="check config.json")
    return config


def _hint_on_parts(folder: Path) -> str | None:
    """Name the transformer inside a sentence-transformers folder; None for other folders."""
    inner = next((path for path in sorted(folder.glob("0_*")) if (path / "config.json").is_file()), None)
    return f"this is a sentence-transformers folder: give its transformer, {inner}" if inner else None


def _hint_on_type(classes: object, architectures: Architectures) -> str:
    """Derive the model type from the names of its classes."""
    name = str(classes[0]).lower() if isinstance(classes, list) and classes else ""
    near = [model_type for model_type in architectures if name.startswith(model_type.replace("-", ""))]
    guess = max(near, key=len, default="bert")
    return f'add the type of the model, such as "model_type": "{guess}", or give a Hugging Face model folder'


def student_config(base: Base | None, changes: Mapping[str, Any], architectures: Architectures) -> PreTrainedConfig:
    """Build the student's configuration from `changes`; missing keys are taken from `base`.

    If the base has a different architecture, only its sizes and special token ids are used, and all other keys have
    their defaults. A relative (`Architecture.relatives`) is treated as the student's own architecture.

    Raises:
        InputError: unknown keys, wrong types, inconsistent sizes, or an unsupported architecture.
    """
    lent = {} if base is None else _as_own(base.config.to_dict(), architectures)
    lent.pop("auto_map", None)  # the student does not use the base model's custom code
    if "model_type" in changes:
        model_type = str(changes["model_type"])
    else:
        model_type = _usual_type(lent.get("model_type"), architectures)
    architecture = architecture_of(model_type, "student.config.model_type", architectures)
    cls = _config_class(architecture)
    defaults = cls().to_dict()
    if base is None:
        stated = defaults
    elif lent["model_type"] == model_type:
        stated = defaults | lent
    else:
        common = _common(base, architecture)
        stated = defaults | {key: value for key, value in common.items() if key in defaults}
    known = stated.keys() | defaults.keys() | cls.attribute_map.keys() | set(architecture.use)
    _check_keys(changes, known | ({_RHYTHM} if "layer_types" in known else set()), cls)
    changes = {cls.attribute_map.get(key, key): value for key, value in changes.items()}
    merged = stated | changes
    merged |= {key: merged[other] for key, other in architecture.equal.items() if key not in changes}
    if "layer_types" in merged and "layer_types" not in changes:
        merged["layer_types"] = _layer_types(stated, merged, changes)
    try:
        config = cls.from_dict(merged)
        problem = _problem(config, architecture)
    except _REFUSALS as error:
        raise InputError(f"invalid configuration: {reason_of(error)}", key="student.config") from error
    if problem is None:
        if base is not None and lent["model_type"] != model_type and "max_position_embeddings" not in changes:
            _take_positions(config, architecture, describe(base.config, base.architecture).max_length)
        problem = _position_problem(config, architecture)
    if problem is not None:
        raise InputError(problem, key="student.config")
    config.architectures = None
    config.dtype = torch.float32
    return config


def with_num_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """Return a configuration with only the first blocks, at least one, because some models reject zero blocks."""
    stated = config.to_dict()
    stated[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = max(num_layers, 1)
    if stated.get("layer_types"):
        stated["layer_types"] = stated["layer_types"][: max(num_layers, 1)]
    return type(config).from_dict(stated)


def with_blocks(config: PreTrainedConfig, blocks: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a configuration for a subset of its blocks; 0-based, in increasing order."""
    changed = copy.deepcopy(config)
    types = getattr(config, "layer_types", None)
    changed.num_hidden_layers = len(blocks)
    if types:
        changed.layer_types = [types[block] for block in blocks]
    return changed


def reason_of(error: Exception) -> str:
    """Return the most informative line of an error of transformers."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, StrictDataclassError) and len(lines) > 1:  # the second line has the message, after a type
        return lines[1].partition(": ")[2]
    if isinstance(error, KeyError):
        return f"key {error} is missing"
    return first_line(error)


def _config_class(architecture: Architecture) -> type[PreTrainedConfig]:
    return type(AutoConfig.for_model(architecture.model_type))


def _as_own(stated: Mapping[str, Any], architectures: Architectures) -> dict[str, Any]:
    """Convert the configuration of a related architecture to that of the architecture that reads its folders."""
    for architecture in architectures.values():
        if stated["model_type"] in architecture.relatives:
            same = architecture.relatives[stated["model_type"]]
            return {**stated, **same, "model_type": architecture.model_type}
    return dict(stated)


def _usual_type(model_type: str | None, architectures: Architectures) -> str:
    """Return the default model type of a student, given its teacher's."""
    if model_type in architectures or (architectures is ARCHITECTURES and model_type in MODEL_MAPPING_NAMES):
        return str(model_type)
    if len(architectures) == 1:
        return next(iter(architectures))
    raise InputError(
        "model_type is required, because the recipe has no teacher"
        if model_type is None
        else f"model_type is required, because the student cannot have the teacher's `{model_type}`",
        key="student.config",
        hint="add model_type, for example `model_type: bert`",
    )


def _common(base: Base, architecture: Architecture) -> dict[str, Any]:
    """Return sizes and special ids of the base under the key names of another architecture."""
    config, names = base.config, _config_class(architecture).attribute_map
    sizes = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        architecture.intermediate_size: getattr(config, base.architecture.intermediate_size, None),
    }
    sizes = {names.get(key, key): value for key, value in sizes.items() if value is not None}
    return sizes | {key: getattr(config, key, None) for key in _SPECIAL_IDS}


def _check_keys(changes: Mapping[str, Any], known: set[str], cls: type[PreTrainedConfig]) -> None:
    for key in changes:
        if key not in known:
            raise InputError(
                f"unknown key `{key}` in a configuration of `{cls.model_type}`",
                key=f"student.config.{key}",
                hint=similar(key, known) or f"see the documentation of {cls.__name__}",
            )


def _layer_types(stated: Mapping[str, Any], merged: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Repeat the pattern of global and local blocks for a student with a different number of blocks."""
    count = merged["num_hidden_layers"]
    if _RHYTHM in changes or not isinstance(count, int):
        return None  # left to the configuration class, which applies its rule or raises an error
    kinds: Sequence[str] = stated["layer_types"]
    period = next(p for p in range(1, len(kinds) + 1) if kinds[p:] == kinds[: len(kinds) - p])
    return [kinds[index % period] for index in range(count)]


def _take_positions(config: PreTrainedConfig, architecture: Architecture, longest: int) -> None:
    """Set a student's maximum length to `longest`, the maximum length of a teacher with a different architecture."""
    offset = architecture.position_offset(config)
    if offset > longest:
        raise InputError(
            f"positions of `{config.model_type}` start after its pad_token_id, which is {offset - 1} here",
            key="student.config",
            hint="choose another model_type, or set max_position_embeddings",
        )
    config.max_position_embeddings = longest + offset


def _problem(config: PreTrainedConfig, architecture: Architecture) -> str | None:
    """Return why a model with this configuration is not supported, or None."""
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        if not architecture.described and not _is_stated(config, key):
            return (
                f"`{config.model_type}` is not an encoder of token ids with positions: its configuration has no {key}"
            )
    for key in (*_SIZES, architecture.intermediate_size):
        value = getattr(config, key, 1)
        usual = value == 0 == getattr(type(config), key, None)  # DeBERTa has no token types
        if not isinstance(value, int) or (value < 1 and not usual):
            return f"{key} must be a positive integer, found {json.dumps(value)}"
        most = _MOST_BLOCKS if key == "num_hidden_layers" else _LARGEST_SIZE
        if value > most:
            return f"{key} is out of range (found {value}, expected at most {most})"
    if config.hidden_size % config.num_attention_heads:
        return f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute" and architecture.described:
        return f"position_embedding_type must be absolute, found {positions}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "only encoders are supported, found a decoder (is_decoder, add_cross_attention)"
    pad = getattr(config, "pad_token_id", None)
    if pad is None and architecture.needs_padding_id:
        return f"`{config.model_type}` requires a pad_token_id"
    if pad is not None and not 0 <= pad < config.vocab_size:
        return f"pad_token_id {pad} is outside the vocabulary of {config.vocab_size} tokens"
    return None


def _is_stated(config: PreTrainedConfig, key: str) -> bool:
    """Return whether a configuration sets a key; a value of -1 means no limit and does not count."""
    return bool(getattr(config, key, -1) != -1)


def _position_problem(config: PreTrainedConfig, architecture: Architecture) -> str | None:
    if describe(config, architecture).max_length < 1:
        return f"max_position_embeddings {config.max_position_embeddings} is too small for a single token"
    return None
