"""Load Hugging Face encoders from a folder or a hub: the model `transformers`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from kdcore.errors import DataError, InputError
from kdcore.models.architectures import ARCHITECTURES, Architecture, architecture_of
from kdcore.models.base import Model, Role
from kdcore.models.configuration import (
    Base,
    describe,
    read_config,
    reason_of,
    saved_heads,
    set_head,
    student_config,
    with_num_layers,
)
from kdcore.models.encoder import TransformersEncoder
from kdcore.models.heads import auto_class_of, has_class, head_file, head_only, load_head, own_module
from kdcore.models.initialization import choose_blocks, plain_state, plan_copy
from kdcore.models.undescribed import UndescribedEncoder, examine
from kdcore.models.weight_loading import adapt_to_weights, load_weights, refuse_incomplete, tie_biases
from kdcore.recipe.schema import ComponentConfig, PathOrHubName
from kdcore.signals import MASKED_LM, Head, ModelInfo, SignalRequest

logger = logging.getLogger("kdcore")

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CONFIRMED = "kdcore_confirmed"
"""Key of a configuration that `save_description` has written."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


class Initialize(ComponentConfig):
    """Source of a student's initial weights."""

    source: Literal["teacher"] | PathOrHubName = Field(
        alias="from", description="`teacher`, or the folder or hub name of a model with the student's architecture."
    )
    blocks: Literal["uniform", "first", "last"] | list[int] = Field(
        "uniform", description="Source block of each student block."
    )


