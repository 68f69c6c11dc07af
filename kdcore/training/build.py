"""From a checked recipe to live objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcore.errors import InputError, RecipeError
from kdcore.losses.base import Loss, LossConfig
from kdcore.models.base import Encoder, Model
from kdcore.optimizers.base import Optimizer
from kdcore.progress import Progress
from kdcore.recipe.loading import Component, Components, Recipe
from kdcore.schedulers.base import Scheduler
from kdcore.signals import Batch, Requests
from kdcore.tasks.base import StoredData, Task
from kdcore.training.module import union_of_requests


@dataclass(frozen=True)
class Plan:
    """All that a run needs, described and checked, with no weights loaded yet."""

    recipe: Recipe
    components: Components
    teacher: Model | None
    student: Model
    losses: dict[str, Loss]
    requests: Requests
    task: Task
    optimizer: Optimizer
    scheduler: Scheduler

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

    def build_student(self) -> Encoder:
        """The student with its first weights."""
        torch.manual_seed(self.recipe.settings.seed)
        with located(self.recipe, self.components.student.key):
            return self.student.build_student(self.requests.student)


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
    losses = {}
    for label, component in components.losses.items():
        with located(recipe, component.key):
            losses[label] = component.cls(component.config, teacher.info if teacher else None, student.info)
    with located(recipe, "losses"):
        check_schedule(losses)
    losses = {label: loss for label, loss in losses.items() if is_ever_active(loss.config)}
    requests = union_of_requests(loss.requests() for loss in losses.values())
    if not components.task.cls.masks_tokens:
        check_positions(recipe, components, losses)
    optimizer = _make(recipe, components.optimizer)
    scheduler = _make(recipe, components.scheduler)
    with located(recipe, components.task.key):
        config = components.task.cls.completed(components.task.config, student, teacher)
        cls, where = components.task.cls, (config, settings.seed, cache_folder())
        task = cls(*where) if stored is None else cls.resumed(*where, stored)
        task.check(student, teacher if requests.teacher else None)
    plan = Plan(recipe, components, teacher, student, losses, requests, task, optimizer, scheduler)
    with located(recipe, components.scheduler.key):
        scheduler.check(plan.start)
    with located(recipe, "validation"):
        check_validation(recipe, task)
    return plan


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
    return any(config.weight_at(fraction) > 0 for fraction in _middles([config]))


def check_schedule(losses: Mapping[str, Loss]) -> None:
    """Refuse schedules that leave a part of the budget without any loss.

    Raises:
        RecipeError: names the part.
    """
    configs = [loss.config for loss in losses.values()]
    for middle, (start, end) in _middles(configs).items():
        if not any(config.weight_at(middle) > 0 for config in configs):
            raise RecipeError(
                f"no loss is active between the fractions {start:g} and {end:g} of the budget",
                key="losses",
                hint="let `active` and `weight` of the losses cover the budget from 0 to 1",
            )


def _middles(configs: Iterable[LossConfig]) -> dict[float, tuple[float, float]]:
    """The stretches of the budget between which weights can change their course, by their middles."""
    edges = {0.0, 1.0}
    for config in configs:
        edges.update(config.active)
        if isinstance(config.weight, list):
            edges.update(fraction for fraction, _ in config.weight)
    return {(start + end) / 2: (start, end) for start, end in pairwise(sorted(edges))}


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
