"""Build the plan of a run, with component instances, from a checked recipe."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcore.errors import InputError, RecipeError, similar
from kdcore.faults import plugin_faults
from kdcore.losses.base import Loss, LossConfig, require_teacher
from kdcore.models.base import Model
from kdcore.recipe.error_location import error_location
from kdcore.recipe.loading import Component, Components, Recipe
from kdcore.registry import models
from kdcore.signals import ModelInfo
from kdcore.tasks.base import StoredData, Task
from kdcore.training.engine.module import Term, union_of_requests
from kdcore.training.engine.teachers import CompositeTeacher, requests_of_models
from kdcore.training.loop.plan import KEPT_BY_TRANSFORMS, Plan, RecipeTeacher, Stage
from kdcore.training.loop.predictions import scored_head

CACHE = "cache"
"""The model that represents a teacher whose section has this key: `CACHE(config, "teacher", model or None)`."""


def make_plan(recipe: Recipe, stored: StoredData | None = None) -> Plan:
    """Construct and check all components of a recipe; prepare its data if necessary.

    Args:
        recipe: the recipe.
        stored: the data that a resumed run started with.

    Raises:
        InputError: components are incompatible; the message names the key in the recipe.
    """
    components = recipe.components()
    settings = recipe.settings
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    teachers: dict[str, Model] = {}
    for label, component in components.teachers.items():
        with error_location(recipe, component.key):
            teachers[label] = _make_teacher(component)
    composites = _make_composites(recipe, components, teachers)
    lender = teachers.get(settings.students_teacher or "")
    students_teacher = None if lender is None else lender.described
    with error_location(recipe, components.student.key):
        student = components.student.cls(components.student.config, "student", students_teacher)
    with error_location(recipe, components.task.key):
        config = components.task.cls.completed(components.task.config, student, students_teacher)
        heads = components.task.cls.heads(config)
    with error_location(recipe, components.student.key):
        student.set_heads(heads)
    for one in teachers.values():
        one.find_heads(heads)
    stages = _make_stages(recipe, components, _LossTeachers(recipe, teachers, composites), student.info)
    requests = union_of_requests(loss for stage in stages for loss in stage.losses.values())
    for stage in stages:
        if not components.task.cls.masks_tokens:
            check_positions(recipe, components, stage.losses)
        check_student_heads(recipe, components, stage)
        check_columns(recipe, components, stage.losses, components.task.cls.columns)
    if settings.training.gradient_caching:
        check_gradient_caching(recipe, stages)
    optimizer = _make(recipe, components.optimizer)
    scheduler = _make(recipe, components.scheduler)
    with error_location(recipe, components.task.key):
        cls, where = components.task.cls, (config, settings.seed, cache_folder())
        task = cls(*where) if stored is None else cls.resumed(*where, stored)
        read = {label: teachers[label] for label in requests_of_models(requests.teachers, composites)}
        _check_task(task, student, read)
    plan = Plan(recipe, components, teachers, composites, student, stages, requests, task, optimizer, scheduler)
    for teacher in plan.read_teachers().values():
        with error_location(recipe, teacher.key):
            teacher.model.check_task(task, teacher.requests)
    if any(loss.requests().columns for stage in stages for loss in stage.losses.values()):
        provided = plan.small_batch().columns
        for stage in stages:
            check_columns(recipe, components, stage.losses, provided)
    if task.separate_views:
        for stage in stages:
            check_alignment(recipe, components, stage)
    with error_location(recipe, components.scheduler.key):
        scheduler.check(plan.start)
    with error_location(recipe, ""):
        check_validation(recipe, task)
        check_patience(plan)
    return plan


def recipe_teachers(recipe: Recipe) -> tuple[Task, dict[str, RecipeTeacher]]:
    """Return a recipe's task, preparing its data if necessary, and the teachers that its losses read, by label.

    Raises:
        InputError: components are incompatible, as in training.
    """
    plan = make_plan(recipe)
    return plan.task, plan.read_teachers()


def _make_teacher(component: Component) -> Model:
    """Construct a teacher: a model, or a cache of its signals."""
    if component.cache is None:
        model: Model = component.cls(component.config, "teacher", None)
        return model
    live = component.cls(component.config, "teacher", None) if component.section else None
    cls = models.get(CACHE, key=f"{component.key}.cache")
    section = {**component.section, "name": models.pinned(component.name)} if component.section else None
    stored: Model = cls(cls.Config(cache=component.cache, model=section), "teacher", live)
    return stored


def _make_composites(
    recipe: Recipe, components: Components, teachers: Mapping[str, Model]
) -> dict[str, CompositeTeacher]:
    made = {}
    for label, settings in components.composites.items():
        with error_location(recipe, f"teachers.{label}"):
            infos = {member: teachers[member].info for member in settings.members}
            made[label] = CompositeTeacher("average" if settings.average else "concat", infos)
    return made


def _check_task(task: Task, student: Model, teachers: Mapping[str, Model]) -> None:
    """Check that the data is compatible with the student and each teacher that losses read."""
    for label, teacher in teachers.items():
        try:
            task.check(student, teacher.described)
        except InputError as error:
            if len(teachers) == 1:
                raise
            raise type(error)(
                [replace(one, what=f"teacher `{label}`: {one.what}") for one in error.problems]
            ) from error
    if not teachers:
        task.check(student, None)


class _LossTeachers:
    """Select the teacher of each loss."""

    def __init__(
        self, recipe: Recipe, teachers: Mapping[str, Model], composites: Mapping[str, CompositeTeacher]
    ) -> None:
        self._composites = composites
        self._infos = {label: model.info for label, model in teachers.items()}
        self._infos |= {label: composite.info for label, composite in composites.items()}
        self._default = recipe.settings.students_teacher

    def make_loss(self, component: Component, student: ModelInfo) -> Loss:
        """Construct a loss for its teacher: the teacher that it names, or the only one.

        Raises:
            InputError: the loss is incompatible with the models, or does not name the teacher that it reads although
                there are several.
            ValueError: a parameter has no dimensions; `error_location` names the loss and its package.
        """
        config = component.config
        assert isinstance(config, LossConfig)
        label = config.teacher or self._default
        if label is not None and len(self._infos) == 1:
            config = config.model_copy(update={"teacher": label})
        loss: Loss = component.cls(config, self._infos.get(label or ""), student)
        for name, parameter in loss.named_parameters():
            if not parameter.ndim:
                raise ValueError(f"its parameter `{name}` has no dimensions (DeepSpeed needs one: use the shape (1,))")
        asked = loss.requests().teacher
        if asked:
            require_teacher(config, self._infos.get(label or ""))
        if asked and config.teacher is None:
            raise RecipeError(
                "the recipe has several teachers, but the loss does not name one",
                key="teacher",
                allowed=list(self._infos),
                hint=f"Add `teacher: {label}`, or another of these labels.",
            )
        composite = self._composites.get(config.teacher or "")
        if asked and composite is not None:
            composite.check(asked)
        if asked.attention_parts and not self._infos[config.teacher or ""].attention:
            raise _missing_attention(component.name, "teacher", self._infos[config.teacher or ""])
        for name in sorted(asked.heads):
            if self._infos[config.teacher or ""].head(name) is None:
                raise _missing_head(name, "teacher", self._infos[config.teacher or ""])
        return loss


def _make_stages(recipe: Recipe, components: Components, teachers: _LossTeachers, student: ModelInfo) -> list[Stage]:
    """Describe the student of every stage, and construct the stage's active losses for that student."""
    configs: dict[str, Any] = {label: component.config for label, component in components.losses.items()}
    transforms = [_make(recipe, component) for component in components.transforms]
    begins = [0.0, *(transform.config.at for transform in transforms), 1.0]

    def make_losses(info: ModelInfo, number: int) -> dict[str, Loss]:
        losses = {}
        for label, component in components.losses.items():
            # Without stages every loss is constructed, so that mistakes in inactive ones are also found.
            if not components.transforms or is_active_between(configs[label], *begins[number : number + 2]):
                with error_location(recipe, component.key):
                    losses[label] = teachers.make_loss(component, info)
        return {label: loss for label, loss in losses.items() if is_ever_active(loss.config)}

    stages = [Stage(student, make_losses(student, 0))]
    with error_location(recipe, "losses"):
        check_schedule(configs.values())
    for number, (component, transform) in enumerate(zip(components.transforms, transforms, strict=True), start=1):
        before = stages[-1].info
        with error_location(recipe, component.key):
            info = transform.describe(before)
            for name in KEPT_BY_TRANSFORMS:
                if getattr(info, name) != getattr(before, name):
                    raise InputError(
                        f"the transform `{component.name}` changes the student's {name} "
                        f"(found {getattr(info, name)}, expected {getattr(before, name)}): stages must keep it"
                    )
        try:
            losses = make_losses(info, number)
        except InputError as error:
            after = f"after the transform `{component.name}` ({component.key})"
            raise type(error)([replace(one, what=f"{after}: {one.what}") for one in error.problems]) from error
        stages.append(Stage(info, losses, begins[number], transform, component.key, component.name))
    return stages


