"""The model `transformers`: Hugging Face encoders from a folder or a hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from kdcore.errors import DataError, InputError
from kdcore.layers import uniform_blocks
from kdcore.models.architectures import Architecture, architecture_of
from kdcore.models.attention import IMPLEMENTATION
from kdcore.models.base import Model, Role
from kdcore.models.encoder import TransformersEncoder
from kdcore.recipe.schema import ComponentConfig, PathOrHubName
from kdcore.signals import ModelInfo, SignalRequest


class Initialize(ComponentConfig):
    """Where a student's first weights come from."""

    source: Literal["teacher"] | PathOrHubName = Field(
        alias="from", description="`teacher`, or a folder or hub name of the student's architecture."
    )
    blocks: Literal["uniform", "first", "last"] | list[int] = Field(
        "uniform", description="Which source block each student block copies."
    )


class TransformersModel(Model):
    """BERT-like encoders of Hugging Face transformers.

    A teacher has a `path`. A student has a `config`, whose missing keys are the teacher's (or those of the folder it is
    initialised from), and `initialize`; without that its weights are random.
    """

    class Config(ComponentConfig):
        """Keys of `teacher` and `student`."""

        path: PathOrHubName | None = Field(None, description="Teacher: folder or hub name.")
        config: dict[str, Any] = Field(
            default_factory=dict,
            description="Student: keys of its Hugging Face configuration, such as num_hidden_layers.",
        )
        initialize: Initialize | None = Field(None, description="Student: where its first weights come from.")

    config: Config

    def __init__(self, config: Config, role: Role, teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        self._teacher_source = teacher.source if isinstance(teacher, TransformersModel) else None
        if role == "teacher":
            self.hf_config = self._teacher_config()
        else:
            self.hf_config = self._student_config(teacher)
        where = self.config.path or "student.config"
        self.architecture = architecture_of(self.hf_config.model_type, where)
        self.info = describe(self.hf_config)

    @property
    def source(self) -> str | None:
        """Folder or hub name of the weights: the teacher's path, or what the student is initialised from."""
        if self.config.path is not None:
            return self.config.path
        if self.config.initialize is None:
            return None
        if self.config.initialize.source != "teacher":
            return self.config.initialize.source
        return self._teacher_source

    def load_teacher(self, request: SignalRequest) -> TransformersEncoder:
        """Load the blocks up to the deepest one asked for, and the head only for predictions."""
        assert self.config.path is not None
        if request.prediction_positions and not self.info.has_lm_head:
            raise InputError(
                "a loss reads the teacher's predictions, but the teacher has no masked-LM head",
                where=self.config.path,
                hint="use losses on hidden states or attention, or a teacher saved with its masked-LM head",
            )
        shortened = _copy(self.hf_config)
        shortened.num_hidden_layers = request.depth(self.info.num_layers)
        network = _load(self.config.path, shortened, self.architecture, head=bool(request.prediction_positions))
        encoder = TransformersEncoder(network, self.architecture, self.info)
        encoder.pooler = None  # no signal reads it, and a teacher is not exported
        return encoder

    def build_student(self, request: SignalRequest) -> TransformersEncoder:
        """Make the whole student: random weights, then blocks, embeddings and head copied as configured."""
        source = None
        if self.source is not None:
            source_config = _read_config(self.source)
            source_head = describe(source_config).has_lm_head
            source = _load(self.source, source_config, self.architecture, head=source_head)
        head = bool(request.prediction_positions) or (source is not None and self.architecture_has_head(source))
        network = _create(self.hf_config, head=head)
        if source is not None:
            assert self.config.initialize is not None
            self._copy_weights(source, network, self.config.initialize.blocks)
        return TransformersEncoder(network, self.architecture, self.info)

    def architecture_has_head(self, network: nn.Module) -> bool:
        """Whether the network carries the masked-LM head."""
        return all(hasattr(network, name) for name in self.architecture.lm_head_modules)

    def _teacher_config(self) -> PreTrainedConfig:
        if self.config.path is None:
            raise InputError("the teacher needs a `path`", key="teacher", hint="path: a folder or a hub name")
        for key in ("config", "initialize"):
            if getattr(self.config, key):
                raise InputError("only a student has this key", key=f"teacher.{key}", allowed=("name", "path"))
        return _read_config(self.config.path)

    def _student_config(self, teacher: Model | None) -> PreTrainedConfig:
        if self.config.path is not None:
            raise InputError(
                "a student has no `path`",
                key="student.path",
                allowed=("name", "config", "initialize"),
                hint="to start from a folder: student.initialize: {from: FOLDER}",
            )
        initialize = self.config.initialize
        if initialize is not None and initialize.source == "teacher" and self._teacher_source is None:
            raise InputError(
                "there is no teacher of the model `transformers` to copy from",
                key="student.initialize.from",
                hint="name a folder, or leave `initialize` out for random weights",
            )
        if initialize is not None and initialize.source != "teacher":
            base = _read_config(initialize.source)
        elif isinstance(teacher, TransformersModel):
            base = teacher.hf_config
        else:
            return _new_config(self.config.config)
        return _changed_config(base, self.config.config)

    def _copy_weights(self, source: nn.Module, student: nn.Module, blocks: str | list[int]) -> None:
        """Copy the chosen blocks and all else that both networks have."""
        path = self.architecture.blocks
        chosen = choose_blocks(blocks, self._num_blocks(source), self._num_blocks(student))
        available = _plain_state(source)
        for name, target in _plain_state(student).items():
            wanted = name
            if name.startswith(f"{path}."):
                number, rest = name.removeprefix(f"{path}.").split(".", 1)
                wanted = f"{path}.{chosen[int(number)]}.{rest}"
            tensor = available.get(wanted)
            if tensor is None:  # a head or a pooler that only the student has
                continue
            if target.shape != tensor.shape:
                raise InputError(
                    f"`{wanted}` is {tuple(tensor.shape)} in the source and {tuple(target.shape)} in the student",
                    where=self.source,
                    key="student.initialize",
                    hint="copying needs equal sizes: change student.config, or leave `initialize` out",
                )
            target.copy_(tensor)

    def _num_blocks(self, network: nn.Module) -> int:
        base = network.base_model
        assert isinstance(base, nn.Module)
        return len(self.architecture.block_list(base))


def _plain_state(network: nn.Module) -> dict[str, Tensor]:
    """State by the names of the base model, whether or not a head is built around it."""
    prefix = "" if network.base_model is network else f"{network.base_model_prefix}."
    return {name.removeprefix(prefix): tensor for name, tensor in network.state_dict().items()}


def choose_blocks(blocks: str | list[int], available: int, wanted: int) -> list[int]:
    """Source blocks that the student's blocks copy, one a student block.

    Raises:
        InputError: as many blocks as the student has were not given, or one does not exist.
    """
    key = "student.initialize.blocks"
    if blocks == "uniform":
        return uniform_blocks(available, wanted)
    if isinstance(blocks, str):
        if wanted > available:
            raise InputError(f"the student has {wanted} blocks, its source only {available}", key=key)
        return list(range(wanted)) if blocks == "first" else list(range(available - wanted, available))
    if len(blocks) != wanted:
        raise InputError(f"{len(blocks)} blocks are given for a student of {wanted}", key=key)
    missing = [block for block in blocks if not -available <= block < available]
    if missing:
        raise InputError(f"the source has no block {missing[0]}", key=key, allowed=f"0 to {available - 1}")
    return [block % available for block in blocks]


def describe(config: PreTrainedConfig) -> ModelInfo:
    """What losses may know of a model with this configuration."""
    architectures = config.architectures or []
    return ModelInfo(
        architecture=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings,
        has_lm_head=any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in architectures),
    )


