"""The model `transformers`: Hugging Face encoders from a folder or a hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from kdcore.errors import DataError, InputError
from kdcore.models.architectures import ARCHITECTURES, Architecture
from kdcore.models.attention import IMPLEMENTATION
from kdcore.models.base import Model, Role
from kdcore.models.configuration import (
    Base,
    describe,
    read_config,
    reason_of,
    set_classes,
    student_config,
    with_num_layers,
)
from kdcore.models.encoder import TransformersEncoder
from kdcore.models.initialization import choose_blocks, plain_state, plan_copy
from kdcore.recipe.schema import ComponentConfig, PathOrHubName
from kdcore.signals import ClassHead, SignalRequest

logger = logging.getLogger("kdcore")

Head = Literal["masked_lm", "classes"]
_CLASSES: dict[Head | None, Any] = {
    None: AutoModel,
    "masked_lm": AutoModelForMaskedLM,
    "classes": AutoModelForSequenceClassification,
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


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
    initialised from), and `initialize`; without that its weights are random. A student of another `model_type` than
    the teacher takes the teacher's sizes and special ids, and that architecture's defaults for the rest.

    A package adds encoders of its own by a subclass that says their `architectures`.
    """

    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    """The model types that this model knows. If it is a single one, a student is of that if it does not say one."""

    class Config(ComponentConfig):
        """Keys of `teacher` and `student`."""

        path: PathOrHubName | None = Field(None, description="Teacher: folder or hub name.")
        config: dict[str, Any] = Field(
            default_factory=dict,
            description="Student: keys of its Hugging Face configuration, such as num_hidden_layers.",
        )
        initialize: Initialize | None = Field(None, description="Student: where its first weights come from.")
        trust_remote_code: bool | None = Field(
            None,
            description="Whether Python code that comes with the weights is run; by default such weights are refused.",
        )

    config: Config

    def __init__(self, config: Config, role: Role, teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        self._role = role
        self._teacher = teacher if isinstance(teacher, TransformersModel) else None
        self.hf_config = self._teacher_config() if role == "teacher" else self._student_config()
        self.architecture = self.architectures[self.hf_config.model_type]
        if role == "teacher" and self._trusts:
            self.architecture = replace(self.architecture, packs=False)  # its own code need not know packed rows
        self.info = describe(self.hf_config, self.architecture)
        # Weights are read much later, after data has been prepared: what can be known to fail is looked for now.
        if role == "student":
            self._chosen_blocks = self._check_student()
        teachers = None if self._teacher is None else self._teacher.source
        if self.source is not None and self.source != teachers and Path(self.source).is_dir():
            first_block = with_num_layers(self._read_config(self.source), 1)
            self._load(self.source, first_block, head=None)

    @property
    def source(self) -> str | None:
        """Folder or hub name of the weights: the teacher's path, or what the student is initialised from."""
        if self.config.path is not None:
            return self.config.path
        if self.config.initialize is None:
            return None
        if self.config.initialize.source != "teacher":
            return self.config.initialize.source
        return None if self._teacher is None else self._teacher.source

    def vocabulary(self) -> Mapping[str, int] | None:
        """Token to id of the tokenizer beside the weights; None if the weights are random or there is no tokenizer."""
        if self.source is None:
            return None
        folder = Path(self.source)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            return None
        try:
            vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False).get_vocab()
        except Exception as error:  # the tokenizers library raises nothing more special
            if not folder.is_dir():
                return None
            raise DataError(
                f"the model's tokenizer cannot be loaded: {reason_of(error)}",
                where=self.source,
                hint="repair it, or remove its files if the model shall be used without",
            ) from error
        return vocabulary

    def set_classes(self, head: ClassHead) -> None:
        """Give the student a head on whole sequences, if its architecture has one."""
        if self.architecture.class_head is not None:
            set_classes(self.hf_config, head)
            self.info = replace(self.info, num_classes=head.num_outputs, class_labels=head.labels)

    def load_export(self, folder: Path, request: SignalRequest) -> TransformersEncoder:
        """The whole student that was exported to `folder`."""
        config = read_config(str(folder), self.architectures)
        network = _load(str(folder), config, self.architecture, _head_for(request), trust=False)
        return TransformersEncoder(network, self.architecture, describe(config, self.architecture))

    def load_teacher(self, request: SignalRequest) -> TransformersEncoder:
        """Load the blocks up to the deepest one asked for, and a head only for what it predicts."""
        assert self.config.path is not None
        if request.prediction_positions and not self.info.has_lm_head:
            raise InputError(
                "a loss reads the teacher's predictions, but the teacher has no masked-LM head",
                where=self.config.path,
                hint="use losses on hidden states or attention, or a teacher saved with its masked-LM head",
            )
        if request.class_logits and self.info.num_classes is None:
            raise InputError(
                "a loss reads the teacher's classes, but the teacher has no classification head",
                where=self.config.path,
                hint="fine-tune it first, or use losses on hidden states or attention",
            )
        depth = request.depth(self.info.num_layers)
        shortened = with_num_layers(self.hf_config, depth)
        network = self._load(self.config.path, shortened, head=_head_for(request))
        del self.architecture.block_list(network.base_model)[depth:]
        encoder = TransformersEncoder(network, self.architecture, self.info)
        if not request.class_logits:
            encoder.pooler = None  # no signal reads it, and a teacher is not exported
        return encoder

    def build_student(self, request: SignalRequest) -> TransformersEncoder:
        """Make the whole student: random weights, then blocks, embeddings and head copied as configured."""
        head = _head_for(request)
        source, new = None, set[str]()
        if self.source is not None and head == "classes":
            source, new = self._load_source_with_classes(self.source)
        elif self.source is not None:
            source_config = self._read_config(self.source)
            source_head: Head | None = None
            if describe(source_config, self.architecture).has_lm_head:
                head = source_head = "masked_lm"
            source = self._load(self.source, source_config, head=source_head)
        network = _create(self.hf_config, self.architecture, head=head)
        if source is not None:
            ours, theirs = plain_state(network), plain_state(source)
            for name, wanted in plan_copy(source, network, self._chosen_blocks, self.architecture).items():
                if wanted not in new:
                    ours[name].copy_(theirs[wanted])
        return TransformersEncoder(network, self.architecture, self.info)

    def _load_source_with_classes(self, path: str) -> tuple[PreTrainedModel, set[str]]:
        """What a student with classes starts from, and the weights that are not in there, by the base model's names.

        A head for other classes, by their number or names, is none.
        """
        config = self._read_config(path)
        theirs = describe(config, self.architecture)
        set_classes(config, ClassHead(self.info.class_labels))
        loaded = _from_pretrained(path, config, "classes", trust=bool(self._trusts))
        prefix = f"{loaded.network.base_model_prefix}."
        head = {name for name in loaded.network.state_dict() if not name.startswith(prefix)}
        new = {name for name in loaded.missing if name in head or "pooler." in name}
        mismatched = {name: sizes for name, sizes in loaded.mismatched.items() if name not in head}
        _refuse(replace(loaded, missing=loaded.missing - new, mismatched=mismatched), path)
        names = theirs.class_labels, self.info.class_labels
        others = theirs.num_classes != self.info.num_classes or (all(names) and names[0] != names[1])
        if theirs.num_classes is not None and others:
            logger.info(f"the student's classification head is new: that of {path} is for other classes")
            new |= head
        self.architecture.adapt(loaded.network.base_model)
        return loaded.network, {name.removeprefix(prefix) for name in new}

    def _teacher_config(self) -> PreTrainedConfig:
        if self.config.path is None:
            raise InputError("the teacher needs a `path`", key="teacher", hint="path: a folder or a hub name")
        for key in ("config", "initialize"):
            if getattr(self.config, key):
                allowed = ("name", "path", "trust_remote_code")
                raise InputError("only a student has this key", key=f"teacher.{key}", allowed=allowed)
        return self._read_config(self.config.path)

    def _student_config(self) -> PreTrainedConfig:
        if self.config.path is not None:
            raise InputError(
                "a student has no `path`",
                key="student.path",
                allowed=("name", "config", "initialize"),
                hint="to start from a folder: student.initialize: {from: FOLDER}",
            )
        if self.config.trust_remote_code is not None and not self._has_own_source:
            raise InputError(
                "it only means something for weights that the student takes from a folder or hub of its own",
                key="student.trust_remote_code",
                hint="say it of the teacher, or leave it out",
            )
        base = None if self._teacher is None else Base(self._teacher.hf_config, self._teacher.architecture)
        if self.config.initialize is None:
            return student_config(base, self.config.config, self.architectures)
        source = self._source_config()
        config = student_config(
            Base(source, self.architectures[source.model_type]), self.config.config, self.architectures
        )
        if config.model_type != source.model_type:
            raise InputError(
                f"a student `{config.model_type}` cannot copy the blocks of a `{source.model_type}`",
                key="student.initialize",
                hint=f"leave `initialize` out for random weights, or name a folder with a `{config.model_type}`",
            )
        return config

    def _source_config(self) -> PreTrainedConfig:
        if self.source is None:
            raise InputError(
                "there is no teacher of the model `transformers` to copy from",
                key="student.initialize.from",
                hint="name a folder, or leave `initialize` out for random weights",
            )
        return self._read_config(self.source)

    @property
    def _has_own_source(self) -> bool:
        """Whether a student's weights come from elsewhere than its teacher."""
        return self.config.initialize is not None and self.config.initialize.source != "teacher"

    @property
    def _trusts(self) -> bool | None:
        """Whether code that comes with the source is run; None if nobody has said so."""
        says = self if self._teacher is None or self._has_own_source else self._teacher
        return says.config.trust_remote_code

    def _read_config(self, path: str) -> PreTrainedConfig:
        """Read the configuration of the source, and refuse one whose own code nobody has allowed or declined.

        transformers would silently take its own class of that `model_type`, which may compute something else.
        """
        config = read_config(path, self.architectures)
        foreign = foreign_code(config)
        if foreign and self._trusts is None:
            raise InputError(
                f"it comes with Python code of its own ({foreign}), which is not run unless the recipe says so",
                where=path,
                key=f"{self._role}.trust_remote_code",
                hint=f"`true` runs it on this machine; `false` takes the `{config.model_type}` that is installed",
            )
        return config

    def _load(self, path: str, config: PreTrainedConfig, head: Head | None) -> PreTrainedModel:
        return _load(path, config, self.architecture, head, trust=bool(self._trusts))

    def _check_student(self) -> list[int]:
        """Try configuration and copying on networks without memory; gives the source's blocks to copy."""
        try:
            with torch.device("meta"):
                student = _create(self.hf_config, self.architecture, head="masked_lm")
                student(input_ids=torch.zeros(1, 2, dtype=torch.long))
        except (ValueError, TypeError, KeyError, ArithmeticError, AssertionError, RuntimeError) as error:
            raise InputError(
                f"no network can be made of the configuration: {reason_of(error)}", key="student.config"
            ) from error
        if self.config.initialize is None:
            return []
        config = self._source_config()
        chosen = choose_blocks(self.config.initialize.blocks, config, self.hf_config, self.architecture)
        with torch.device("meta"):
            head: Head | None = "masked_lm" if describe(config, self.architecture).has_lm_head else None
            source = _create(config, self.architecture, head=head)
        plan_copy(source, student, chosen, self.architecture)
        return chosen


