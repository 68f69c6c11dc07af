"""What `kdcore_testing.check_transform` accepts and refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcore_testing import check_transform
from torch import nn

from kdcore import ComponentConfig, ParameterSource, Transform, TransformConfig, TransformersModel
from kdcore.registry import transforms
from kdcore.signals import Signals

WEIGHT = "network.encoder.layer.0.output.dense.weight"


@pytest.fixture
def make_student(saved_model: Callable[..., Path]) -> Callable[[], Any]:
    path = str(saved_model("bert", head=False))
    teacher = TransformersModel(TransformersModel.Config(path=path), "teacher", None)
    config = TransformersModel.Config.model_validate({"initialize": {"from": "teacher"}})
    student = TransformersModel(config, "student", teacher)

    def make() -> Any:
        torch.manual_seed(0)
        return student.build_student(Signals.hidden([3]))

    return make


class Shorten(Transform):
    class Config(TransformConfig):
        keep: int = 2

    config: Config

    def describe(self, student):
        return replace(student, num_layers=self.config.keep)

    def apply(self, student, generator):
        student.keep_blocks(range(self.config.keep))
        return student, {}


class Undescribed(Shorten):
    def describe(self, student):
        return student


class OtherVocabulary(Shorten):
    def describe(self, student):
        return replace(student, vocab_size=1)


class Random(Shorten):
    def apply(self, student, generator):
        student, sources = super().apply(student, generator)
        with torch.no_grad():
            student.get_parameter(WEIGHT).normal_()
        return student, sources


class Seeded(Shorten):
    def apply(self, student, generator):
        student, sources = super().apply(student, generator)
        with torch.no_grad():
            student.get_parameter(WEIGHT).normal_(generator=generator)
        return student, sources


class WrongSource(Shorten):
    def apply(self, student, generator):
        student, _ = super().apply(student, generator)
        return student, {WEIGHT: ParameterSource(WEIGHT, lambda weight: weight[:1])}


class UnknownSource(Shorten):
    def apply(self, student, generator):
        student, _ = super().apply(student, generator)
        return student, {WEIGHT: ParameterSource("nowhere")}


class ByWeights(Shorten):
    def apply(self, student, generator):
        weight = student.get_parameter(WEIGHT)
        student, sources = super().apply(student, generator)
        if weight.std() > 0.5:
            student.extra = nn.Linear(1, 1)
        return student, sources


class Half(Shorten):
    def apply(self, student, generator):
        student, sources = super().apply(student, generator)
        return student.to(torch.float16), sources


def test_good_transforms_pass(make_student: Callable[[], Any]) -> None:
    check_transform(Shorten, make_student, {"keep": 3})
    check_transform(Seeded, make_student)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Undescribed, "returned a student that differs from its description"),
        (OtherVocabulary, "changes vocab_size"),
        (Random, "differs between two equal students"),
        (WrongSource, r"with the wrong shape \(found \(1, 48\), expected \(32, 48\)\)"),
        (UnknownSource, "returned a source for a parameter that does not exist"),
        (ByWeights, "the structure depends on the weights"),
        (Half, "not float32"),
    ],
)
def test_each_fault_is_found(make_student: Callable[[], Any], cls: type[Transform], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_transform(cls, make_student)


def test_a_config_without_the_fraction_of_the_budget_cannot_be_registered() -> None:
    class Bare(Shorten):
        class Config(ComponentConfig):
            pass

    with pytest.raises(Exception, match="lacks at; derive it from"):
        transforms.register("bare")(Bare)
