"""The keys of a recipe that the core owns, checked without importing torch or any component.

Sections that name a component (`teacher`, `optimizer`, ...) are kept as plain maps here; each is checked against its
component's own `Config` once that component has been imported (see `kdcore.recipe.loading`).
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema

SECTION_DEFAULTS = {"teacher": "transformers", "student": "transformers", "optimizer": "adamw", "scheduler": "linear"}
"""The component of a section that states no `name`; a loss's is its label."""


class RecipePath:
    """Marks a string field of a config as a path: relative paths are taken from the file that states them.

    `package:DISTRIBUTION/PATH` names a file or folder that an installed distribution carries. With `hub=True` a string
    that is no existing path may also be the name of a model on a hub, and is then left as it is.
    """

    def __init__(self, *, hub: bool = False) -> None:
        self.hub = hub


class ComponentSection:
    """Marks a map field as the section of a component of a registry, such as one corpus of a data recipe.

    The loader makes the paths in it absolute and checks its keys with that component's `Config`. The field itself
    stays a plain map: `Annotated[dict[str, Any], ComponentSection("kdcore.corpora")]`.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Leave a mark that `kdcore recipe schema` replaces by the schemas of what is installed."""
        return {**handler(core_schema), "x-kdcore-components": self.group}


PathString = Annotated[str, RecipePath()]
PathOrHubName = Annotated[str, RecipePath(hub=True)]


