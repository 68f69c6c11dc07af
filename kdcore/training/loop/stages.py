"""Determine the parameters of each stage of a run, and transform the student between stages."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcore.faults import plugin_faults
from kdcore.recipe.error_location import error_location
from kdcore.training.engine.engine import Engine, Past
from kdcore.training.engine.module import DistillationModule, compile_models, find_losses_by_parameter
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.context import RunContext
from kdcore.training.loop.plan import Plan
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.training.runtime.random_stream import RandomStream
from kdcore.transforms.base import ParameterSource


@dataclass(frozen=True)
class StageParameters:
    """The parameters of student and losses in one stage, by their names in the module.

    Attributes:
        losses_by_parameter: labels of the losses that reach each parameter.
        past: the groups of the optimizer that each parameter was in during earlier stages.
        sources: parameters of the previous stage from which parameters are derived.
    """

    losses_by_parameter: dict[str, frozenset[str]]
    past: dict[str, Past]
    sources: dict[str, ParameterSource]


def examine_stages(
    plan: Plan, teachers: FrozenTeachers, processes: DistributedContext
) -> tuple[list[StageParameters], DistillationModule]:
    """Apply all transforms to the initial student, and run the losses of each stage on a small batch.

    This way, failures surface before training starts.

    Returns:
        The parameters of every stage, and the module of the last one.

    Raises:
        InputError: a transform rejects the student, or a loss cannot be computed.
    """
    found: list[StageParameters] = []
    module = DistillationModule(plan.build_student(), plan.losses)
    for number, stage in enumerate(plan.stages):
        sources: dict[str, ParameterSource] = {}
        past: dict[str, Past] = {}
        if number:
            decays = {name: parameter.ndim >= 2 for name, parameter in module.named_parameters()}
            student, changed = plan.transform_student(module.student.cpu(), number)
            before, module = module, DistillationModule(student, stage.losses)
            sources = _sources(changed, before, module)
            earlier = found[-1]
            past = {
                name: (
                    *earlier.past.get(source.name, ()),
                    (earlier.losses_by_parameter[source.name], decays[source.name]),
                )
                for name, source in sources.items()
            }
        module.to(processes.device)
        with error_location(plan.recipe, "losses"):
            labels = _losses_by_parameter(module, teachers, plan, processes)
        found.append(StageParameters(labels, past, sources))
    return found, module


def _sources(
    student: Mapping[str, ParameterSource], before: DistillationModule, after: DistillationModule
) -> dict[str, ParameterSource]:
    """Map sources to names in the module; a loss keeps its own parameters if name and shape are the same."""
    sources = {
        f"student.{name}": ParameterSource(f"student.{source.name}", source.select) for name, source in student.items()
    }
    shapes = {name: parameter.shape for name, parameter in before.losses.named_parameters()}
    for name, parameter in after.losses.named_parameters():
        if shapes.get(name) == parameter.shape:
            sources[f"losses.{name}"] = ParameterSource(f"losses.{name}")
    return sources


def _losses_by_parameter(
    module: DistillationModule, teachers: FrozenTeachers, plan: Plan, processes: DistributedContext
) -> dict[str, frozenset[str]]:
    """Find the losses that reach each parameter, with a small batch."""
    last = np.array([plan.task.num_samples("train") - 1], dtype=np.int64)
    with plugin_faults(plan.task, "task"):
        batch = plan.task.draw("train", last, np.zeros_like(last))
    module.counts(batch)  # so that a loss with data for fewer samples fails here
    return find_losses_by_parameter(module, plan.small_batch().to(processes.device), teachers)


def change_stage(
    context: RunContext, engine: Engine, number: int, parameters: StageParameters, teachers: FrozenTeachers
) -> Engine:
    """Transform the trained student into the student of stage `number`; every process must call this.

    Weights are transformed in float32. The optimizer's state follows the parameters' sources; the fp16 loss scale and
    random states are kept. The old engine can no longer be used.

    Args:
        context: the objects that all parts of the run share.
        engine: the engine of the previous stage.
        number: number of the new stage.
        parameters: parameters of the new stage.
        teachers: the teachers.

    Returns:
        The engine of the new stage.
    """
    plan, processes = context.plan, context.processes
    with RandomStream(processes.device).drawing():
        carried = engine.state_to_carry()
        student = plan.build_student(number - 1)
        student.load_state_dict(
            {
                name.removeprefix("student."): tensor
                for name, tensor in carried.weights.items()
                if name.startswith("student.")
            }
        )
        student, _ = plan.transform_student(student, number)
        module = DistillationModule(student, plan.stages[number].losses)
        _keep_losses(module, carried.weights)
        engine.close()
        del engine
        gc.collect()
        weights = {name: parameter.detach().float().cpu().clone() for name, parameter in module.named_parameters()}
        with error_location(plan.recipe, "training"):
            changed = Engine(
                module,
                parameters.losses_by_parameter,
                plan.optimizer,
                context.settings.training,
                processes,
                parameters.past,
            )
            changed.take_over(carried, parameters.sources, weights)
            if context.settings.training.compile:
                compile_models(changed.module, teachers, plan.small_batch().to(processes.device))
    return changed


@torch.no_grad()
def _keep_losses(module: DistillationModule, weights: Mapping[str, Tensor]) -> None:
    """Restore the losses' parameters and buffers whose name and shape are unchanged."""
    for name, tensor in module.state_dict().items():
        before = weights.get(name)
        if not name.startswith("losses.") or not isinstance(tensor, Tensor) or not isinstance(before, Tensor):
            continue
        if before.shape == tensor.shape:
            tensor.copy_(before)