def check_validation(recipe: Recipe, task: Task) -> None:
    """Reject validation without held-out data, and early stopping without validation.

    Raises:
        RecipeError: one of them is missing; the message names both keys.
    """
    settings = recipe.settings
    held_out = task.num_samples("held_out") > 0
    if "validation" in recipe.data and settings.validation.every != "never" and not held_out:
        raise RecipeError(
            "validation is enabled, but `task.data` has no held-out samples",
            key="validation",
            hint="set `task.data.held_out: 0.02`, or disable it with `validation.every: never`",
        )
    if settings.early_stopping.max_loss is not None and (settings.validation.every == "never" or not held_out):
        raise RecipeError(
            "`early_stopping.max_loss` needs the held-out loss, but the run has no validation",
            key="early_stopping.max_loss",
            hint="set `validation.every` and `task.data.held_out`, or remove `early_stopping.max_loss`",
        )


def check_patience(plan: Plan) -> None:
    """Reject early stopping on a metric that no validation computes, or whose meaning changes during the run.

    Raises:
        RecipeError: the metric cannot be used; the message names the keys, or lists the metrics.
    """
    stopping, task, settings = plan.recipe.settings.early_stopping, plan.task, plan.recipe.settings
    if stopping.patience is None:
        return
    if settings.validation.every == "never" or not task.num_samples("held_out"):
        raise RecipeError(
            "`early_stopping.patience` counts validations, but the run has none",
            key="early_stopping.patience",
            hint="set `validation.every` and `task.data.held_out`, or remove `early_stopping.patience`",
        )
    if settings.stages:
        raise RecipeError(
            "`early_stopping.patience` cannot be combined with `stages`: it would end the run before the later stages, "
            "and values of different students cannot be compared",
            key="early_stopping.patience",
            hint="remove `early_stopping.patience` or `stages`",
        )
    known = ["loss"]
    with plugin_faults(task, "task"):
        batch = task.draw("held_out", np.zeros(1, np.int64), np.zeros(1, np.int64))
        known += [str(Term(label, name)) for label, loss in plan.losses.items() for name in loss.counts(batch)]
        head = scored_head(task)
        if head is not None and head.name in plan.requests.student.heads:
            known += [task.metric or "", *task.baselines("held_out")]
            if head.level == "sequence":
                known += task.scores("held_out", np.zeros((task.num_samples("held_out"), head.num_outputs), np.float32))
    if stopping.metric not in known:
        raise RecipeError(
            f"`early_stopping.metric` is not computed by this run's validations (found `{stopping.metric}`)",
            key="early_stopping.metric",
            allowed=list(dict.fromkeys(known)),
            hint=similar(stopping.metric, known),
        )
    configs = {label: loss.config for label, loss in plan.losses.items()}
    scheduled = [label for label, one in configs.items() if one.active != (0.0, 1.0) or isinstance(one.weight, list)]
    if stopping.metric == "loss" and scheduled:
        raise RecipeError(
            f"`early_stopping.metric` is `loss`, the weighted sum, which changes with the schedule of the loss "
            f"`{scheduled[0]}` even if the student does not",
            key="early_stopping.metric",
            hint=f"use the value of a single loss, such as `early_stopping.metric: {known[1]}`",
        )


