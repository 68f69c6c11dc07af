"""From a checked recipe to live objects."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.errors import InputError, PluginError, RecipeError
from kdcore.losses.base import Loss, LossConfig
from kdcore.models.base import Encoder, Model
from kdcore.optimizers.base import Optimizer
from kdcore.progress import Progress
from kdcore.recipe.loading import Component, Components, Recipe
from kdcore.schedulers.base import Scheduler
from kdcore.signals import Batch, ModelInfo, Requests
from kdcore.tasks.base import StoredData, Task
from kdcore.training.module import union_of_requests
from kdcore.transforms.base import ParameterSource, Transform

# Batches, the tokenizer and heads are made for these before training starts.
KEPT_BY_TRANSFORMS = ("vocab_size", "max_length", "num_classes", "class_labels", "has_lm_head")


@dataclass(frozen=True)
class Stage:
    """A part of a run in which the student's structure stays the same.

    Attributes:
        info: describes the student.
        losses: the active losses by their labels, constructed for this student.
        begins: fraction of the budget after which the stage begins.
        transform: makes its student from that of the stage before; None for the first stage.
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
class Plan:
    """All that a run needs, described and checked, with no weights loaded yet.

    Attributes:
        requests: what the losses of all stages read.
        stages: the stages of the run, at least one.
    """

    recipe: Recipe
    components: Components
    teacher: Model | None
    student: Model
    stages: list[Stage]
    requests: Requests
    task: Task
    optimizer: Optimizer
    scheduler: Scheduler

    @property
    def losses(self) -> dict[str, Loss]:
        """The losses of the first stage by their labels."""
        return self.stages[0].losses

    @property
    def steps_per_epoch(self) -> float:
        """Steps that one pass over the training data takes; not whole as a rule."""
        return self.task.num_samples("train") / self.recipe.settings.training.batch_size

    @property
    def start(self) -> Progress:
        """The run's limits, as its progress before the first step."""
        return Progress.start(self.recipe.settings.training.budget, self.steps_per_epoch)

    def small_batch(self) -> Batch:
        """One or two samples, to try things on."""
        samples = np.arange(min(2, self.task.num_samples("train")), dtype=np.int64)
        return self.task.batch("train", samples, np.zeros_like(samples))

    def load_teacher(self) -> Encoder | None:
        """The teacher, as deep as the losses read; None if they read nothing of it."""
        if self.teacher is None or not self.requests.teacher:
            return None
        assert self.components.teacher is not None
        with located(self.recipe, self.components.teacher.key):
            return self.teacher.load_teacher(self.requests.teacher)

    def build_student(self, stage: int = 0) -> Encoder:
        """Make the student of a stage on the CPU in float32.

        At stage 0 it has its first weights. Later ones have the structure of their stage, and weights that mean
        nothing until trained ones are loaded into them.

        Raises:
            InputError: the run has no such stage.
        """
        if stage >= len(self.stages):
            what = f"the checkpoint is of stage {stage}, but the recipe has {len(self.stages)} (counted from 0)"
            raise InputError(what, where=str(self.recipe.path), key="stages")
        torch.manual_seed(self.recipe.settings.seed)
        with located(self.recipe, self.components.student.key):
            student = self.student.build_student(self.requests.student)
        for number in range(1, stage + 1):
            student, _ = self.transform_student(student, number)
        return student

    def transform_student(self, student: Encoder, stage: int) -> tuple[Encoder, dict[str, ParameterSource]]:
        """Make the student of a stage from that of the stage before, on the CPU.

        Returns:
            The student, and the sources of all its parameters that have one.

        Raises:
            InputError: the transform refuses the student.
            PluginError: the transform does not keep to its interface.
        """
        entry = self.stages[stage]
        assert entry.transform is not None
        before = dict(student.named_parameters())
        shapes = {name: parameter.shape for name, parameter in before.items()}
        generator = torch.Generator().manual_seed((self.recipe.settings.seed + stage) % 2**63)
        with located(self.recipe, entry.key):
            changed, stated = entry.transform.apply(student, generator)
        sources = with_sources(changed, before, stated)
        problem = transform_fault(changed, entry.info, sources, shapes)
        if problem:
            where = str(self.recipe.origin(entry.key))
            raise PluginError(f"the transform `{entry.name}` {problem}", where=where, key=entry.key)
        return changed, sources


