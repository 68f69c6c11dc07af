"""Load Hugging Face encoders from a folder or a hub: the model `transformers`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

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
from kdcore.models.weight_loading import adapt_to_weights, load_weights, refuse_incomplete, tie_biases
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
    """Source of a student's initial weights."""

    source: Literal["teacher"] | PathOrHubName = Field(
        alias="from", description="`teacher`, or the folder or hub name of a model of the student's architecture."
    )
    blocks: Literal["uniform", "first", "last"] | list[int] = Field(
        "uniform", description="Source block of each student block."
    )


class TransformersModel(Model):
    """BERT-like encoders of Hugging Face transformers.

    A teacher has a `path`. A student has a `config`, whose missing keys are taken from the teacher (or from the folder
    it is initialised from), and optionally `initialize`; without it the weights are random. A student of another
    `model_type` than the teacher takes the teacher's sizes and special ids; all other keys have that architecture's
    defaults.

    A package can add encoders with a subclass that sets `architectures`.
    """

    architectures: ClassVar[Mapping[str, Architecture]] = ARCHITECTURES
    """Supported model types. If there is only one, it is a student's default."""

    class Config(ComponentConfig):
        """Keys of `teacher` and `student`."""

        path: PathOrHubName | None = Field(None, description="Teacher: folder or hub name.")
        config: dict[str, Any] = Field(
            default_factory=dict,
            description="Student: keys of its Hugging Face configuration, such as num_hidden_layers.",
        )
        initialize: Initialize | None = Field(None, description="Student: source of its initial weights.")
        trust_remote_code: bool | None = Field(
            None,
            description="Whether to run Python code that comes with the weights; by default such weights are rejected.",
        )

    config: Config

    def __init__(self, config: Config, role: Role, teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        self._role = role
        self._teacher = teacher if isinstance(teacher, TransformersModel) else None
        self._configs: dict[str, PreTrainedConfig] = {}
        self.hf_config = self._teacher_config() if role == "teacher" else self._student_config()
        self.architecture = self.architectures[self.hf_config.model_type]
        if role == "teacher" and self._trusts:
            self.architecture = replace(self.architecture, packs=False)  # its custom code may not support packed rows
        self.info = describe(self.hf_config, self.architecture)
        if role == "student":
            self._chosen_blocks = self._check_student()

    @property
    def source(self) -> str | None:
        """Return the folder or hub name of the weights: the teacher's path, or the student's initialisation source."""
        if self.config.path is not None:
            return self.config.path
        if self.config.initialize is None:
            return None
        if self.config.initialize.source != "teacher":
            return self.config.initialize.source
        return None if self._teacher is None else self._teacher.source

    def vocabulary(self) -> Mapping[str, int] | None:
        """Return token to id of the tokenizer saved with the weights; None for random weights or if there is none."""
        if self.source is None:
            return None
        folder = Path(self.source)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            return None
        try:
            vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False).get_vocab()
        except Exception as error:  # the tokenizers library does not raise a more specific type
            if not folder.is_dir():
                return None
            raise DataError(
                f"the model's tokenizer cannot be loaded: {reason_of(error)}",
                where=self.source,
                hint="repair it, or remove its files to use the model without a tokenizer",
            ) from error
        return vocabulary

    def set_classes(self, head: ClassHead) -> None:
        """Add a classification head to the student, if its architecture supports one."""
        if self.architecture.class_head is not None:
            set_classes(self.hf_config, head)
            self.info = replace(self.info, num_classes=head.num_outputs, class_labels=head.labels)

    def load_export(self, folder: Path, request: SignalRequest) -> TransformersEncoder:
        """Load the whole student that was exported to `folder`."""
        config = read_config(str(folder), self.architectures)
        network = _load(str(folder), config, self.architecture, _head_for(request), trust=False)
        return TransformersEncoder(network, self.architecture, describe(config, self.architecture))

    def load_teacher(self, request: SignalRequest) -> TransformersEncoder:
        """Load the blocks up to the deepest requested one, and a head only if its predictions are requested."""
        assert self.config.path is not None
        if request.prediction_positions and not self.info.has_lm_head:
            raise InputError(
                "a loss requires the teacher's predictions, but the teacher has no masked-LM head",
                where=self.config.path,
                hint="use losses on hidden states or attention, or a teacher saved with its masked-LM head",
            )
        if request.class_logits and self.info.num_classes is None:
            raise InputError(
                "a loss requires the teacher's classes, but the teacher has no classification head",
                where=self.config.path,
                hint="fine-tune it first, or use losses on hidden states or attention",
            )
        depth = request.depth(self.info.num_layers)
        shortened = with_num_layers(self.hf_config, depth)
        network = self._load(self.config.path, shortened, head=_head_for(request))
        del self.architecture.block_list(network.base_model)[depth:]
        encoder = TransformersEncoder(network, self.architecture, self.info)
        if not request.class_logits:
            encoder.pooler = None  # not needed by any signal, and a teacher is not exported
        return encoder

    def build_student(self, request: SignalRequest) -> TransformersEncoder:
        """Build the whole student: random weights, then blocks, embeddings and head copied as configured."""
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
        # Transforms change a student's configuration, and this model may have to build another one.
        network = _create(copy.deepcopy(self.hf_config), self.architecture, head=head)
        if source is not None:
            ours, theirs = plain_state(network), plain_state(source)
            for name, wanted in plan_copy(source, network, self._chosen_blocks, self.architecture).items():
                if wanted not in new:
                    ours[name].copy_(theirs[wanted])
        return TransformersEncoder(network, self.architecture, self.info)

    def _load_source_with_classes(self, path: str) -> tuple[PreTrainedModel, set[str]]:
        """Load the source of a student with classes; also return the names of weights that the source lacks.

        The head of a source with other classes (another number or other names) is not used.
        """
        config = self._read_config(path)
        theirs = describe(config, self.architecture)
        set_classes(config, ClassHead(self.info.class_labels))
        loaded = load_weights(_CLASSES["classes"], path, config, trust=bool(self._trusts))
        prefix, head = f"{loaded.network.base_model_prefix}.", loaded.head
        new = {name for name in loaded.missing if name in head or "pooler." in name}
        mismatched = {name: sizes for name, sizes in loaded.mismatched.items() if name not in head}
        refuse_incomplete(replace(loaded, missing=loaded.missing - new, mismatched=mismatched), path)
        names = theirs.class_labels, self.info.class_labels
        others = theirs.num_classes != self.info.num_classes or (all(names) and names[0] != names[1])
        if theirs.num_classes is not None and others:
            logger.info(f"the student's classification head is initialised randomly: {path} has other classes")
            new |= head
        self.architecture.adapt(loaded.network.base_model)
        return loaded.network, {name.removeprefix(prefix) for name in new}

    def _teacher_config(self) -> PreTrainedConfig:
        if self.config.path is None:
            raise InputError("the teacher requires a `path`", key="teacher", hint="add `path: FOLDER_OR_HUB_NAME`")
        for key in ("config", "initialize"):
            if getattr(self.config, key):
                allowed = ("name", "path", "trust_remote_code")
                raise InputError("this key is valid for a student only", key=f"teacher.{key}", allowed=allowed)
        return self._read_config(self.config.path)

    def _student_config(self) -> PreTrainedConfig:
        if self.config.path is not None:
            raise InputError(
                "`path` is valid for a teacher only",
                key="student.path",
                allowed=("name", "config", "initialize"),
                hint="to start from a folder, use `student.initialize: {from: FOLDER}`",
            )
        if self.config.trust_remote_code is not None and not self._has_own_source:
            raise InputError(
                "only valid for a student that is initialised from a folder or hub model other than the teacher",
                key="student.trust_remote_code",
                hint="set it for the teacher, or remove it",
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
                f"a `{config.model_type}` student cannot be initialised from the blocks of a `{source.model_type}`",
                key="student.initialize",
                hint=f"remove `initialize` for random weights, or give the folder of a `{config.model_type}`",
            )
        return config

    def _source_config(self) -> PreTrainedConfig:
        if self.source is None:
            raise InputError(
                "the recipe has no teacher of the model `transformers` to copy from",
                key="student.initialize.from",
                hint="give a folder, or remove `initialize` for random weights",
            )
        return self._read_config(self.source)

    @property
    def _has_own_source(self) -> bool:
        """Return whether a student is initialised from a source other than its teacher."""
        return self.config.initialize is not None and self.config.initialize.source != "teacher"

    @property
    def _trusts(self) -> bool | None:
        """Return whether to run the source's custom code; None if the recipe does not set it."""
        owner = self if self._teacher is None or self._has_own_source else self._teacher
        return owner.config.trust_remote_code

    def _read_config(self, path: str) -> PreTrainedConfig:
        """Read the configuration of the source, as far as its weights confirm it.

        Embeddings and first block are loaded for that, so that wrong weights are detected before data is prepared.
        """
        teacher = self._teacher
        if teacher is not None and path == teacher.source and teacher.architectures is self.architectures:
            return teacher._read_config(path)
        if path not in self._configs:
            config = read_config(path, self.architectures)
            self._refuse_foreign_code(path, config)
            architecture, trust = self.architectures[config.model_type], bool(self._trusts)
            if trust and foreign_code(config):
                _load(path, with_num_layers(config, 1), architecture, None, trust=True)
            else:
                adapt_to_weights(path, config, architecture, trust=trust)
            self._configs[path] = config
        return copy.deepcopy(self._configs[path])

    def _refuse_foreign_code(self, path: str, config: PreTrainedConfig) -> None:
        """Refuse custom code if `trust_remote_code` is not set.

        transformers would silently use its own class of that `model_type`, which may compute something else.
        """
        foreign = foreign_code(config)
        if foreign and self._trusts is None:
            raise InputError(
                f"the model contains custom Python code ({foreign}), which requires an explicit `trust_remote_code`",
                where=path,
                key=f"{self._role}.trust_remote_code",
                hint=f"`true` runs the code on this machine; `false` uses the installed `{config.model_type}` instead",
            )

    def _load(self, path: str, config: PreTrainedConfig, head: Head | None) -> PreTrainedModel:
        return _load(path, config, self.architecture, head, trust=bool(self._trusts))

    def _check_student(self) -> list[int]:
        """Check configuration and copying on the meta device; return the source blocks to copy."""
        try:
            with torch.device("meta"):
                student = _create(self.hf_config, self.architecture, head="masked_lm")
                student(input_ids=torch.zeros(1, 2, dtype=torch.long))
        except (ValueError, TypeError, KeyError, ArithmeticError, AssertionError, RuntimeError) as error:
            raise InputError(
                f"the network cannot be built from the configuration: {reason_of(error)}", key="student.config"
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
    """Return the head that a request needs.

    Raises:
        InputError: the request needs two heads.
    """
    if request.prediction_positions and request.class_logits:
        raise InputError(
            "losses require both predictions over the vocabulary and classes, but a model can have only one head"
        )
    return "masked_lm" if request.prediction_positions else "classes" if request.class_logits else None


def foreign_code(config: PreTrainedConfig) -> str:
    """Return the network's class in a model's custom code; empty if it is the installed class."""
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
    """Load weights in float32; a pooler that no head uses may be missing and is then removed.

    Raises:
        DataError: the weights are missing or do not match the configuration.
    """
    loaded = load_weights(_CLASSES[head], path, config, trust=trust)
    network = loaded.network
    poolers = {name for name in loaded.missing if "pooler." in name}
    if head == "classes" and architecture.class_head_pools:
        poolers = set()
    refuse_incomplete(replace(loaded, missing=loaded.missing - poolers), path)
    if poolers:
        network.base_model.pooler = None  # it would be random
    architecture.adapt(network.base_model)
    return network


def _create(config: PreTrainedConfig, architecture: Architecture, *, head: Head | None) -> PreTrainedModel:
    """Create a network with random weights and, next to a head, a pooler, which `AutoModel` expects in the export."""
    network: PreTrainedModel = _CLASSES[head].from_config(config, attn_implementation=IMPLEMENTATION)
    if head is not None and getattr(network.base_model, "pooler", None) is None:
        bare = AutoModel.from_config(with_num_layers(config, 1), attn_implementation=IMPLEMENTATION)
        pooler = getattr(bare, "pooler", None)
        if isinstance(pooler, nn.Module):
            network.base_model.pooler = pooler
    tie_biases(network)
    architecture.adapt(network.base_model)
    return network