def check_positions(recipe: Recipe, components: Components, losses: Mapping[str, Loss]) -> None:
    """Reject losses on masked positions if the task has none.

    Raises:
        RecipeError: the task has none; the message names the loss and the task.
    """
    for label, loss in losses.items():
        requests = loss.requests()
        if "masked" in requests.student.prediction_positions | requests.teacher.prediction_positions:
            with error_location(recipe, components.losses[label].key):
                raise RecipeError(
                    f"`{components.losses[label].name}` reads predictions at masked positions, but the task "
                    f"`{components.task.name}` masks no tokens",
                    hint="use the task masked_lm, or losses such as classification",
                )


def check_gradient_caching(recipe: Recipe, stages: Iterable[Stage]) -> None:
    """Reject gradient caching without a loss that couples the sequences of a batch, or for unsupported signals.

    Raises:
        RecipeError: gradient caching cannot be used; the message names the key.
    """
    coupled = [pair for stage in stages for pair in stage.losses.items() if pair[1].couples_batch]
    for label, loss in coupled:
        requests = loss.requests()
        if requests.student.factored_positions or requests.teacher.factored_positions:
            raise RecipeError(
                "factored predictions cannot be computed over the whole batch, which gradient caching requires",
                where=str(recipe.origin(f"losses.{label}")),
                key=f"losses.{label}",
                hint="remove training.gradient_caching, or use a loss that reads logits",
            )
    if not coupled:
        key = "training.gradient_caching"
        raise RecipeError(
            "no loss couples the sequences of a batch, so gradient caching has no effect",
            where=str(recipe.origin(key)),
            key=key,
            hint="remove it: other losses do not depend on how a batch is split",
        )