class ComponentConfig(BaseModel):
    """Base of every nested `Config`: unknown keys are errors, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _number_as_text(value: Any) -> Any:
    """`run.id: 1` is as good as `run.id: "1"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _folder_name(value: str) -> str:
    if not value.strip() or value.startswith(".") or not value.isprintable() or set(value) & set("/\\"):
        raise ValueError(f"{value!r} cannot name a folder: it is empty, starts with a dot or has a slash in it")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]


class RunSettings(ComponentConfig):
    """Where the run lives: `folder/name/id`."""

    name: FolderName = Field(description="Name of the experiment.")
    id: Annotated[FolderName, BeforeValidator(_number_as_text)] = "1"
    folder: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        "runs", description="Parent of all runs, relative to the working folder."
    )


class Budget(ComponentConfig):
    """When training ends: whichever limit is reached first.

    Shares of the budget (schedules, markers) are shares of `steps`, `epochs` or `hours`, whichever is used up most.
    `exit_after_hours` ends a run before that and leaves shares as they are.
    """

    steps: int | None = Field(None, gt=0, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training data.")
    hours: float | None = Field(None, gt=0, description="Hours of training, interruptions not counted.")
    exit_after_hours: float | None = Field(
        None, gt=0, description="Hours of training after which the run ends although its budget is not used up."
    )

    @model_validator(mode="after")
    def _limits_fit(self) -> Budget:
        if self.steps is None and self.epochs is None and self.hours is None:
            raise ValueError("a budget needs at least one of `steps`, `epochs` and `hours`")
        if self.exit_after_hours is not None and self.hours is not None and self.exit_after_hours > self.hours:
            raise ValueError(
                f"`exit_after_hours` ({self.exit_after_hours:g}) comes after `hours` ({self.hours:g}), where the run "
                "has ended: lower it, raise `hours`, or leave it out"
            )
        return self


class Interval(ComponentConfig):
    """How often something happens: every so many steps, passes over the training data, or minutes of training."""

    steps: int | None = Field(None, gt=0, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training data.")
    minutes: float | None = Field(None, gt=0, description="Minutes of training, interruptions not counted.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Interval:
        if sum(value is not None for value in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("an interval is one of `steps`, `epochs` and `minutes`")
        return self


Steps = Annotated[int, Field(gt=0)]
Every = Steps | Interval
"""`500` or `{steps: 500}`, `{epochs: 0.5}`, `{minutes: 30}`."""

Share = Annotated[float, Field(gt=0, lt=1)]


def _rising(values: list[float]) -> list[float]:
    if any(before >= after for before, after in pairwise(values)):
        raise ValueError("shares of the budget must rise from one to the next")
    return values


Shares = Annotated[list[Share], AfterValidator(_rising)]


class TrainingSettings(ComponentConfig):
    """The training loop and its engine."""

    budget: Budget
    batch_size: int = Field(gt=0, description="Sequences a step, over all processes.")
    micro_batch_size: int | None = Field(
        None, gt=0, description="Sequences of one forward pass on one process; default: batch_size / processes."
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_clipping: float = Field(0.0, ge=0, description="Largest norm of the gradient; 0 switches clipping off.")
    compile: bool = Field(
        False, description="Whether the models are compiled by torch; what it brings is in docs/performance.md."
    )
    zero_stage: Literal[0, 1, 2] | None = Field(
        None, description="DeepSpeed ZeRO stage; default: 0 with fp32, 1 with bf16 and fp16."
    )
    stall_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes without a step after which the run is ended; default: by the pace of the run.",
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="Further keys of DeepSpeed's configuration.")


class ValidationPhase(ComponentConfig):
    """A first or last part of the budget in which validation comes at another pace."""

    share: Share = Field(description="Share of the budget that is this part.")
    every: Every = Field(description="Between two validations in this part.")


class ValidationSettings(ComponentConfig):
    """Loss on held-out text: before the first step, every `every`, and at the end."""

    every: Every | Literal["never"] = Field(500, description="Between two validations; `never` switches it off.")
    begin: ValidationPhase | None = Field(None, description="Another pace in the first part of the budget.")
    end: ValidationPhase | None = Field(None, description="Another pace in the last part of the budget.")
    batch_size: int | None = Field(None, gt=0, description="Sequences a batch and process; default: the micro batch.")

    @model_validator(mode="after")
    def _parts_fit(self) -> ValidationSettings:
        if self.every == "never" and (self.begin is not None or self.end is not None):
            raise ValueError("`every: never` switches validation off; `begin` and `end` then mean nothing")
        if self.begin is not None and self.end is not None and self.begin.share + self.end.share > 1:
            raise ValueError(
                f"`begin.share` ({self.begin.share:g}) and `end.share` ({self.end.share:g}) are more than the budget"
            )
        return self


class CheckpointSettings(ComponentConfig):
    """Checkpoints to resume from, and students exported on the way."""

    every: Every = Field(500, description="Between two checkpoints to resume from.")
    keep: int = Field(2, gt=0, description="How many of them are kept.")
    keep_at: Shares = Field(
        default_factory=list, description="Shares of the budget whose checkpoints are kept for good."
    )
    export_at: Shares = Field(
        default_factory=list,
        description="Shares of the budget at which the student is exported, to `exports/budget-SHARE`.",
    )
    export_at_end: bool = Field(True, description="Whether the finished student is exported, to `exports/final`.")


class EarlyStopping(ComponentConfig):
    """When a run is given up as failed."""

    after_minutes: float | None = Field(None, ge=0, description="Minutes of training from which `max_loss` counts.")
    max_loss: float | None = Field(None, description="Largest held-out loss that is put up with after that time.")
    max_steps_at_min_loss_scale: int = Field(
        100, gt=0, description="Steps in a row that fp16's loss scale may sit at its minimum."
    )

    @model_validator(mode="after")
    def _both(self) -> EarlyStopping:
        if (self.after_minutes is None) != (self.max_loss is None):
            raise ValueError("`after_minutes` and `max_loss` only mean something together")
        return self


class LoggingSettings(ComponentConfig):
    """How often metrics go to the trackers."""

    every: int = Field(10, gt=0, description="Steps between two rows of metrics.")


def _default_trackers() -> list[str | dict[str, Any]]:
    return ["tensorboard", "jsonl"]


class RecipeSettings(ComponentConfig):
    """A whole recipe after `extends` and overrides. Component sections are maps with a `name`."""

    imports: list[PathString] = Field(default_factory=list, description="Python files that register components.")
    run: RunSettings
    seed: int = Field(0, ge=0, lt=2**63)
    teacher: dict[str, Any] | None = None
    student: dict[str, Any]
    task: dict[str, Any]
    losses: dict[str, dict[str, Any]] = Field(min_length=1)
    optimizer: dict[str, Any] = Field(default_factory=lambda: {"name": "adamw"})
    scheduler: dict[str, Any] = Field(default_factory=lambda: {"name": "linear"})
    training: TrainingSettings
    validation: ValidationSettings = ValidationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    early_stopping: EarlyStopping = EarlyStopping()
    logging: LoggingSettings = LoggingSettings()
    tracking: list[str | dict[str, Any]] = Field(default_factory=_default_trackers)
