"""Run a recipe, from loading models to the exported student."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kdcore.errors import InfrastructureError, InputError, RecipeError
from kdcore.faults import plugin_faults
from kdcore.progress import Progress
from kdcore.recipe.error_location import error_location
from kdcore.recipe.loading import Component, Recipe
from kdcore.signals import Signals
from kdcore.tasks.base import StoredData
from kdcore.training.checkpoint.format import read_state
from kdcore.training.checkpoint.manager import Checkpoints, check_layout, latest_checkpoint
from kdcore.training.engine.engine import Engine, check_optimizer, check_precision, deepspeed_config, zero_stage
from kdcore.training.engine.module import DistillationModule, compile_models
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.context import RunContext
from kdcore.training.loop.events import CheckpointEvent, Event, FinishedEvent, RunResult, StoppedEvent, ValidationEvent
from kdcore.training.loop.monitor import Monitor, console, logger, show_phase
from kdcore.training.loop.plan import Plan
from kdcore.training.loop.predictions import scored_head, write_predictions
from kdcore.training.loop.stages import StageParameters, examine_stages
from kdcore.training.loop.trainer import Trainer
from kdcore.training.run import run_folder
from kdcore.training.run.build import make_plan
from kdcore.training.run.callback_runner import CallbackRunner
from kdcore.training.run.export import TOKENIZER, export_student
from kdcore.training.runtime.collectives import broadcast_from_main
from kdcore.training.runtime.distributed import (
    DistributedContext,
    number_of_processes,
    own_device,
    start_processes,
    without_leaving,
)
from kdcore.training.runtime.numerics import numerics
from kdcore.training.runtime.random_stream import RandomStream
from kdcore.training.runtime.run_lock import refuse_if_held, run_lock
from kdcore.training.runtime.shutdown import GracefulShutdown
from kdcore.training.runtime.startup import StartupTimer
from kdcore.training.runtime.watchdog import Watchdog
from kdcore.utils.atomic import atomic_directory

__all__ = ["PREDICTIONS", "RunResult", "run_events", "train_recipe"]

PREDICTIONS = "predictions"


def train_recipe(recipe: Recipe, *, exit_steps: int | None = None) -> RunResult:
    """Train a recipe, or resume its run, and export the student.

    Args:
        recipe: the recipe.
        exit_steps: stop after this number of steps, as if the budget were used up; schedules still follow the full
            budget.

    Raises:
        InputError: the recipe, its data or its models cannot be used.
        TrainingError: training failed.
    """
    result = None
    with closing(_events(recipe, exit_steps, shared=False)) as events:
        for event in events:
            if isinstance(event, (FinishedEvent, StoppedEvent)):
                result = event.result
    assert result is not None
    return result


def run_events(recipe: Recipe, *, exit_steps: int | None = None) -> Generator[Event]:
    """Train like `train_recipe`, and yield the events of the run; the last one is a FinishedEvent or a StoppedEvent.

    The run advances only while events are requested. Closing the generator ends the run: it waits for a checkpoint that
    is being written and releases the run folder, and the next start resumes from the last checkpoint. With several
    processes, all of them have to consume the same events. Between events, the caller's handlers receive signals,
    random numbers come from a stream that is separate from the run's, and no checkpoint is being written.

    Arguments and errors are the same as for `train_recipe`.
    """
    return _events(recipe, exit_steps, shared=True)


def _events(recipe: Recipe, exit_steps: int | None, *, shared: bool) -> Generator[Event]:
    """Implement `run_events`; `shared` is whether other code runs between the events."""
    with _only_run(recipe.run_folder), console(), plugin_faults(), without_leaving():
        startup = StartupTimer("imports", recipe.loaded)
        _check_early(recipe)
        folder = recipe.run_folder
        plan = make_plan(recipe, run_folder.stored_data(folder))
        if run_folder.exists(folder):  # checked again under the lock: joining the other processes may take a while
            try:
                run_folder.check_resumable(folder, recipe, plan.task.fingerprint)
            except InputError:
                refuse_if_held(folder)  # report an active run before recipe differences
                raise
        startup.done("plan and data")
        with Watchdog(recipe.settings.training.stall_minutes, folder / "train.log", show_phase) as watchdog:
            watchdog.starting("joining the process group")
            processes = start_processes()
            startup.done("processes")
            training = recipe.settings.training
            with numerics(training, processes.device), run_lock(folder, processes) as check_lock:
                watchdog.starting("finding the last checkpoint")
                start = replace(plan.start, exit_steps=exit_steps)
                earlier = _earlier_session(plan, start, folder, processes)
                if isinstance(earlier, FinishedEvent):
                    logger.info(f"run {folder} is finished; `run.id=NEW` starts another")
                    yield earlier
                    return
                random, listed = RandomStream(processes.device), plan.components.callbacks
                outside = random.drawing if shared or listed else nullcontext
                with outside():
                    callbacks = _make_callbacks(listed, folder, processes)
                watchdog.starting("loading the models")
                stage = 0 if earlier is None else read_state(earlier).stage
                models = _load_models(plan, stage, folder, processes, startup)
                with (
                    _context(plan, folder, processes, watchdog, check_lock, startup, start) as context,
                    closing(_train(context, models, earlier)) as events,
                ):
                    for event in events:
                        context.monitor.handle(event)
                        awaited = isinstance(event, CheckpointEvent) and (shared or callbacks.see_checkpoints)
                        if awaited and not context.checkpoints.committed():
                            continue  # the loop raises the error on all processes
                        with watchdog.suspended(), outside():
                            if callbacks.handle(event):
                                context.shutdown.requested = True
                            with context.shutdown.paused() if shared else nullcontext():
                                yield event


def _make_callbacks(components: Sequence[Component], folder: Path, processes: DistributedContext) -> CallbackRunner:
    """Construct the callbacks on process 0; an error is raised on every process."""
    made = CallbackRunner([], folder)

    def make() -> None:
        nonlocal made
        made = CallbackRunner(components, folder)

    broadcast_from_main(processes, make)
    return made


_running = threading.Lock()


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Reject a second simultaneous run in this process, because runs share random states and the process group.

    Raises:
        InputError: another thread is training, or an iterator of `steps` is neither exhausted nor closed.
    """
    if not _running.acquire(blocking=False):
        raise InputError(
            "another run is active in this process",
            where=str(folder),
            hint="wait for it, close its iterator of events, or use another process",
        )
    try:
        yield
    finally:
        _running.release()


