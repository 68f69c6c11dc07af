"""Define the plan of a run and its stages: component instances without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcore.errors import InputError, PluginError
from kdcore.faults import plugin_faults
from kdcore.losses.base import Loss
from kdcore.models.base import Encoder, Model
from kdcore.optimizers.base import Optimizer
from kdcore.progress import Progress
from kdcore.recipe.error_location import error_location
from kdcore.recipe.loading import Components, Recipe
from kdcore.schedulers.base import Scheduler
from kdcore.signals import Batch, ModelInfo, SignalRequest, Signals
from kdcore.tasks.base import Split, Task
from kdcore.training.engine.module import ModelRequests, union_of_requests
from kdcore.training.engine.teachers import CompositeTeacher, requests_of_models
from kdcore.transforms.base import ParameterSource, Transform

# Batches, the tokenizer and heads are created for these before training starts.
KEPT_BY_TRANSFORMS = ("vocab_size", "max_length", "heads")


@dataclass(frozen=True)
class Stage:
    """A part of a run in which the student's structure stays the same.

    Attributes:
        info: description of the student.
        losses: the active losses by their labels, constructed for this student.
        begins: fraction of the budget after which the stage begins.
        transform: transform that creates the student from the previous stage's student; None for the first stage.
        key: the stage's entry in the recipe, such as `stages.0`; None for the first stage.
        name: name of the transform; empty for the first stage.
    """

    info: ModelInfo
    losses: dict[str, Loss]
    begins: float = 0.0
    transform: Transform | None = None
    key: str = ""
    name: str = ""


@dataclass(frozen=True)
class RecipeTeacher:
    """A teacher that losses of a recipe read.

    Attributes:
        key: its section in the recipe, such as `teachers.large`.
        name: name of its model in the recipe.
        model: the model, before weights are loaded.
        requests: signals that losses and validation read in batches of the splits `train` and `held_out`.
    """

    key: str
    name: str
    model: Model
    requests: Mapping[Split, SignalRequest]


@dataclass(frozen=True)
class Plan:
    """The checked parts of a run, before any weights are loaded.

    Attributes:
        teachers: the teachers by label; the teacher under `teacher:` has the label `teacher`.
        composites: teachers that combine others, by label.
        requests: signals that the losses of all stages read.
        stages: the stages of the run, at least one.
    """

    recipe: Recipe
    components: Components
    teachers: dict[str, Model]
    composites: dict[str, CompositeTeacher]
    student: Model
    stages: list[Stage]
    requests: ModelRequests
    task: Task
    optimizer: Optimizer
    scheduler: Scheduler

    @property
    def losses(self) -> dict[str, Loss]:
        """The losses of the first stage by their labels."""
        return self.stages[0].losses

    @property
    def steps_per_epoch(self) -> float:
        """Steps of one pass over the training data; usually not an integer."""
        return self.task.num_samples("train") / self.recipe.settings.training.batch_size

    @property
    def start(self) -> Progress:
        """The run's progress before the first step, with its limits."""
        return Progress.start(self.recipe.settings.training.budget, self.steps_per_epoch)

    def small_batch(self) -> Batch:
        """Draw a batch of one or two samples, for trial runs."""
        samples = np.arange(min(2, self.task.num_samples("train")), dtype=np.int64)
        with plugin_faults(self.task, "task"):
            return self.task.draw("train", samples, np.zeros_like(samples))

    def teacher_requests(self, split: Split) -> dict[str, SignalRequest]:
        """Return the request to each teacher for batches of a split, by label; empty requests are left out.

        For validation, the hidden states after the deepest block that a stage's losses read are also requested.
        """
        found = requests_of_models(self.requests.teachers, self.composites)
        for stage in self.stages if split != "train" else ():
            asked = union_of_requests(stage.losses.values()).teachers
            for label, request in requests_of_models(asked, self.composites).items():
                found[label] |= Signals.hidden([request.deepest_block(self.teachers[label].info.num_layers)])
        return found

    def read_teachers(self) -> dict[str, RecipeTeacher]:
        """Return the teachers that losses read, by label."""
        splits: tuple[Split, ...] = ("train", "held_out")
        asked = {split: self.teacher_requests(split) for split in splits}
        found = {}
        for label in asked["train"]:
            component, requests = self.components.teachers[label], {split: asked[split][label] for split in splits}
            found[label] = RecipeTeacher(component.key, component.name, self.teachers[label], requests)
        return found

    def load_teachers(self) -> dict[str, Encoder]:
        """Load each teacher up to the last block that losses read, by label; leave out teachers that no loss reads."""
        loaded = {}
        for label, teacher in self.read_teachers().items():
            with error_location(self.recipe, teacher.key):
                loaded[label] = teacher.model.load_teacher(teacher.requests["held_out"])
        return loaded

    def build_student(self, stage: int = 0) -> Encoder:
        """Construct the student of a stage on the CPU in float32.

        At stage 0 it has its initial weights. At later stages it has the structure of the stage, with placeholder
        weights until trained ones are loaded.

        Raises:
            InputError: the run does not have that stage.
        """
        self.check_stage(stage)
        torch.manual_seed(self.recipe.settings.seed)
        with error_location(self.recipe, self.components.student.key):
            student = self._set_up(self.student.build_student(self.requests.student))
        for number in range(1, stage + 1):
            student, _ = self.transform_student(student, number)
        return student

    def check_stage(self, stage: int) -> None:
        """Reject a checkpoint of a stage that the run does not have.

        Raises:
            InputError: the run does not have that stage.
        """
        if stage >= len(self.stages):
            last = len(self.stages) - 1
            what = f"the recipe lacks the stage of the checkpoint (found stage {stage}, expected 0 to {last})"
            raise InputError(what, where=str(self.recipe.path), key="stages")

    def transform_student(self, student: Encoder, stage: int) -> tuple[Encoder, dict[str, ParameterSource]]:
        """Construct the student of a stage from the previous stage's student, on the CPU.

        Returns:
            The student, and the source of each parameter that has one.

        Raises:
            InputError: the transform rejects the student.
            PluginError: the transform violates its interface.
        """
        entry = self.stages[stage]
        assert entry.transform is not None
        before = dict(student.named_parameters())
        shapes = {name: parameter.shape for name, parameter in before.items()}
        generator = torch.Generator().manual_seed((self.recipe.settings.seed + stage) % 2**63)
        with error_location(self.recipe, entry.key):
            changed, stated = entry.transform.apply(student, generator)
        sources = with_sources(changed, before, stated)
        problem = transform_fault(changed, entry.info, sources, shapes)
        if problem:
            where = str(self.recipe.origin(entry.key))
            raise PluginError(f"the transform `{entry.name}` {problem}", where=where, key=entry.key)
        return self._set_up(changed), sources

    def _set_up(self, student: Encoder) -> Encoder:
        """Apply the settings of training to a new student."""
        if self.recipe.settings.training.gradient_checkpointing:
            with error_location(self.recipe, "training"):
                student.checkpoint_gradients()
        return student


