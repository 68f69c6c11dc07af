"""Define the core's recipe keys, which are checked without importing torch or any component.

Sections of components (`teacher`, `optimizer`, ...) are plain maps here; each is checked against the `Config` of its
component once the component has been imported (see `kdcore.recipe.loading`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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

from kdcore.recipe.paths import refuse_impossible

SECTION_DEFAULTS = {
    "teacher": "transformers",
    "teachers": "transformers",
    "student": "transformers",
    "optimizer": "adamw",
    "scheduler": "linear",
}
"""Default component of a section without `name`; the default of a loss is its label."""

DEFAULT_PREPARATION = "raw_text"
"""The preparation of a data recipe without `name`; it is left out of stored recipes."""


class RecipePath:
    """Mark a string field of a config as a path; relative paths are resolved against the file that contains them.

    `package:DISTRIBUTION/PATH` is a file or folder of an installed distribution. With `hub=True`, a string that does
    not exist as a path may also be the name of a hub model and is then left unchanged.
    """

    def __init__(self, *, hub: bool = False) -> None:
        self.hub = hub


class ComponentSection:
    """Mark a map field as the section of a component of a registry, such as one corpus of a data recipe.

    The loader makes its paths absolute and checks its keys with the component's `Config`. The type of the field is a
    plain map: `Annotated[dict[str, Any], ComponentSection("kdcore.corpora")]`.

    Args:
        group: the registry's entry point group.
        default: the component of a section without `name`; its name is left out of stored recipes. If None, `name` is
            required.
        file: whether a string that names an existing file refers to the section in that file. The string is kept, and
            the file is checked together with the recipe.
    """

    def __init__(self, group: str, *, default: str | None = None, file: bool = False) -> None:
        self.group = group
        self.default = default
        self.file = file

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Insert a mark that `kdcore recipe schema` replaces with the schemas of the installed components."""
        return {**handler(core_schema), "x-kdcore-components": self.group, "x-kdcore-default": self.default}


PathString = Annotated[str, RecipePath()]
PathOrHubName = Annotated[str, RecipePath(hub=True)]

DATA_RECIPE = ComponentSection("kdcore.preparations", default=DEFAULT_PREPARATION, file=True)
DataSource = PathString | Annotated[dict[str, Any], DATA_RECIPE]
"""A prepared folder, a data recipe's file, or a data recipe; `kdcore.open_data` opens it."""

MERGE_DEFAULTS = {**SECTION_DEFAULTS, "task.data": DEFAULT_PREPARATION}
"""The component of a section without `name`, by dotted key: a section with another `name` replaces it."""


class ComponentConfig(BaseModel):
    """Base class of every nested `Config`: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


TEACHER = "teacher"
"""Label of the teacher under `teacher:`; teachers under `teachers:` have the labels given there."""


class TeacherKeys(ComponentConfig):
    """The core's keys in the section of a teacher; all other keys belong to its model."""

    cache: Literal["auto"] | PathString | None = Field(
        None,
        description="Folder of the teacher's signals, written by `kdcore teacher cache`; or `auto`, so that the "
        "first run that needs the signals computes them.",
    )