def make_plan(recipe: Recipe, stored: StoredData | None = None) -> Plan:
    """Describe and check everything that a recipe names; data is prepared here if it has not been.

    Args:
        recipe: what to describe.
        stored: the data that the run has started on, if it is to be resumed.

    Raises:
        InputError: something does not fit; it names the place in the recipe.
    """
    components = recipe.components()
    settings = recipe.settings
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    teacher = None
    if components.teacher is not None:
        with located(recipe, components.teacher.key):
            teacher = components.teacher.cls(components.teacher.config, "teacher", None)
    with located(recipe, components.student.key):
        student = components.student.cls(components.student.config, "student", teacher)
    head = components.task.cls.class_head(components.task.config)
    if head is not None:
        with located(recipe, components.student.key):
            student.set_classes(head)
    stages = _make_stages(recipe, components, teacher.info if teacher else None, student.info)
    requests = union_of_requests(loss.requests() for stage in stages for loss in stage.losses.values())
    if not components.task.cls.masks_tokens:
        for stage in stages:
            check_positions(recipe, components, stage.losses)
    optimizer = _make(recipe, components.optimizer)
    scheduler = _make(recipe, components.scheduler)
    with located(recipe, components.task.key):
        config = components.task.cls.completed(components.task.config, student, teacher)
        cls, where = components.task.cls, (config, settings.seed, cache_folder())
        task = cls(*where) if stored is None else cls.resumed(*where, stored)
        task.check(student, teacher if requests.teacher else None)
    plan = Plan(recipe, components, teacher, student, stages, requests, task, optimizer, scheduler)
    with located(recipe, components.scheduler.key):
        scheduler.check(plan.start)
    with located(recipe, "validation"):
        check_validation(recipe, task)
    return plan


def _make_stages(recipe: Recipe, components: Components, teacher: ModelInfo | None, student: ModelInfo) -> list[Stage]:
    """Describe the student of every stage, and construct the losses that are active in it for that student."""
    configs: dict[str, Any] = {label: component.config for label, component in components.losses.items()}
    transforms = [_make(recipe, component) for component in components.transforms]
    begins = [0.0, *(transform.config.at for transform in transforms), 1.0]

    def make_losses(info: ModelInfo, number: int) -> dict[str, Loss]:
        losses = {}
        for label, component in components.losses.items():
            # Of a run without stages every loss is constructed, so that mistakes in inactive ones are found, too.
            if not components.transforms or is_active_between(configs[label], *begins[number : number + 2]):
                with located(recipe, component.key):
                    losses[label] = component.cls(component.config, teacher, info)
        return {label: loss for label, loss in losses.items() if is_ever_active(loss.config)}

    stages = [Stage(student, make_losses(student, 0))]
    with located(recipe, "losses"):
        check_schedule(configs.values())
    for number, (component, transform) in enumerate(zip(components.transforms, transforms, strict=True), start=1):
        before = stages[-1].info
        with located(recipe, component.key):
            info = transform.describe(before)
            for name in KEPT_BY_TRANSFORMS:
                if getattr(info, name) != getattr(before, name):
                    raise InputError(
                        f"the transform `{component.name}` changes the student's {name} "
                        f"(found {getattr(info, name)}, expected {getattr(before, name)}), which no stage may"
                    )
        try:
            losses = make_losses(info, number)
        except InputError as error:
            after = f"after the transform `{component.name}` ({component.key})"
            raise type(error)([replace(one, what=f"{after}: {one.what}") for one in error.problems]) from error
        stages.append(Stage(info, losses, begins[number], transform, component.key, component.name))
    return stages