def with_sources(
    student: Encoder, before: Mapping[str, Tensor], stated: Mapping[str, ParameterSource]
) -> dict[str, ParameterSource]:
    """Merge the sources returned by a transform with the sources of the parameter objects that it kept.

    Args:
        student: the changed student.
        before: the parameters before the change.
        stated: sources returned by the transform.
    """
    names = {id(parameter): name for name, parameter in before.items()}
    kept = {
        name: ParameterSource(names[id(parameter)])
        for name, parameter in student.named_parameters()
        if id(parameter) in names
    }
    return kept | dict(stated)


def transform_fault(
    student: Encoder, info: ModelInfo, sources: Mapping[str, ParameterSource], shapes: Mapping[str, torch.Size]
) -> str:
    """Describe how a changed student violates the interface of transforms; empty if there is no violation.

    Args:
        student: the changed student.
        info: the transform's description of the student.
        sources: sources of its parameters.
        shapes: shapes of the parameters before the change.
    """
    if student.info != info:
        return f"returned a student that differs from its description (found {student.info}, expected {info})"
    parameters = dict(student.named_parameters())
    for name, source in sources.items():
        if name not in parameters or source.name not in shapes:
            return f"returned a source for a parameter that does not exist: `{name}` from `{source.name}`"
        before = torch.empty(shapes[source.name])
        found = (before if source.select is None else source.select(before)).shape
        if found != parameters[name].shape:
            wanted = tuple(parameters[name].shape)
            return f"takes `{name}` from `{source.name}` with the wrong shape (found {tuple(found)}, expected {wanted})"
    return ""