def _head_for(request: SignalRequest) -> Head | None:
    """The head that answers a request.

    Raises:
        InputError: two are needed.
    """
    if request.prediction_positions and request.class_logits:
        raise InputError("losses read both predictions over the vocabulary and classes, but a model has one head only")
    return "masked_lm" if request.prediction_positions else "classes" if request.class_logits else None


def foreign_code(config: PreTrainedConfig) -> str:
    """The network's class in code that comes with a model, if it is not the one that is installed; else empty."""
    named = getattr(config, "auto_map", None) or {}
    for auto in _CLASSES.values():
        reference = str(named.get(auto.__name__, ""))
        installed = auto._model_mapping.get(type(config), None)
        if reference and reference.rpartition(".")[2] != getattr(installed, "__name__", None):
            return reference
    return ""


def _load(
    path: str, config: PreTrainedConfig, architecture: Architecture, head: Head | None, *, trust: bool
) -> PreTrainedModel:
    """Load weights in float32; only a pooler that no head reads may be missing, and is then left out.

    Raises:
        DataError: there are no weights, or they are not those of this configuration.
    """
    loaded = _from_pretrained(path, config, head, trust=trust)
    network = loaded.network
    poolers = {name for name in loaded.missing if "pooler." in name}
    if head == "classes" and architecture.class_head_pools:
        poolers = set()
    _refuse(replace(loaded, missing=loaded.missing - poolers), path)
    if poolers:
        network.base_model.pooler = None  # it would be random
    architecture.adapt(network.base_model)
    return network


