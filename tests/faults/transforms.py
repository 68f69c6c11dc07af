"""Transforms for tests, as a file that recipes import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

import kdcore
from kdcore import Encoder, InputError, ModelInfo, ParameterSource, Transform, TransformConfig


@kdcore.register_transform("drop_block")
class DropBlock(Transform):
    """Drops one block."""

    class Config(TransformConfig):
        """Which block."""

        block: int = Field(ge=0)

    config: Config

    def describe(self, student: ModelInfo) -> ModelInfo:
        if self.config.block >= student.num_layers:
            raise InputError(f"the student has {student.num_layers} blocks", key="block")
        return replace(student, num_layers=student.num_layers - 1)

    def apply(self, student: Encoder, generator: torch.Generator) -> tuple[Encoder, Mapping[str, ParameterSource]]:
        student.keep_blocks([block for block in range(student.info.num_layers) if block != self.config.block])
        return student, {}


def first_half(weight: Tensor) -> Tensor:
    return weight[: len(weight) // 2]


def first_columns(weight: Tensor) -> Tensor:
    return weight[:, : weight.shape[1] // 2]


@kdcore.register_transform("halve_intermediate")
class HalveIntermediate(Transform):
    """Halves the width of the feed-forward layers of a BERT."""

    class Config(TransformConfig):
        """Nothing to choose."""

    def describe(self, student: ModelInfo) -> ModelInfo:
        return student

    def apply(self, student: Encoder, generator: torch.Generator) -> tuple[Encoder, Mapping[str, ParameterSource]]:
        sources = {}
        for name, parameter in list(student.named_parameters()):
            select = None
            if ".intermediate.dense." in name:
                select = first_half
            elif ".output.dense.weight" in name and ".attention." not in name:
                select = first_columns
            if select is not None:
                module, _, own = name.rpartition(".")
                setattr(student.get_submodule(module), own, nn.Parameter(select(parameter.detach()).clone()))
                sources[name] = ParameterSource(name, select)
        student.network.config.intermediate_size //= 2
        return student, sources


@kdcore.register_transform("liar")
class Liar(Transform):
    """Describes a student other than it makes."""

    class Config(TransformConfig):
        """What it describes."""

        vocabulary: bool = False

    def describe(self, student: ModelInfo) -> ModelInfo:
        if self.config.vocabulary:
            return replace(student, vocab_size=student.vocab_size - 1)
        return replace(student, num_layers=1)

    def apply(self, student: Encoder, generator: torch.Generator) -> tuple[Encoder, Mapping[str, ParameterSource]]:
        return student, {}