def _check_early(recipe: Recipe) -> None:
    """Check device, precision, engine and optimizer before preparing the data, which may take a long time."""
    with error_location(recipe, "training"):
        check_precision(recipe.settings.training)
        deepspeed_config(recipe.settings.training, number_of_processes())
    own_device()
    optimizer = recipe.components().optimizer
    with error_location(recipe, optimizer.key):
        check_optimizer(optimizer.cls, optimizer.name, recipe.settings.training)


def _earlier_session(
    plan: Plan, start: Progress, folder: Path, processes: DistributedContext
) -> Path | FinishedEvent | None:
    """Find the checkpoint to resume from. Return None for a new run, and the last event for a finished run."""
    recipe = plan.recipe
    if not run_folder.exists(folder):
        return None
    run_folder.check_resumable(folder, recipe, plan.task.fingerprint)
    checkpoint = latest_checkpoint(folder, processes)
    if checkpoint is None:
        return None
    state = read_state(checkpoint)
    progress = start.at(state.step, state.seconds)
    export = _final_export(folder, recipe)
    complete = (export is None or export.is_dir()) and (not _predicts(plan) or (folder / PREDICTIONS).is_dir())
    stopping = recipe.settings.early_stopping
    if (progress.finished or stopping.is_over(state.watched, state.waited)) and complete:
        return FinishedEvent(progress, RunResult(folder, True, export, {}))
    check_layout(checkpoint, zero_stage(recipe.settings.training))
    run_folder.check_split(folder, plan, state.world_size, processes.world_size)
    plan.check_stage(state.stage)
    if progress.fraction < plan.stages[state.stage].begins:
        raise RecipeError(
            f"the run is in stage {state.stage}, which begins at {plan.stages[state.stage].begins:g} of the budget, "
            f"but its steps so far are only {progress.fraction:.3g} of the new budget",
            where=str(recipe.origin("training.budget")),
            key="training.budget",
            hint="increase the budget by a smaller amount, or start another run with `run.id=NEW`",
        )
    return checkpoint


