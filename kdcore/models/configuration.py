"""Configurations of Hugging Face encoders: read, described, checked, and changed for a student."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from kdcore.errors import DataError, InputError, first_line
from kdcore.models.architectures import Architecture, architecture_of
from kdcore.signals import ClassHead, ModelInfo

_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
_CLASS_HEAD = "ForSequenceClassification"
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls a class that nobody has named
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
_RHYTHM = "global_attn_every_n_layers"
_REFUSALS = (StrictDataclassError, ValueError, TypeError, KeyError, ArithmeticError)

Architectures = Mapping[str, Architecture]
"""What a recipe's model knows, by model type."""


@dataclass(frozen=True)
class Base:
    """What a student takes its sizes from.

    Attributes:
        config: the configuration; its model type may be one that the student's model does not know.
        architecture: that of the configuration.
    """

    config: PreTrainedConfig
    architecture: Architecture


def describe(config: PreTrainedConfig, architecture: Architecture) -> ModelInfo:
    """What losses and tasks may know of a model with this configuration."""
    classes = [config.id2label[index] for index in sorted(config.id2label)] if has_class_head(config) else []
    named = len(classes) > 1 and not all(_UNNAMED.fullmatch(label) for label in classes)
    return ModelInfo(
        architecture=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings - architecture.position_offset(config),
        has_lm_head=any(name in architecture.lm_head_classes for name in config.architectures or ()),
        num_classes=len(classes) or None,
        class_labels=tuple(classes) if named else (),
    )


def has_class_head(config: PreTrainedConfig) -> bool:
    """Whether trained weights of a head on whole sequences come with a model of this configuration."""
    return any(name.endswith(_CLASS_HEAD) for name in config.architectures or ())


def set_classes(config: PreTrainedConfig, head: ClassHead) -> None:
    """Give a configuration the outputs of a head on whole sequences, by the names that transformers has for them."""
    config.num_labels = head.num_outputs
    if head.labels:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
    config.problem_type = "single_label_classification" if head.labels else "regression"


def block_kinds(config: PreTrainedConfig, architecture: Architecture) -> list[str]:
    """What each block is, in words; a block can stand in for another of the same kind only."""
    kinds = [kind.replace("_", " ") for kind in getattr(config, "layer_types", None) or ()]
    kinds = kinds or ["block"] * config.num_hidden_layers
    if kinds and architecture.first_block_differs:
        kinds[0] = f"the first, {kinds[0]}"
    return kinds


def read_config(path: str, architectures: Architectures) -> PreTrainedConfig:
    """Read a folder's or hub model's configuration; code that comes with it is never run.

    A relative of one of the architectures is read as that.

    Raises:
        DataError: there is none, it is broken, or it is of a model that is not supported.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError("the folder holds no config.json", where=path, hint="give a Hugging Face model folder")
    try:
        stated, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        if not folder.exists():
            raise DataError(
                "no such folder, and no such model on the hub",
                where=path,
                hint=f"check the spelling, or download it first ({reason_of(error)})",
            ) from error
        raise DataError(f"the model's configuration cannot be read: {reason_of(error)}", where=path) from error
    if not isinstance(stated.get("model_type"), str):
        raise DataError("its config.json names no model_type", where=path, hint="give a Hugging Face model folder")
    stated = _as_own(stated, architectures)
    architecture = architecture_of(stated["model_type"], path, architectures)
    cls = _config_class(architecture)
    # What the file says of outputs is for other users of the model; here it would cost time or change their form.
    outputs = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
    try:
        config = cls.from_dict(stated | outputs)
    except _REFUSALS as error:
        raise DataError(f"the model's configuration cannot be read: {reason_of(error)}", where=path) from error
    problem = _problem(config, architecture) or _position_problem(config, architecture)
    if problem is not None:
        raise DataError(problem, where=path, hint="see its config.json")
    return config


def student_config(base: Base | None, changes: Mapping[str, Any], architectures: Architectures) -> PreTrainedConfig:
    """The student's configuration: `changes`, and what they leave open from `base`.

    A base of another architecture lends its sizes and the ids of special tokens; the rest are defaults. A relative of
    the student's architecture is no other.

    Raises:
        InputError: unknown keys, wrong types, sizes that do not fit, an unsupported architecture.
    """
    lent = {} if base is None else _as_own(base.config.to_dict(), architectures)
    lent.pop("auto_map", None)  # code that comes with the base is no part of the student
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
    known = stated.keys() | defaults.keys() | cls.attribute_map.keys()
    _check_keys(changes, known | ({_RHYTHM} if "layer_types" in known else set()), cls)
    changes = {cls.attribute_map.get(key, key): value for key, value in changes.items()}
    merged = stated | changes
    if "layer_types" in merged and "layer_types" not in changes:
        merged["layer_types"] = _layer_types(stated, merged, changes)
    try:
        config = cls.from_dict(merged)
        problem = _problem(config, architecture)
    except _REFUSALS as error:
        raise InputError(f"the configuration is refused: {reason_of(error)}", key="student.config") from error
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
    """The same configuration for the model's first blocks; at least one, for none is refused by some."""
    stated = config.to_dict()
    stated[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = max(num_layers, 1)
    if stated.get("layer_types"):
        stated["layer_types"] = stated["layer_types"][: max(num_layers, 1)]
    return type(config).from_dict(stated)


def reason_of(error: Exception) -> str:
    """What an error of transformers says, shortened to the line that says it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, StrictDataclassError) and len(lines) > 1:  # the second says it in whole, after a type
        return lines[1].partition(": ")[2]
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return first_line(error)


def _config_class(architecture: Architecture) -> type[PreTrainedConfig]:
    return type(AutoConfig.for_model(architecture.model_type))


def _as_own(stated: Mapping[str, Any], architectures: Architectures) -> dict[str, Any]:
    """What a configuration states, in the words of the architecture that reads such folders as its own."""
    for architecture in architectures.values():
        if stated["model_type"] in architecture.relatives:
            same = architecture.relatives[stated["model_type"]]
            return {**stated, **same, "model_type": architecture.model_type}
    return dict(stated)


def _usual_type(model_type: str | None, architectures: Architectures) -> str:
    """The student's model type if the recipe does not say it, given its teacher's."""
    if model_type in architectures:
        return str(model_type)
    if len(architectures) == 1:
        return next(iter(architectures))
    raise InputError(
        "without a teacher the student's architecture must be said"
        if model_type is None
        else f"the student's architecture must be said, for it cannot be the teacher's `{model_type}`",
        key="student.config",
        hint="add model_type, for example `model_type: bert`",
    )


def _common(base: Base, architecture: Architecture) -> dict[str, Any]:
    """Sizes and special ids by the names that another architecture's configuration has for them."""
    config, names = base.config, _config_class(architecture).attribute_map
    sizes = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        architecture.intermediate_size: getattr(config, base.architecture.intermediate_size),
    }
    sizes = {names.get(key, key): value for key, value in sizes.items()}
    return sizes | {key: getattr(config, key, None) for key in _SPECIAL_IDS}


