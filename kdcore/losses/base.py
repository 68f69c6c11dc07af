"""The interface of an objective."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcore.errors import InputError
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import Batch, ModelInfo, Requests, Signals

logger = logging.getLogger("kdcore")

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class LossConfig(ComponentConfig):
    """Keys that every entry of `losses` has. A loss's own `Config` adds its keys to these."""

    name: str = Field(description="Registered name of the loss; default: the entry's label.")
    label: str = Field(description="The entry's key in the map `losses`; metrics carry it.")
    weight: Weight | list[tuple[Fraction, Weight]] = Field(
        1.0,
        description="Factor on the sum of the loss's terms; or points [[fraction of the budget, weight], ...] between "
        "which it moves linearly, constant before the first and after the last.",
    )
    active: tuple[Fraction, Fraction] = Field(
        (0.0, 1.0), description="Fractions of the budget [from, to) in which the loss is computed at all."
    )

    @model_validator(mode="after")
    def _in_order(self) -> LossConfig:
        if self.active[0] >= self.active[1]:
            raise ValueError(f"`active` must be [from, to) with from < to, not {list(self.active)}")
        if isinstance(self.weight, list):
            fractions = [fraction for fraction, _ in self.weight]
            if len(fractions) < 2 or any(b <= a for a, b in pairwise(fractions)):
                raise ValueError("`weight` as points needs two or more, with rising fractions")
        return self

    def weight_at(self, fraction: float) -> float:
        """The weight at a fraction of the budget; 0 where the loss is not active, so that it is not computed."""
        start, end = self.active
        if fraction < start or (fraction >= end and end < 1.0):
            return 0.0
        if isinstance(self.weight, float):
            return self.weight
        fractions, weights = zip(*self.weight, strict=True)
        return float(np.interp(fraction, fractions, weights))


class Loss(ABC, nn.Module):
    """An objective: says what it reads, counts before the forward passes, sums after them.

    A term's value is its sum divided by its count, both taken over all micro-batches and processes of a step; the
    trainer divides, the loss never does. So gradients do not depend on how a batch is split. Learned parameters are
    ordinary submodules: they are optimised, checkpointed and left out of the exported student.

    Subclasses are constructed as `Loss(config, teacher, student)`. What they read must be cast to at least float32
    (`kdcore.layers.at_least_float32`), and so must their own parameters: the engine keeps both in half precision.
    """

    class Config(LossConfig):
        """The keys of this loss's entry in a recipe."""

    couples_batch: ClassVar[bool] = False
    """Whether sequences influence each other by definition, so that splitting a batch changes the value."""

    zero_when_equal: ClassVar[bool] = True
    """Whether the loss of a model against itself is 0."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def requests(self) -> Requests:
        """The signals and columns that `forward` reads; asked before training, never during it."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """How many items each term averages over in this micro-batch; on the host, before any forward pass."""

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Sum of each term over this micro-batch, scalars of at least float32, under the names that `counts` gives.

        `teacher` is None when no loss asks the teacher for anything.
        """


def require_equal_heads(config: LossConfig, teacher: ModelInfo, student: ModelInfo) -> int:
    """The number of attention heads of a block in both models.

    Raises:
        InputError: they differ.
    """
    if teacher.num_heads != student.num_heads:
        raise InputError(
            f"`{config.name}` compares head by head, but the teacher has {teacher.num_heads} heads in a block and "
            f"the student {student.num_heads}",
            hint="use the loss `minilm_v2`, which takes other head numbers (pip install kdcore-minilm), or give "
            f"the student {teacher.num_heads} heads",
        )
    return teacher.num_heads


def require_teacher(config: LossConfig, teacher: ModelInfo | None) -> ModelInfo:
    """The teacher's description.

    Raises:
        InputError: the recipe has no teacher.
    """
    if teacher is None:
        raise InputError(
            f"the loss `{config.name}` compares with a teacher, but the recipe has none",
            hint="add `teacher: {path: FOLDER_OR_HUB_NAME}`",
        )
    return teacher


def require_classes(config: LossConfig, model: ModelInfo, whose: str) -> int:
    """The number of outputs that a model's head on whole sequences has.

    Args:
        config: the loss's.
        model: the model.
        whose: `teacher` or `student`, for the message.

    Raises:
        InputError: it has no such head.
    """
    if model.num_classes is None:
        raise InputError(
            f"`{config.name}` reads classes of whole sequences, which the {whose} does not predict",
            hint="use a teacher that was fine-tuned and saved with its classification head"
            if whose == "teacher"
            else "use a task with classes, such as sequence_classification, and a model that has a head for them",
        )
    return model.num_classes


def require_equal_classes(config: LossConfig, teacher: ModelInfo, student: ModelInfo) -> int:
    """The number of outputs of both heads on whole sequences, which have to mean the same.

    Where the teacher knows its classes by other names only, they are taken to be the student's in this order, and that
    is told.

    Raises:
        InputError: one has no such head, the numbers differ, or so does the order of the names.
    """
    theirs = require_classes(config, teacher, "teacher")
    own = require_classes(config, student, "student")
    if theirs != own:
        raise InputError(
            f"`{config.name}` compares class by class, but the teacher has {theirs} outputs and the student {own}",
            hint="use a teacher that was fine-tuned on this task",
        )
    names = [[label.casefold() for label in model.class_labels] for model in (teacher, student)]
    if not names[0] or not names[1] or names[0] == names[1]:
        return own
    spoken = [", ".join(model.class_labels) for model in (teacher, student)]
    if set(names[0]) & set(names[1]):
        raise InputError(
            f"`{config.name}` compares class by class, but the teacher's classes are {spoken[0]} and the student's "
            f"{spoken[1]}",
            hint="list `task.data.labels` in the teacher's order, or use a teacher that was fine-tuned on this task",
        )
    logger.warning(
        f"the teacher calls its classes {spoken[0]}, the student {spoken[1]}: taken to be the same, in this order"
    )
    return own
