"""The keys of a recipe that the core owns, checked without importing torch or any component.

Sections that name a component (`teacher`, `optimizer`, ...) are kept as plain maps here; each is checked against its
component's own `Config` once that component has been imported (see `kdcore.recipe.loading`).
"""

from __future__ import annotations

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
    folder: str = Field("runs", description="Parent of all runs, relative to the working folder.")


class Budget(ComponentConfig):
    """When training ends: whichever limit is reached first."""

    steps: int | None = Field(None, gt=0, description="Optimizer steps.")
    hours: float | None = Field(None, gt=0, description="Hours of training, interruptions not counted.")

    @model_validator(mode="after")
    def _at_least_one(self) -> Budget:
        if self.steps is None and self.hours is None:
            raise ValueError("a budget needs `steps`, `hours` or both")
        return self


class TrainingSettings(ComponentConfig):
    """The training loop and its engine."""

    budget: Budget
    batch_size: int = Field(gt=0, description="Sequences a step, over all processes.")
    micro_batch_size: int | None = Field(
        None, gt=0, description="Sequences of one forward pass on one process; default: batch_size / processes."
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_clipping: float = Field(0.0, ge=0, description="Largest norm of the gradient; 0 switches clipping off.")
    zero_stage: Literal[0, 1, 2] | None = Field(
        None, description="DeepSpeed ZeRO stage; default: 0 with fp32, 1 with bf16 and fp16."
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="Further keys of DeepSpeed's configuration.")


class ValidationSettings(ComponentConfig):
    """Loss on held-out text, at the start, every `every` steps and at the end."""

    every: int = Field(500, gt=0, description="Steps between two validations.")
    batch_size: int | None = Field(None, gt=0, description="Sequences a batch and process; default: the micro batch.")


class CheckpointSettings(ComponentConfig):
    """Checkpoints to resume from."""

    every: int = Field(500, gt=0, description="Steps between two checkpoints.")
    keep: int = Field(2, gt=0, description="How many are kept.")


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
    logging: LoggingSettings = LoggingSettings()
    tracking: list[str | dict[str, Any]] = Field(default_factory=_default_trackers)
