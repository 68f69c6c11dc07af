"""Define the interface of a loss."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcore.deprecated import warn_deprecated
from kdcore.errors import InputError, similar
from kdcore.progress import Fraction, check_points, value_at
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import SEQUENCE_CLASSES, Batch, Head, ModelInfo, Requests, Signals

logger = logging.getLogger("kdcore")

Weight = Annotated[float, Field(ge=0)]


class LossConfig(ComponentConfig):
    """Keys common to all entries of `losses`; the `Config` of a loss adds further keys."""

    name: str = Field(description="Registered name of the loss; default: the entry's label.")
    label: str = Field(description="Key of the entry in the map `losses`, used in the names of metrics.")
    weight: Weight | list[tuple[Fraction, Weight]] = Field(
        1.0,
        description="Weight of the sum of the loss's terms; or points [[fraction of the budget, weight], ...], "
        "interpolated linearly and constant before the first and after the last point.",
    )
    active: tuple[Fraction, Fraction] = Field(
        (0.0, 1.0), description="Interval [from, to) in which the loss is computed, in fractions of the budget."
    )

    teacher: str | None = Field(
        None,
        description="Label of the teacher that the loss uses; required if the recipe has several under `teachers`.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> LossConfig:
        if self.active[0] >= self.active[1]:
            raise ValueError(f"`active` must be [from, to) with from < to, not {list(self.active)}")
        check_points("weight", self.weight)
        return self

    def weight_at(self, fraction: float) -> float:
        """Return the weight at a given fraction of the budget; 0 if the loss is inactive and therefore not computed."""
        start, end = self.active
        if fraction < start or (fraction >= end and end < 1.0):
            return 0.0
        return value_at(self.weight, fraction)


class Loss(ABC, nn.Module):
    """Base class of losses, which request signals, count items before the forward passes, and sum terms after them.

    The value of a term is its sum divided by its count, both taken over all micro-batches and processes of a step. The
    division is done by the trainer, not by the loss, so gradients do not depend on how a batch is split. Learned
    parameters are ordinary submodules: they are optimised, checkpointed and excluded from the exported student.

    Subclasses are constructed as `Loss(config, teacher, student)`. They must cast signals and their own parameters to
    at least float32 (`kdcore.layers.at_least_float32`), because the engine may keep both in half precision.
    """

    class Config(LossConfig):
        """The keys of this loss's entry in a recipe."""

    couples_batch: ClassVar[bool] = False
    """Whether sequences of a batch interact by definition, so that splitting the batch changes the value."""

    zero_when_equal: ClassVar[bool] = True
    """Whether the loss of a model against itself is 0."""

    function: ClassVar[Callable[..., Any] | None] = None
    """The loss as a function of tensors that returns a `Total`, or one for each term by name (a `staticmethod`).

    `kdcore.functional` offers it under the loss's name. It is pure: learned maps and stored state are arguments.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def requests(self) -> Requests:
        """Return the signals and columns that `forward` reads; called only before training."""

    @property
    def compares_tokens(self) -> bool:
        """Whether tokens of teacher and student are compared one by one, in which case both need the same tokenizer.

        By default, this is True if hidden states, attention or vocabulary predictions of the teacher are requested.
        Token-level outputs of the teacher's heads are always compared one by one. Override this property in a loss that
        compares only sequences (`first`, classes) or units (`units`, `unit_heads`, `batch.num_units`).
        """
        teacher = self.requests().teacher
        return bool(teacher.hidden_blocks or teacher.attention_parts or teacher.predicts_tokens)

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of items that each term averages over in this micro-batch.

        During training, this is called in a background thread while the previous step is running.
        """

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return each term's sum over this micro-batch, a scalar of at least float32, under the same keys as `counts`.

        `teacher` is None if no loss requests signals of the teacher.
        """

    def constant_sums(self, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return sums over this micro-batch for `constant_baseline`; empty if the loss does not define a baseline.

        Sums of several micro-batches are added, so none of them may be a mean. Use float64.

        Args:
            teacher: the teacher's signals listed in `requests`; None without a teacher.
            batch: the micro-batch.
        """
        return {}

    def constant_baseline(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the value of each term for the best constant prediction on the samples that the sums cover.

        A constant prediction is the same at every position of every sequence, such as the mean of the teacher's states.
        A trained student whose loss is not below this value has not learned from the text. Terms may be omitted.

        Args:
            sums: the results of `constant_sums`, added over all micro-batches and processes, on the CPU; not empty.
        """
        return {}


def require_equal_heads(config: LossConfig, teacher: ModelInfo, student: ModelInfo) -> int:
    """Return the number of attention heads per block, which must be equal in both models.

    Raises:
        InputError: the numbers differ.
    """
    if teacher.num_heads != student.num_heads:
        raise InputError(
            f"`{config.name}` requires equal numbers of attention heads, but the teacher has {teacher.num_heads} and "
            f"the student {student.num_heads}",
            hint="use the loss `minilm_v2`, which supports different numbers of heads (pip install kdcore-minilm), or "
            f"set the student's num_attention_heads to {teacher.num_heads}",
        )
    return teacher.num_heads


def require_teacher(config: LossConfig, teacher: ModelInfo | None) -> ModelInfo:
    """Return the teacher's description.

    Raises:
        InputError: the recipe has no teacher.
    """
    if teacher is None:
        raise InputError(
            f"the loss `{config.name}` requires a teacher, but the recipe has none",
            hint="add `teacher: {path: FOLDER_OR_HUB_NAME}`",
        )
    return teacher


def require_head(config: LossConfig, model: ModelInfo, name: str, whose: str) -> Head:
    """Return a model's head.

    A loss that only requests the head's outputs does not need this check: kdcore rejects requests for missing heads.

    Args:
        config: config of the loss.
        model: description of the model.
        name: name of the head, such as `sequence_classes`.
        whose: `teacher` or `student`, used in the error message.

    Raises:
        InputError: the model does not have the head.
    """
    head = model.head(name)
    if head is None:
        raise InputError(
            f"`{config.name}` requires the head `{name}`, which the {whose} does not have",
            allowed=[head.name for head in model.heads] or None,
            hint=similar(name, (head.name for head in model.heads))
            or (
                "use a teacher that was fine-tuned and saved with this head"
                if whose == "teacher"
                else "use a task that trains this head, and a model that supports it"
            ),
        )
    return head


def require_equal_outputs(config: LossConfig, teacher: ModelInfo, student: ModelInfo, name: str) -> Head:
    """Return the student's head, which must have the same outputs as the teacher's.

    If none of the teacher's labels match the student's, the outputs of both models are assumed to be the same classes
    in the same order, and a warning is logged.

    Raises:
        InputError: a model does not have the head, or the numbers or the order of the outputs differ.
    """
    theirs = require_head(config, teacher, name, "teacher")
    own = require_head(config, student, name, "student")
    if theirs.num_outputs != own.num_outputs:
        raise InputError(
            f"`{config.name}` requires equal numbers of classes, but the teacher has {theirs.num_outputs} and the "
            f"student {own.num_outputs}",
            hint="use a teacher that was fine-tuned on this task",
        )
    names = [[label.casefold() for label in head.labels] for head in (theirs, own)]
    if not names[0] or not names[1] or names[0] == names[1]:
        return own
    listed = [", ".join(head.labels) for head in (theirs, own)]
    if set(names[0]) & set(names[1]):
        raise InputError(
            f"`{config.name}` requires the same classes in the same order, but the teacher's are {listed[0]} and the "
            f"student's {listed[1]}",
            hint="list `task.data.labels` in the teacher's order, or use a teacher that was fine-tuned on this task",
        )
    logger.warning(
        f"class names differ (teacher: {listed[0]}; student: {listed[1]}); assuming the same classes in this order"
    )
    return own


def require_classes(config: LossConfig, model: ModelInfo, whose: str) -> int:
    """Deprecated: use `require_head`."""
    warn_deprecated("require_classes", "require_head")
    return require_head(config, model, SEQUENCE_CLASSES, whose).num_outputs


def require_equal_classes(config: LossConfig, teacher: ModelInfo, student: ModelInfo) -> int:
    """Deprecated: use `require_equal_outputs`."""
    warn_deprecated("require_equal_classes", "require_equal_outputs")
    return require_equal_outputs(config, teacher, student, SEQUENCE_CLASSES).num_outputs