class TransformersModel(Model):
    """BERT-like encoders of Hugging Face transformers.

    A teacher has a `path`. A student has a `config`, whose missing keys are taken from the teacher (or from the folder
    it is initialised from), and optionally `initialize`; without it the weights are random. A student whose
    `model_type` differs from the teacher's takes the teacher's sizes and special ids; all other keys have the defaults
    of the student's architecture.

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
        dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
            None, description="Teacher: precision of its weights and computation; default: the training precision."
        )

    config: Config

    def __init__(self, config: Config, role: Role, teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        self._role = role
        self._teacher = teacher if isinstance(teacher, TransformersModel) else None
        self._configs: dict[str, PreTrainedConfig] = {}
        self.hf_config = self._teacher_config() if role == "teacher" else self._student_config()
        self.architecture = self._examined(self.hf_config)
        if role == "teacher" and self._trusts:
            self.architecture = replace(self.architecture, packs=False)  # its custom code may not support packed rows
        self.info = describe(self.hf_config, self.architecture)
        self._task_heads: tuple[Head, ...] = ()
        if role == "student":
            self.info = replace(self.info, heads=self._offered([Head.masked_lm(self.info.vocab_size)]))
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
        """Return the vocabulary of the tokenizer saved with the weights; None if there is no such tokenizer."""
        return None if self._tokenizer is None else self._tokenizer.get_vocab()

    def tokenizer(self) -> Any | None:
        """Return the tokenizer saved with the weights; None if there is no such tokenizer."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any | None:
        if self.source is None:
            return None
        folder = Path(self.source)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            return None
        try:
            return AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        except Exception as error:  # the tokenizers library does not raise a more specific type
            if not folder.is_dir():
                return None
            raise DataError(
                f"the model's tokenizer cannot be loaded: {reason_of(error)}",
                where=self.source,
                hint="repair it, or remove its files to use the model without a tokenizer",
            ) from error

    def save_description(self, folder: Path) -> None:
        """Write the configuration, corrected to match the weights, and the tokenizer."""
        config = copy.deepcopy(self.hf_config)
        setattr(config, _CONFIRMED, True)
        config.save_pretrained(folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)

    def set_heads(self, heads: Sequence[Head]) -> None:
        """Add heads that transformers provides for the student's architecture, and heads with their own module."""
        self._task_heads = self._offered(heads)
        for head in self._task_heads[:1]:
            if has_class(self.hf_config, head):
                set_head(self.hf_config, head)
        self.info = replace(self.info, heads=(*self.info.heads, *self._task_heads))

    def find_heads(self, heads: Sequence[Head]) -> None:
        """Add the heads whose modules the teacher's folder contains."""
        assert self.source is not None
        found = [head for head in heads if head_file(Path(self.source), head.name).is_file()]
        self._task_heads = tuple(head for head in found if own_module(head, self.info) is not None)
        self.info = replace(self.info, heads=(*self.info.heads, *self._task_heads))

    def _offered(self, heads: Sequence[Head]) -> tuple[Head, ...]:
        return tuple(
            head
            for head in heads
            if (has_class(self.hf_config, head) and (head.name != MASKED_LM or self.architecture.lm_head_classes))
            or own_module(head, self.info) is not None
        )

    def load_export(self, folder: Path, request: SignalRequest) -> TransformersEncoder | None:
        """Load the whole student that was exported to `folder`; None if it lacks a requested head."""
        config = read_config(str(folder), self.architectures)
        saved = saved_heads(config, self.architecture)
        modules = [head for head in self._task_heads if head_file(folder, head.name).is_file()]
        info = replace(describe(config, self.architecture), heads=(*saved, *modules))
        own, others = _split(info.heads, request, self._task_heads, info)
        if len(own) + len(others) < len(_names(request)):
            return None
        network = _load(str(folder), config, self.architecture, others[0] if others else None, trust=False)
        further = {head.name: load_head(folder, head) for head in own}
        return self._wrap(network, info, further)

    def load_teacher(self, request: SignalRequest) -> TransformersEncoder:
        """Load the blocks up to the deepest requested one, and a head only if its predictions are requested."""
        path = self.config.path
        assert path is not None
        if request.predicts_tokens and self.info.head(MASKED_LM) is None:
            raise InputError(
                "a loss requires the teacher's predictions, but the teacher has no masked-LM head",
                where=path,
                hint="use losses on hidden states or attention, or a teacher saved with its masked-LM head",
            )
        for name in sorted(request.heads):
            if self.info.head(name) is None:
                raise InputError(
                    f"a loss requires the teacher's head `{name}`, but the teacher has no such head",
                    where=path,
                    allowed=[head.name for head in self.info.heads] or None,
                    hint="fine-tune it first, or use losses on hidden states or attention",
                )
        self._refuse_attention(request)
        own, others = _split(self.info.heads, request, self._task_heads, self.info)
        main = others[0] if others else None
        if self.architecture.described:
            depth = request.depth(self.info.num_layers)
            network = self._load(path, with_num_layers(self.hf_config, depth), head=main)
            del self.architecture.block_list(network.base_model)[depth:]
        else:
            network = self._load(path, self.hf_config, head=main)
        further: dict[str, nn.Module] = {head.name: load_head(path, head) for head in own}
        for head in others[1:]:
            loaded = self._load(path, with_num_layers(self.hf_config, 1), head=head)
            further[head.name] = head_only(loaded, network.base_model)
        encoder = self._wrap(network, self.info, further)
        if not any(head.level == "sequence" for head in others):
            encoder.pooler = None  # not needed by any signal, and a teacher is not exported
        if self.config.dtype is not None:
            encoder.to(_PRECISIONS[self.config.dtype])  # heads with their own modules
            encoder.keeps_precision = True
        return encoder

    def build_student(self, request: SignalRequest) -> TransformersEncoder:
        """Build the whole student: random weights, then blocks, embeddings and heads copied as configured."""
        self._refuse_attention(request)
        own, others = _split(self.info.heads, request, self._task_heads, self.info)
        main = others[0] if others else None
        source, new = None, set[str]()
        if self.source is not None:
            source, new, main = self._load_source(self._read_config(self.source), main)
        # Transforms change a student's configuration, and this model may have to build another one.
        config = copy.deepcopy(self.hf_config)
        if main is not None and main.name != MASKED_LM:
            set_head(config, main)
        network = _create(config, self.architecture, head=main)
        if source is not None:
            ours, theirs = plain_state(network), plain_state(source)
            for name, wanted in plan_copy(source, network, self._chosen_blocks, self.architecture).items():
                if wanted not in new:
                    ours[name].copy_(theirs[wanted])
        further = {head.name: self._further_head(head, network) for head in others[1:]}
        modules = {head.name: self._own_head(head) for head in own}
        return self._wrap(network, self.info, further | modules)  # type: ignore[arg-type]

    def _own_head(self, head: Head) -> nn.Module | None:
        """Create a head with its own module, with the source's weights if the source is a student with this head."""
        if self.source is not None and head_file(Path(self.source), head.name).is_file():
            try:
                return load_head(self.source, head).train()
            except DataError as error:
                logger.warning(f"the student's head `{head.name}` is initialised randomly: {error}")
        return head.module(self.info)

    def _further_head(self, head: Head, network: PreTrainedModel) -> nn.Module:
        """Create another head on the states of a network, with the source's weights if it has this head."""
        config = with_num_layers(self.hf_config, 1)
        if head.name != MASKED_LM:
            set_head(config, head)
        created = _create(config, self.architecture, head=head)
        made = head_only(created, network.base_model)
        if self.source is not None:
            source, new, _ = self._load_source(with_num_layers(self._read_config(self.source), 1), head)
            theirs = plain_state(source)
            for name, ours in made.state_dict().items():
                if name in theirs and name not in new:
                    ours.copy_(theirs[name])
        assert isinstance(made, nn.Module)
        return made

    def _load_source(
        self, config: PreTrainedConfig, head: Head | None
    ) -> tuple[PreTrainedModel, set[str], Head | None]:
        """Load the source of a student with the student's head.

        For a student without a head, load the source's masked-LM head if there is one.

        A head of the source with different outputs (a different number or different names) is not used.

        Returns:
            The source, the names of weights that it lacks, and the student's head.
        """
        assert self.source is not None
        saved = {one.name: one for one in saved_heads(config, self.architecture)}
        if head is None or head.name == MASKED_LM:
            found = saved.get(MASKED_LM)
            return self._load(self.source, config, head=found), set(), head or found
        theirs = saved.get(head.name)
        set_head(config, head)
        loaded = load_weights(
            auto_class_of(head), self.source, config, self.architecture.attention, trust=bool(self._trusts)
        )
        prefix, names = f"{loaded.network.base_model_prefix}.", loaded.head
        new = {name for name in loaded.missing if name in names or "pooler." in name}
        mismatched = {name: sizes for name, sizes in loaded.mismatched.items() if name not in names}
        refuse_incomplete(replace(loaded, missing=loaded.missing - new, mismatched=mismatched), self.source)
        if theirs is not None and _differ(theirs, head):
            logger.info(f"the student's head `{head.name}` is initialised randomly: {self.source} has different labels")
            new |= names
        self.architecture.adapt(loaded.network.base_model)
        return loaded.network, {name.removeprefix(prefix) for name in new}, head

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
        if self.config.dtype is not None:
            what, hint = "`dtype` is valid for a teacher only", "set `training.precision` for the student"
            raise InputError(what, key="student.dtype", hint=hint)
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
        config = student_config(Base(source, self._examined(source)), self.config.config, self.architectures)
        if config.model_type != source.model_type:
            raise InputError(
                f"a `{config.model_type}` student cannot be initialised from the blocks of a `{source.model_type}`",
                key="student.initialize",
                hint=f"remove `initialize` for random weights, or use the folder of a `{config.model_type}`",
            )
        return config

    def _source_config(self) -> PreTrainedConfig:
        if self.source is None:
            raise InputError(
                "the recipe has no teacher of the model `transformers` to copy from",
                key="student.initialize.from",
                hint="specify a folder, or remove `initialize` for random weights",
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
        """Read the configuration of the source, corrected to match its weights.

        This loads the embeddings and the first block, so wrong weights are detected before data is prepared.
        """
        teacher = self._teacher
        if teacher is not None and path == teacher.source and teacher.architectures is self.architectures:
            return teacher._read_config(path)
        if path not in self._configs:
            config = read_config(path, self.architectures)
            self._refuse_foreign_code(path, config)
            architecture, trust = self._examined(config, path), bool(self._trusts)
            if config.__dict__.pop(_CONFIRMED, False):
                pass  # a description without weights
            elif trust and foreign_code(config):
                _load(path, with_num_layers(config, 1), architecture, None, trust=True)
            else:
                adapt_to_weights(path, config, architecture, trust=trust)
            self._configs[path] = config
        return copy.deepcopy(self._configs[path])

    def _refuse_foreign_code(self, path: str, config: PreTrainedConfig) -> None:
        """Reject custom code if `trust_remote_code` is not set.

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

    def _refuse_attention(self, request: SignalRequest) -> None:
        if request.attention_parts and not self.info.attention:
            raise InputError(
                f"a loss requires query, key or value, which the {self._role}'s `{self.info.architecture}` does not "
                "provide",
                hint="use losses on hidden states or predictions",
            )

    def _examined(self, config: PreTrainedConfig, where: str = "student.config") -> Architecture:
        """Return the architecture of a configuration; one without a description is examined first."""
        architecture = architecture_of(config.model_type, where, self.architectures)
        return architecture if architecture.described else examine(config, architecture, where)

    def _wrap(self, network: PreTrainedModel, info: ModelInfo, heads: Mapping[str, nn.Module]) -> TransformersEncoder:
        cls = TransformersEncoder if self.architecture.described else UndescribedEncoder
        return cls(network, self.architecture, info, heads)

    def _load(self, path: str, config: PreTrainedConfig, head: Head | None) -> PreTrainedModel:
        dtype = _PRECISIONS[self.config.dtype or "fp32"]
        return _load(path, config, self.architecture, head, trust=bool(self._trusts), dtype=dtype)

    def _check_student(self) -> list[int]:
        """Check configuration and copying on the meta device; return the source blocks to copy."""
        try:
            with torch.device("meta"):
                student = _create(self.hf_config, self.architecture, head=self.info.head(MASKED_LM))
                if self.architecture.described:
                    _run_without_pooler(student)
        except (ValueError, TypeError, KeyError, ArithmeticError, AssertionError, RuntimeError) as error:
            raise InputError(
                f"the network cannot be built from the configuration: {reason_of(error)}", key="student.config"
            ) from error
        if self.config.initialize is None:
            return []
        config = self._source_config()
        chosen = choose_blocks(self.config.initialize.blocks, config, self.hf_config, self.architecture)
        with torch.device("meta"):
            head = describe(config, self.architecture).head(MASKED_LM)
            source = _create(config, self.architecture, head=head)
        plan_copy(source, student, chosen, self.architecture)
        return chosen


def _run_without_pooler(network: PreTrainedModel) -> None:
    """Run a network on two tokens without its pooler, as in training."""
    base: Any = network.base_model
    pooler = getattr(base, "pooler", None)
    if pooler is not None:
        base.pooler = None
    mask = torch.ones(1, 2, dtype=torch.bool)  # without it some networks read the tokens' values
    network(input_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=mask)
    if pooler is not None:
        base.pooler = pooler


def _names(request: SignalRequest) -> set[str]:
    """Return the names of the heads that a request needs."""
    return set(request.heads) | ({MASKED_LM} if request.predicts_tokens else set())


def _split(
    heads: Collection[Head], request: SignalRequest, first: Sequence[Head], info: ModelInfo
) -> tuple[list[Head], list[Head]]:
    """Split requested heads into heads with their own module and transformers heads.

    The first transformers head determines the class of the network. The task's head comes first, then heads for
    sequences, because only these read a pooler.

    Args:
        heads: heads of the model.
        request: the request.
        first: the task's heads.
        info: description of the model.
    """
    names, order = _names(request), [head.name for head in first]
    wanted = [head for head in heads if head.name in names]
    own = [head for head in wanted if own_module(head, info) is not None]
    others = [head for head in wanted if head not in own]
    others.sort(key=lambda head: (head.name not in order, head.level != "sequence", head.name))
    return own, others


def _differ(one: Head, other: Head) -> bool:
    """Return whether two heads have different outputs; without names only their number is compared."""
    named = bool(one.labels and other.labels)
    return one.num_outputs != other.num_outputs or (named and one.labels != other.labels)


def foreign_code(config: PreTrainedConfig) -> str:
    """Return the reference to the network's class in a model's custom code; empty if the installed class is used."""
    named = getattr(config, "auto_map", None) or {}
    heads = (None, Head.masked_lm(1), Head.sequence_classes(), Head.token_classes())
    for auto in map(auto_class_of, heads):
        reference = str(named.get(auto.__name__, ""))
        installed = auto._model_mapping.get(type(config), None)
        if reference and reference.rpartition(".")[2] != getattr(installed, "__name__", None):
            return reference
    return ""


def _load(
    path: str,
    config: PreTrainedConfig,
    architecture: Architecture,
    head: Head | None,
    *,
    trust: bool,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load weights in one precision; a pooler that no head uses may be missing and is then removed.

    Raises:
        DataError: the weights are missing or do not match the configuration.
    """
    loaded = load_weights(auto_class_of(head), path, config, architecture.attention, trust=trust, dtype=dtype)
    network = loaded.network
    poolers = {name for name in loaded.missing if "pooler." in name}
    if head is not None and head.level == "sequence" and architecture.class_head_pools:
        poolers = set()
    refuse_incomplete(replace(loaded, missing=loaded.missing - poolers), path)
    if poolers:
        network.base_model.pooler = None  # it would be random
    architecture.adapt(network.base_model)
    return network


def _create(config: PreTrainedConfig, architecture: Architecture, *, head: Head | None) -> PreTrainedModel:
    """Create a network with random weights; with a head, add the pooler that `AutoModel` expects in the export."""
    network: PreTrainedModel = auto_class_of(head).from_config(config, attn_implementation=architecture.attention)
    if head is not None and getattr(network.base_model, "pooler", None) is None:
        bare = AutoModel.from_config(with_num_layers(config, 1), attn_implementation=architecture.attention)
        pooler = getattr(bare, "pooler", None)
        if isinstance(pooler, nn.Module):
            network.base_model.pooler = pooler
    tie_biases(network)
    architecture.adapt(network.base_model)
    return network