def _read_config(path: str) -> PreTrainedConfig:
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError("the folder holds no config.json", where=path, hint="give a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        if not folder.exists():
            raise DataError(
                "no such folder, and no such model on the hub",
                where=path,
                hint=f"check the spelling, or download it first ({_first_line(error)})",
            ) from error
        raise DataError(f"the model's configuration cannot be read: {_first_line(error)}", where=path) from error
    architecture_of(config.model_type, path)
    return config


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _copy(config: PreTrainedConfig) -> PreTrainedConfig:
    return type(config).from_dict(config.to_dict())


def _new_config(changes: Mapping[str, Any]) -> PreTrainedConfig:
    if "model_type" not in changes:
        raise InputError(
            "without a teacher the student's architecture must be said",
            key="student.config",
            hint="add model_type, for example `model_type: bert`",
        )
    architecture = architecture_of(str(changes["model_type"]), "student.config.model_type")
    return _changed_config(AutoConfig.for_model(architecture.model_type), changes)


def _changed_config(base: PreTrainedConfig, changes: Mapping[str, Any]) -> PreTrainedConfig:
    known = base.to_dict() | dict.fromkeys(base.attribute_map)
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"a configuration of `{base.model_type}` has no key `{key}`",
                key=f"student.config.{key}",
                hint=f"did you mean `{near[0]}`?" if near else f"see the documentation of {type(base).__name__}",
            )
    if changes.get("model_type", base.model_type) != base.model_type:
        raise InputError(
            f"the student is to be `{changes['model_type']}`, but what it takes after is `{base.model_type}`",
            key="student.config.model_type",
        )
    try:
        config = type(base).from_dict(base.to_dict() | dict(changes))
    except (TypeError, ValueError) as error:
        raise InputError(f"the configuration is refused: {_first_line(error)}", key="student.config") from error
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}",
            key="student.config",
        )
    config.architectures = None
    config.dtype = torch.float32
    return config


def _load(path: str, config: PreTrainedConfig, architecture: Architecture, *, head: bool) -> PreTrainedModel:
    """Load weights in float32; only what is allowed to be missing may be missing."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # blocks and heads that were not asked for are no news
    transformers_logging.disable_progress_bar()
    try:
        loaded, report = (AutoModelForMaskedLM if head else AutoModel).from_pretrained(
            path, config=config, dtype=torch.float32, attn_implementation=IMPLEMENTATION, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the model's weights cannot be loaded: {_first_line(error)}",
            where=path,
            hint="the folder needs model.safetensors (or pytorch_model.bin) that fits its config.json",
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    network: PreTrainedModel = loaded
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise DataError(
            f"{len(missing)} weights are missing from the model, the first is `{missing[0]}`",
            where=path,
            hint=f"its config.json promises {config.num_hidden_layers} blocks of `{architecture.model_type}`",
        )
    if any("pooler." in key for key in report["missing_keys"]):
        network.base_model.pooler = None  # it would be random
    return network


def _create(config: PreTrainedConfig, *, head: bool) -> PreTrainedModel:
    """A network with random weights; a pooler stands beside a head, so that `AutoModel` finds one in the export."""
    if not head:
        return AutoModel.from_config(config, attn_implementation=IMPLEMENTATION)
    network = AutoModelForMaskedLM.from_config(config, attn_implementation=IMPLEMENTATION)
    bare = AutoModel.from_config(config, attn_implementation=IMPLEMENTATION)
    if getattr(bare, "pooler", None) is not None:
        network.base_model.pooler = bare.pooler
    return network