def _check_keys(changes: Mapping[str, Any], known: set[str], cls: type[PreTrainedConfig]) -> None:
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"a configuration of `{cls.model_type}` has no key `{key}`",
                key=f"student.config.{key}",
                hint=f"did you mean `{near[0]}`?" if near else f"see the documentation of {cls.__name__}",
            )


def _layer_types(stated: Mapping[str, Any], merged: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Global and local blocks of a student that has another number of them, in the same rhythm."""
    count = merged["num_hidden_layers"]
    if _RHYTHM in changes or not isinstance(count, int):
        return None  # the configuration's own rule, or its own complaint
    kinds: Sequence[str] = stated["layer_types"]
    period = next(p for p in range(1, len(kinds) + 1) if kinds[p:] == kinds[: len(kinds) - p])
    return [kinds[index % period] for index in range(count)]


def _take_positions(config: PreTrainedConfig, architecture: Architecture, longest: int) -> None:
    """Give a student of another architecture than its teacher's the teacher's longest sequence."""
    offset = architecture.position_offset(config)
    if offset > longest:
        raise InputError(
            f"`{config.model_type}` counts positions from its pad_token_id on, and here that is {offset - 1}",
            key="student.config",
            hint="choose another model_type, or say max_position_embeddings yourself",
        )
    config.max_position_embeddings = longest + offset


def _problem(config: PreTrainedConfig, architecture: Architecture) -> str | None:
    """What makes a model of this configuration impossible here, if anything does."""
    for key in (*_SIZES, architecture.intermediate_size):
        value = getattr(config, key, 1)
        if not isinstance(value, int) or value < 1:
            return f"{key} must be a whole number above 0, found {json.dumps(value)}"
    if config.hidden_size % config.num_attention_heads:
        return f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute":
        return f"position_embedding_type is {positions}, but transformers computes absolute ones only"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it describes a decoder (is_decoder, add_cross_attention), but only encoders are supported"
    pad = getattr(config, "pad_token_id", None)
    if pad is None and architecture.needs_padding_id:
        return f"`{config.model_type}` needs a pad_token_id"
    if pad is not None and not 0 <= pad < config.vocab_size:
        return f"pad_token_id {pad} is not in the vocabulary of {config.vocab_size}"
    return None


def _position_problem(config: PreTrainedConfig, architecture: Architecture) -> str | None:
    if describe(config, architecture).max_length < 1:
        return f"max_position_embeddings {config.max_position_embeddings} leave no position for a token"
    return None