@dataclass(frozen=True)
class _Loaded:
    """A network, and which of its weights are random because they were not among those that were loaded.

    Attributes:
        network: the network.
        missing: names of weights that were not there.
        mismatched: names of weights that were there in another size: the size found, and the one needed.
    """

    network: PreTrainedModel
    missing: set[str]
    mismatched: Mapping[str, tuple[Any, Any]]


def _refuse(loaded: _Loaded, path: str) -> None:
    """Refuse a model of which weights are missing, or of another size.

    Raises:
        DataError: names the first one.
    """
    model_type = loaded.network.config.model_type
    if loaded.missing:
        raise DataError(
            f"{len(loaded.missing)} weights are missing from the model, the first is `{min(loaded.missing)}`",
            where=path,
            hint=f"its config.json promises a whole `{model_type}`: are the weights those of another model?",
        )
    for name, (found, needed) in sorted(loaded.mismatched.items()):
        raise DataError(
            f"`{name}` is {tuple(found)} in its weights, but {tuple(needed)} by its config.json",
            where=path,
            hint=f"config.json and the weights are not of the same `{model_type}`",
        )


def _from_pretrained(path: str, config: PreTrainedConfig, head: Head | None, *, trust: bool) -> _Loaded:
    """Load weights in float32, with the code that comes with them only if that is to be trusted.

    Raises:
        DataError: there are no weights, or their code fails.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # blocks and heads that were not asked for are no news
    transformers_logging.disable_progress_bar()
    try:
        loaded, report = _CLASSES[head].from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=IMPLEMENTATION,
            trust_remote_code=trust,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            output_loading_info=True,
        )
    except UnpicklingError as error:
        raise DataError(
            "its pytorch_model.bin holds more than weights and is not loaded, for that could run any code",
            where=path,
            hint="ask its author for model.safetensors",
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        raise DataError(
            f"the model's weights cannot be loaded: {reason_of(error)}",
            where=path,
            hint="the folder needs model.safetensors (or pytorch_model.bin) that fits its config.json",
        ) from error
    except Exception as error:
        if not trust:
            raise
        raise DataError(f"the code that comes with the model fails: {error!r}", where=path) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    mismatched = {name: (found, needed) for name, found, needed in report["mismatched_keys"]}
    return _Loaded(loaded, set(report["missing_keys"]), mismatched)


def _create(config: PreTrainedConfig, architecture: Architecture, *, head: Head | None) -> PreTrainedModel:
    """A network with random weights; a pooler stands beside a head, so that `AutoModel` finds one in the export."""
    network: PreTrainedModel = _CLASSES[head].from_config(config, attn_implementation=IMPLEMENTATION)
    if head is not None and getattr(network.base_model, "pooler", None) is None:
        bare = AutoModel.from_config(with_num_layers(config, 1), attn_implementation=IMPLEMENTATION)
        pooler = getattr(bare, "pooler", None)
        if isinstance(pooler, nn.Module):
            network.base_model.pooler = pooler
    architecture.adapt(network.base_model)
    return network