@dataclass(frozen=True)
class _Models:
    """The models of a run before they are passed to the engine.

    Attributes:
        teachers: the teachers.
        module: student and losses of the session's first stage.
        stage: number of that stage.
        stages: parameters of every stage.
    """

    teachers: FrozenTeachers
    module: DistillationModule
    stage: int
    stages: list[StageParameters]


def _load_models(plan: Plan, stage: int, folder: Path, processes: DistributedContext, startup: StartupTimer) -> _Models:
    """Load teachers and student; process 0 then writes the run folder's recipe, data and environment."""
    recipe = plan.recipe
    encoders = plan.load_teachers()
    read = {label: plan.teachers[label] for label in encoders}
    weights = broadcast_from_main(processes, lambda: run_folder.check_teachers(folder, recipe, read))
    startup.done("teacher")
    teachers = FrozenTeachers(encoders, plan.composites).to(processes.device)
    stages, module = examine_stages(plan, teachers, processes)
    if len(stages) > 1:  # the trial run has transformed it through all stages
        module = DistillationModule(plan.build_student(stage), plan.stages[stage].losses).to(processes.device)
    startup.done("student")
    processes.barrier()  # all processes must have looked for an earlier session before process 0 writes
    if processes.is_main:
        run_folder.store(folder, recipe, StoredData(plan.task.fingerprint, plan.task.data_folder), weights)
        with atomic_directory(folder / TOKENIZER, replace=True) as staging:  # the data folder may be removed later
            plan.task.save_tokenizer(staging)
    return _Models(teachers, module, stage, stages)


@contextmanager
def _context(
    plan: Plan,
    folder: Path,
    processes: DistributedContext,
    watchdog: Watchdog,
    check_lock: Callable[[], None],
    startup: StartupTimer,
    start: Progress,
) -> Iterator[RunContext]:
    """Open trackers, log and checkpoints of a session, and close them at the end."""
    trackers = [entry.cls(entry.config, folder) for entry in plan.components.trackers] if processes.is_main else []
    monitor = Monitor(folder, trackers, is_main=processes.is_main)
    keep = plan.recipe.settings.checkpoints.keep
    try:
        with GracefulShutdown() as shutdown, Checkpoints(folder, keep, processes, check_lock) as checkpoints:
            context = RunContext(
                plan, folder, processes, monitor, checkpoints, shutdown, watchdog, check_lock, startup, start
            )
            try:
                yield context
            except GeneratorExit:  # the consumer has closed the generator
                checkpoints.wait()
                raise
    except RuntimeError as error:
        if processes.world_size > 1 and any(word in str(error) for word in ("gloo", "NCCL")):
            raise InfrastructureError(
                "another process of this run has exited; its error message names the cause"
            ) from error
        raise
    finally:
        monitor.close()