def without_cache(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a teacher's section, without `cache` if it also has keys of its model."""
    stated = bool(section.keys() - {"cache", "name"})
    return {key: value for key, value in section.items() if key != "cache" or not stated}


class CompositeSettings(ComponentConfig):
    """An entry of `teachers` that combines the outputs of others; it has exactly one of the two keys."""

    average: list[str] | None = Field(None, min_length=2, description="Labels of the teachers to average.")
    concat: list[str] | None = Field(None, min_length=2, description="Labels of the teachers to concatenate.")

    @model_validator(mode="after")
    def _exactly_one(self) -> CompositeSettings:
        if (self.average is None) == (self.concat is None):
            raise ValueError("a composite teacher requires exactly one of `average` and `concat`")
        if len(set(self.members)) < len(self.members):
            raise ValueError(f"a composite teacher must list each member only once (found {', '.join(self.members)})")
        return self

    @property
    def members(self) -> list[str]:
        """Labels of the combined teachers, in their order."""
        return self.average or self.concat or []


def is_composite(section: Any) -> bool:
    """Return whether an entry of `teachers` combines others, instead of naming a model."""
    return isinstance(section, dict) and "name" not in section and not section.keys().isdisjoint(_COMPOSITE_KEYS)


_COMPOSITE_KEYS = set(CompositeSettings.model_fields)


def _number_as_text(value: Any) -> Any:
    """Accept `run.id: 1` as `run.id: "1"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _folder_name(value: str) -> str:
    if not value:
        reason = "it is empty"
    elif not value.isprintable():
        reason = "it contains a character that cannot be printed"
    elif not value.strip():
        reason = "it consists of spaces"
    elif len(value.encode()) > 255:
        reason = "it is longer than 255 bytes"
    elif value.startswith("."):
        reason = "it starts with a dot"
    elif set(value) & set("/\\"):
        reason = "it contains a slash"
    else:
        return value
    raise ValueError(f"{value if len(value) <= 60 else value[:57] + '...'!r} is not a valid folder name: {reason}")


def _runs_folder(value: str) -> str:
    if not value.isprintable():  # a line break would end a comment in a batch script
        raise ValueError(f"{value[:60]!r} is not a valid folder: it contains a character that cannot be printed")
    refuse_impossible(value)
    return os.path.expanduser(value)


FolderName = Annotated[str, AfterValidator(_folder_name)]


class RunSettings(ComponentConfig):
    """Location of the run folder: `folder/name/id`."""

    name: FolderName = Field(description="Name of the experiment.")
    id: Annotated[FolderName, BeforeValidator(_number_as_text)] = "1"
    folder: Annotated[str, AfterValidator(_runs_folder)] = Field(
        "runs", description="Parent folder of all runs, relative to the working directory."
    )


class Budget(ComponentConfig):
    """Training budget; training ends at the first limit that is reached.

    Fractions of the budget (in schedules and markers) refer to whichever limit is closest to being used up: `steps`,
    `epochs` or `hours`. `exit_after_hours` ends a run earlier, but does not change these fractions.
    """

    steps: int | None = Field(None, gt=0, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training data.")
    hours: float | None = Field(None, gt=0, description="Hours of training, without interruptions.")
    exit_after_hours: float | None = Field(
        None, gt=0, description="Hours of training after which the run ends even if its budget is not used up."
    )

    @model_validator(mode="after")
    def _limits_fit(self) -> Budget:
        if self.steps is None and self.epochs is None and self.hours is None:
            raise ValueError("a budget requires at least one of `steps`, `epochs` and `hours`")
        if self.exit_after_hours is not None and self.hours is not None and self.exit_after_hours > self.hours:
            raise ValueError(
                f"`exit_after_hours` ({self.exit_after_hours:g}) exceeds `hours` ({self.hours:g}), at which the run "
                "ends: lower or omit it, or raise `hours`"
            )
        return self


class Interval(ComponentConfig):
    """Interval between two events, in steps, passes over the training data, or minutes of training."""

    steps: int | None = Field(None, gt=0, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training data.")
    minutes: float | None = Field(None, gt=0, description="Minutes of training, without interruptions.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Interval:
        if sum(value is not None for value in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("an interval must have exactly one of `steps`, `epochs` and `minutes`")
        return self


Steps = Annotated[int, Field(gt=0)]
Every = Steps | Interval
"""`500` or `{steps: 500}`, `{epochs: 0.5}`, `{minutes: 30}`."""

Share = Annotated[float, Field(gt=0, lt=1)]


def _rising(values: list[float]) -> list[float]:
    if any(before >= after for before, after in pairwise(values)):
        raise ValueError("fractions of the budget must be strictly increasing")
    return values


Shares = Annotated[list[Share], AfterValidator(_rising)]


class TrainingSettings(ComponentConfig):
    """Settings of the training loop and its engine."""

    budget: Budget
    batch_size: int = Field(gt=0, description="Sequences per optimizer step, over all processes.")
    micro_batch_size: int | None = Field(
        None, gt=0, description="Sequences per forward pass and process; default: batch_size / processes."
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool | None = Field(
        None, description="Use TF32 for float32 matrix products on a GPU; default: true with bf16 and fp16."
    )
    deterministic: bool = Field(
        False, description="Use deterministic algorithms only; see docs/checkpoints.md for what each setting ensures."
    )
    gradient_clipping: float = Field(0.0, ge=0, description="Maximum norm of the gradient; 0 disables clipping.")
    gradient_caching: bool = Field(
        False,
        description="Compute losses that couple the sequences of a batch over the whole batch of a step, at the cost "
        "of a second forward pass of the student.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute the student's blocks in the backward pass, which saves memory but takes longer."
    )
    compile: bool = Field(
        False, description="Compile the models with torch.compile; measurements are in docs/performance.md."
    )
    zero_stage: Literal[0, 1, 2] | None = Field(
        None, description="DeepSpeed ZeRO stage; default: 0 with fp32, 1 with bf16 and fp16."
    )
    stall_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes without a step after which the run is aborted; default: derived from its step time.",
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="Further keys of the DeepSpeed configuration.")


class ValidationPhase(ComponentConfig):
    """Separate validation interval for the first or last part of the budget."""

    share: Share = Field(description="Length of this part, as a fraction of the budget.")
    every: Every = Field(description="Interval between validations in this part.")


class ValidationSettings(ComponentConfig):
    """Validation on the held-out split: before the first step, at each interval, and at the end."""

    every: Every | Literal["never"] = Field(
        500, description="Interval between validations; `never` disables validation."
    )
    begin: ValidationPhase | None = Field(None, description="Separate interval for the first part of the budget.")
    end: ValidationPhase | None = Field(None, description="Separate interval for the last part of the budget.")
    batch_size: int | None = Field(
        None, gt=0, description="Sequences per batch and process; default: the micro-batch size."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> ValidationSettings:
        if self.every == "never" and (self.begin is not None or self.end is not None):
            raise ValueError("`every: never` disables validation, so `begin` and `end` have no effect")
        if self.begin is not None and self.end is not None and self.begin.share + self.end.share > 1:
            raise ValueError(
                f"the sum of `begin.share` ({self.begin.share:g}) and `end.share` ({self.end.share:g}) exceeds 1"
            )
        return self


class CheckpointSettings(ComponentConfig):
    """Checkpoints to resume from, and exports of the student during training."""

    every: Every = Field(500, description="Interval between checkpoints to resume from.")
    keep: int = Field(2, gt=0, description="Number of these checkpoints to keep.")
    keep_at: Shares = Field(
        default_factory=list, description="Fractions of the budget at which checkpoints are kept permanently."
    )
    export_at: Shares = Field(
        default_factory=list,
        description="Fractions of the budget at which the student is exported to `exports/budget-SHARE`.",
    )
    export_at_start: bool = Field(
        True, description="Export the student before training to `exports/initial`, as a baseline for evaluations."
    )
    export_at_end: bool = Field(True, description="Export the finished student to `exports/final`.")


class EarlyStopping(ComponentConfig):
    """Conditions under which a run fails early, or finishes early without improvement."""

    after_minutes: float | None = Field(None, ge=0, description="Minutes of training after which `max_loss` applies.")
    max_loss: float | None = Field(None, description="Largest held-out loss accepted after that time.")
    max_steps_at_min_loss_scale: int = Field(
        100, gt=0, description="Maximum number of consecutive steps with the fp16 loss scale at its minimum."
    )
    patience: int | None = Field(
        None, gt=0, description="Number of validations without improvement of `metric` after which training ends."
    )
    metric: str = Field("loss", description="Held-out loss or score that `patience` monitors.")
    mode: Literal["min", "max"] | None = Field(
        None, description="Whether lower or higher is better; default: `min` for losses, `max` for scores."
    )

    @model_validator(mode="after")
    def _both(self) -> EarlyStopping:
        if (self.after_minutes is None) != (self.max_loss is None):
            raise ValueError("`after_minutes` and `max_loss` must be set together")
        if self.patience is None and (self.metric, self.mode) != ("loss", None):
            raise ValueError("`metric` and `mode` have no effect without `patience`")
        return self

    def is_over(self, watched: Mapping[str, float], waited: int) -> bool:
        """Return whether patience is exhausted after `waited` validations since the best value in `watched`."""
        return self.patience is not None and self.metric in watched and waited >= self.patience


class LoggingSettings(ComponentConfig):
    """How often metrics are logged to the trackers."""

    every: int = Field(10, gt=0, description="Steps between two rows of metrics.")


def _default_trackers() -> list[str | dict[str, Any]]:
    return ["tensorboard", "jsonl"]


class RecipeSettings(ComponentConfig):
    """A complete recipe after `extends` and overrides. Sections of components are maps with a `name`."""

    imports: list[PathString] = Field(default_factory=list, description="Python files that register components.")
    run: RunSettings
    seed: int = Field(0, ge=0, lt=2**63)
    teacher: dict[str, Any] | None = None
    teachers: dict[str, dict[str, Any]] | None = Field(None, min_length=1)
    student: dict[str, Any]
    task: dict[str, Any]
    losses: dict[str, dict[str, Any]] = Field(min_length=1)
    optimizer: dict[str, Any] = Field(default_factory=lambda: {"name": "adamw"})
    scheduler: dict[str, Any] = Field(default_factory=lambda: {"name": "linear"})
    training: TrainingSettings
    validation: ValidationSettings = ValidationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    early_stopping: EarlyStopping = EarlyStopping()
    stages: list[dict[str, Any]] = Field(
        default_factory=list, description="Changes to the student during training, each at a fraction of the budget."
    )
    logging: LoggingSettings = LoggingSettings()
    tracking: list[str | dict[str, Any]] = Field(default_factory=_default_trackers)
    callbacks: list[str | dict[str, Any]] = Field(default_factory=list)

    @property
    def models_of_teachers(self) -> dict[str, dict[str, Any]]:
        """Sections of all teachers that are models, by label."""
        if self.teacher is not None:
            return {TEACHER: self.teacher}
        return {label: section for label, section in (self.teachers or {}).items() if not is_composite(section)}

    @property
    def students_teacher(self) -> str | None:
        """Label of the teacher that provides the student's missing configuration; None without teachers."""
        labels = list(self.models_of_teachers)
        stated = self.student.get("from") if self.teachers else None
        return str(stated) if stated is not None else labels[0] if labels else None