def with_sources(
    student: Encoder, before: Mapping[str, Tensor], stated: Mapping[str, ParameterSource]
) -> dict[str, ParameterSource]:
    """The sources that a transform states, and those of parameters that are the same objects as before.

    Args:
        student: the changed student.
        before: the parameters before the change.
        stated: what the transform gave.
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
    """What keeps a changed student from the interface of transforms; empty if nothing does.

    Args:
        student: the changed student.
        info: what the transform described.
        sources: sources of its parameters.
        shapes: shapes of the parameters before the change.
    """
    if student.info != info:
        return f"gives a student other than it described (found {student.info}, expected {info})"
    parameters = dict(student.named_parameters())
    for name, source in sources.items():
        if name not in parameters or source.name not in shapes:
            return f"names a parameter that does not exist: `{name}` from `{source.name}`"
        before = torch.empty(shapes[source.name])
        found = (before if source.select is None else source.select(before)).shape
        if found != parameters[name].shape:
            wanted = tuple(parameters[name].shape)
            return f"takes `{name}` from `{source.name}` in another shape (found {tuple(found)}, expected {wanted})"
    return ""


def check_validation(recipe: Recipe, task: Task) -> None:
    """Refuse validation without held-out data, and early stopping without validation.

    Raises:
        RecipeError: names both keys.
    """
    settings = recipe.settings
    held_out = task.num_samples("held_out") > 0
    if "validation" in recipe.data and settings.validation.every != "never" and not held_out:
        raise RecipeError(
            "validation is asked for, but `task.data` holds no text out",
            key="validation",
            hint="hold some out (`task.data.held_out: 0.02`) or say `validation.every: never`",
        )
    if settings.early_stopping.max_loss is not None and (settings.validation.every == "never" or not held_out):
        raise RecipeError(
            "`early_stopping.max_loss` bounds the held-out loss, which is never computed here",
            key="early_stopping.max_loss",
            hint="let `validation` and `task.data.held_out` ask for it, or leave the bound out",
        )


def check_positions(recipe: Recipe, components: Components, losses: Mapping[str, Loss]) -> None:
    """Refuse losses on masked positions where the task has none.

    Raises:
        RecipeError: names the loss and the task.
    """
    for label, loss in losses.items():
        requests = loss.requests()
        if "masked" in requests.student.prediction_positions | requests.teacher.prediction_positions:
            with located(recipe, components.losses[label].key):
                raise RecipeError(
                    f"`{components.losses[label].name}` reads predictions at masked positions, and the task "
                    f"`{components.task.name}` masks none",
                    hint="use the task masked_lm, or losses such as classification",
                )


def is_ever_active(config: LossConfig) -> bool:
    """Whether there is a part of the budget in which the loss has a weight."""
    return is_active_between(config, 0.0, 1.0)


def is_active_between(config: LossConfig, start: float, end: float) -> bool:
    """Whether the loss has a weight somewhere between two fractions of the budget."""
    return any(config.weight_at(fraction) > 0 for fraction in _middles([config], start, end))


def check_schedule(configs: Collection[LossConfig]) -> None:
    """Refuse schedules that leave a part of the budget without any loss.

    Raises:
        RecipeError: names the part.
    """
    for middle, (start, end) in _middles(configs, 0.0, 1.0).items():
        if not any(config.weight_at(middle) > 0 for config in configs):
            raise RecipeError(
                f"no loss is active between the fractions {start:g} and {end:g} of the budget",
                key="losses",
                hint="let `active` and `weight` of the losses cover the budget from 0 to 1",
            )


def _middles(configs: Iterable[LossConfig], start: float, end: float) -> dict[float, tuple[float, float]]:
    """The stretches of a part of the budget between which weights can change their course, by their middles."""
    edges = {start, end}
    for config in configs:
        edges.update(config.active)
        if isinstance(config.weight, list):
            edges.update(fraction for fraction, _ in config.weight)
    within = sorted(edge for edge in edges if start <= edge <= end)
    return {(before + after) / 2: (before, after) for before, after in pairwise(within)}


def cache_folder() -> Path:
    """Where prepared data is kept: the environment variable KDCORE_CACHE, else `~/.cache/kdcore`."""
    return Path(os.environ.get("KDCORE_CACHE") or Path.home() / ".cache" / "kdcore")


def _make(recipe: Recipe, component: Component) -> Any:
    with located(recipe, component.key):
        return component.cls(component.config)


@contextmanager
def located(recipe: Recipe, key: str) -> Iterator[None]:
    """Add the place in the recipe to problems that a component raises about its own keys."""
    try:
        yield
    except InputError as error:
        problems = []
        for problem in error.problems:
            inner = problem.key or ""
            full = (
                inner if inner.split(".")[0] == key.split(".")[0] else ".".join(part for part in (key, inner) if part)
            )
            what = problem.what if problem.where is None else f"{problem.where}: {problem.what}"
            problems.append(replace(problem, what=what, where=str(recipe.origin(full)), key=full))
        raise type(error)(problems) from error