def check_student_heads(recipe: Recipe, components: Components, stage: Stage) -> None:
    """Reject losses that read a head, or attention signals, that the student does not have.

    Raises:
        RecipeError: a signal is missing; the message names the loss and the heads of the student.
    """
    for label, loss in stage.losses.items():
        if loss.requests().student.attention_parts and not stage.info.attention:
            with error_location(recipe, components.losses[label].key):
                raise _missing_attention(components.losses[label].name, "student", stage.info)
        for name in sorted(loss.requests().student.heads):
            if stage.info.head(name) is None:
                with error_location(recipe, components.losses[label].key):
                    raise _missing_head(name, "student", stage.info)


def _missing_attention(name: str, whose: str, info: ModelInfo) -> RecipeError:
    return RecipeError(
        f"`{name}` reads query, key or value, which the {whose} does not provide: transformers' `{info.architecture}` "
        "does not use its common attention interface",
        hint="use losses on hidden states or predictions, or a model type that a package supports",
    )


def _missing_head(name: str, whose: str, info: ModelInfo) -> RecipeError:
    return RecipeError(
        f"the loss reads the head `{name}`, which the {whose} does not have",
        allowed=[head.name for head in info.heads] or None,
        hint=similar(name, (head.name for head in info.heads))
        or "use a task that trains this head, and models that support it",
    )


def check_columns(
    recipe: Recipe, components: Components, losses: Mapping[str, Loss], provided: Collection[str] | None
) -> None:
    """Reject losses that request columns that the task's batches do not have.

    Args:
        recipe: the recipe.
        components: its components.
        losses: the losses by their labels.
        provided: names of the columns; None if they are not known yet.

    Raises:
        RecipeError: a column is missing; the message names it, the loss and the task.
    """
    for label, loss in losses.items():
        for name in sorted(loss.requests().columns):
            if provided is not None and name not in provided:
                with error_location(recipe, components.losses[label].key):
                    raise RecipeError(
                        f"`{components.losses[label].name}` reads the column `{name}`, which batches of the task "
                        f"`{components.task.name}` do not have",
                        allowed=sorted(provided) or None,
                        hint=similar(name, provided) or "use a task that provides the column, or another loss",
                    )


def check_alignment(recipe: Recipe, components: Components, stage: Stage) -> None:
    """Reject losses that compare tokens one by one if teacher and student have different tokenizers.

    Raises:
        RecipeError: the tokenizers differ; the message names the loss.
    """
    for label, loss in stage.losses.items():
        heads = [stage.info.head(name) for name in loss.requests().teacher.heads]
        if loss.compares_tokens or any(head is not None and head.level == "token" for head in heads):
            name = components.losses[label].name
            with error_location(recipe, components.losses[label].key):
                raise RecipeError(
                    f"`{name}` compares the tokens of teacher and student one by one, but their tokenizers differ",
                    hint="set `unit: aligned` if the loss has this key, or use a loss on whole sequences, such as "
                    "hidden_mse_cls",
                )


def is_ever_active(config: LossConfig) -> bool:
    """Return whether the loss has a weight in some part of the budget."""
    return is_active_between(config, 0.0, 1.0)


def is_active_between(config: LossConfig, start: float, end: float) -> bool:
    """Return whether the loss has a positive weight anywhere between two fractions of the budget."""
    return any(config.weight_at(fraction) > 0 for fraction in _middles([config], start, end))


def check_schedule(configs: Collection[LossConfig]) -> None:
    """Reject schedules that leave a part of the budget without any loss.

    Raises:
        RecipeError: no loss is active in a part; the message names the part.
    """
    for middle, (start, end) in _middles(configs, 0.0, 1.0).items():
        if not any(config.weight_at(middle) > 0 for config in configs):
            raise RecipeError(
                f"no loss is active between the fractions {start:g} and {end:g} of the budget",
                key="losses",
                hint="choose `active` and `weight` of the losses so that they cover the budget from 0 to 1",
            )


def _middles(configs: Iterable[LossConfig], start: float, end: float) -> dict[float, tuple[float, float]]:
    """Split a part of the budget where weights may change; map the middle of each piece to its (start, end)."""
    edges = {start, end}
    for config in configs:
        edges.update(config.active)
        if isinstance(config.weight, list):
            edges.update(fraction for fraction, _ in config.weight)
    within = sorted(edge for edge in edges if start <= edge <= end)
    return {(before + after) / 2: (before, after) for before, after in pairwise(within)}


def cache_folder() -> Path:
    """Return the cache of prepared data: the environment variable KDCORE_CACHE, or `~/.cache/kdcore`."""
    return Path(os.environ.get("KDCORE_CACHE") or Path.home() / ".cache" / "kdcore")


def _make(recipe: Recipe, component: Component) -> Any:
    with error_location(recipe, component.key):
        return component.cls(component.config)