def _train(context: RunContext, models: _Models, checkpoint: Path | None) -> Generator[Event]:
    """Train, then export the student and write its predictions."""
    plan, settings, monitor, startup = context.plan, context.settings, context.monitor, context.startup
    monitor.info(f"run {context.folder}" + (f", continued from {checkpoint.name}" if checkpoint else ""))
    _report_trained(models, plan, monitor)
    context.watchdog.starting("creating the engine")
    with error_location(plan.recipe, "training"):
        parameters = models.stages[models.stage]
        engine = Engine(
            models.module,
            parameters.losses_by_parameter,
            plan.optimizer,
            settings.training,
            context.processes,
            parameters.past,
        )
    models.teachers.to(engine.dtype)
    startup.done("engine")
    if settings.training.compile:
        context.watchdog.starting("compiling the models")
        with error_location(plan.recipe, "training"):
            compile_models(engine.module, models.teachers, plan.small_batch().to(context.processes.device))
        startup.done("compiling")
    monitor.info(str(startup))
    torch.manual_seed(settings.seed + context.processes.rank)  # different dropout on each process

    trainer = Trainer(context, engine, models.teachers, models.stages, models.stage, partial(_export, context))
    progress = yield from trainer.train(checkpoint)
    if not trainer.finished:
        context.checkpoints.wait()
        result = RunResult(context.folder, False, None, trainer.held_out, context.shutdown.interrupted)
        yield StoppedEvent(progress, result)
        return
    final = _final_export(context.folder, plan.recipe)
    if final is not None:
        yield trainer.export(final.name, progress)
    if _predicts(plan):
        context.watchdog.tick("the predictions")
        _write_predictions(context, trainer)
    context.checkpoints.wait()
    yield FinishedEvent(progress, RunResult(context.folder, True, final, trainer.held_out))


def _export(
    context: RunContext, engine: Engine, name: str, progress: Progress, validation: ValidationEvent | None
) -> Path:
    """Export the engine's student below `exports`; every process must call this."""
    target, plan = context.folder / "exports" / name, context.plan
    weights, student = engine.float32_student(), engine.module.student

    def write() -> None:
        tokenizer, step, check = context.folder / TOKENIZER, progress.step, context.check_lock
        export_student(target, student, weights, plan, tokenizer, step, validation, check)

    broadcast_from_main(context.processes, write)
    return target


def _final_export(folder: Path, recipe: Recipe) -> Path | None:
    """Return the folder of the finished student; None if the recipe disables that export."""
    return folder / "exports" / "final" if recipe.settings.checkpoints.export_at_end else None


def _predicts(plan: Plan) -> bool:
    """Return whether a finished run writes predictions, that is, whether its task scores a head that losses read."""
    head = scored_head(plan.task)
    return head is not None and head.name in plan.requests.student.heads


def _write_predictions(context: RunContext, trainer: Trainer) -> None:
    """Predict with the best student, or with the final one if no best export can be loaded."""
    plan, folder, processes = context.plan, context.folder, context.processes
    head = scored_head(plan.task)
    assert head is not None
    source = folder / "exports" / "best"
    student = plan.student.load_export(source, Signals.head(head.name)) if source.is_dir() else None
    if student is None:
        source, student = folder / "exports" / "final", trainer.engine.module.student
    size = plan.recipe.settings.validation.batch_size or trainer.micro_batch_size

    def tick() -> None:
        context.watchdog.tick("the predictions")

    target = folder / PREDICTIONS
    student = student.to(processes.device)
    scores = write_predictions(target, student, source, plan.task, head, size, processes, tick, context.check_lock)
    shown = "".join(f", {name} {value:.4f}" for name, value in scores.items())
    context.monitor.info(f"predictions of {source.parent.name}/{source.name} written to {target}{shown}")


def _report_trained(models: _Models, plan: Plan, monitor: Monitor) -> None:
    """Report which parts of the student the losses train."""
    student, losses = models.module.student, models.stages[models.stage].losses_by_parameter
    total = sum(parameter.numel() for parameter in student.parameters())
    trained = sum(p.numel() for name, p in student.named_parameters() if losses[f"student.{name}"])
    layers = student.info.num_layers
    depth = models.module.requests(plan.stages[models.stage].losses).student.depth(layers)
    monitor.info(f"training {trained:,} of the student's {total:,} parameters")
    for name in student.unexported_heads:
        monitor.info(f"exports leave out the head `{name}`, because a transformers folder can have only one head")
    if depth < layers:
        beyond = f"beyond block {depth - 1}" if depth else "beyond the embeddings"
        blocks = f"block {depth} is" if depth == layers - 1 else f"blocks {depth} to {layers - 1} are"
        monitor.info(f"no loss uses the student's states {beyond}, so {blocks} not trained")
