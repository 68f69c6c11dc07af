"""One run from a recipe to an exported student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdcore.errors import EXIT_INTERRUPTED, InputError, MachineError
from kdcore.models.base import Encoder
from kdcore.progress import Progress
from kdcore.recipe.loading import Recipe
from kdcore.signals import Signals
from kdcore.tasks.base import StoredData
from kdcore.training import run_folder
from kdcore.training.agreement import by_main
from kdcore.training.build import Plan, located, make_plan
from kdcore.training.checkpoint import Checkpoints, check_layout, latest_checkpoint
from kdcore.training.checkpoint_files import read_state
from kdcore.training.distributed import Processes, number_of_processes, start_processes
from kdcore.training.engine import Engine, check_optimizer, check_precision, deepspeed_config, zero_stage
from kdcore.training.export import export_student
from kdcore.training.interruption import Interruption
from kdcore.training.module import DistillationModule, FrozenTeacher, compile_models, find_reach
from kdcore.training.monitor import Monitor, console, logger
from kdcore.training.occasions import Occasions
from kdcore.training.predictions import write_predictions
from kdcore.training.run_lock import refuse_if_held, run_lock
from kdcore.training.startup import StartUp
from kdcore.training.trainer import Trainer
from kdcore.training.watchdog import Watchdog

PREDICTIONS = "predictions"


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        finished: whether the run came to its end; else it was interrupted and can be continued.
        export: the exported student; None if there is none.
        held_out: the last held-out losses, `loss` being their weighted sum; empty if nothing was validated just now.
    """

    folder: Path
    finished: bool
    export: Path | None
    held_out: dict[str, float]

    @property
    def exit_code(self) -> int:
        """0 for a finished run, 130 for an interrupted one."""
        return 0 if self.finished else EXIT_INTERRUPTED


def train_recipe(recipe: Recipe, *, exit_steps: int | None = None) -> RunResult:
    """Train a recipe, or continue where its run folder left it, and export the student.

    Args:
        recipe: what to train.
        exit_steps: end after so many steps, as if the budget were used up; schedules keep to the budget.

    Raises:
        InputError: the recipe, its data or its models cannot be used.
        TrainingError: training failed.
    """
    with console():
        return _train_recipe(recipe, exit_steps)


def _train_recipe(recipe: Recipe, exit_steps: int | None) -> RunResult:
    start_up = StartUp("imports")
    # What is known to fail is told before anything that takes long: data is prepared as part of the plan.
    with located(recipe, "training"):
        check_precision(recipe.settings.training)
        deepspeed_config(recipe.settings.training, number_of_processes())
    optimizer = recipe.components().optimizer
    with located(recipe, optimizer.key):
        check_optimizer(optimizer.cls, optimizer.name, recipe.settings.training)
    folder = recipe.run_folder
    plan = make_plan(recipe, run_folder.stored_data(folder))
    if run_folder.exists(folder):  # looked at again under the lock: joining the other processes may take a while
        try:
            run_folder.check_resumable(folder, recipe, plan.task.fingerprint)
        except InputError:
            refuse_if_held(folder)  # whoever is at work there is the first thing to know
            raise
    start_up.done("plan and data")
    start = replace(plan.start, exit_steps=exit_steps)
    with Watchdog(recipe.settings.training.stall_minutes, folder / "train.log") as watchdog:
        watchdog.starting("joining the other processes")
        processes = start_processes()
        start_up.done("processes")
        with run_lock(folder, processes) as check:
            return _start_or_resume(plan, start, folder, processes, check, watchdog, start_up)


def _start_or_resume(
    plan: Plan,
    start: Progress,
    folder: Path,
    processes: Processes,
    check: Callable[[], None],
    watchdog: Watchdog,
    start_up: StartUp,
) -> RunResult:
    recipe = plan.recipe
    watchdog.starting("looking for an earlier session of the run")
    checkpoint = None
    if run_folder.exists(folder):
        run_folder.check_resumable(folder, recipe, plan.task.fingerprint)
        checkpoint = latest_checkpoint(folder, processes)
    if checkpoint is not None:
        state = read_state(checkpoint)
        export = _final_export(folder, recipe)
        whole = (export is None or export.is_dir()) and (not _predicts(plan) or (folder / PREDICTIONS).is_dir())
        if start.at(state.step, state.seconds).finished and whole:
            logger.info(f"run {folder} is finished; `run.id=NEW` starts another")
            return RunResult(folder, True, export, {})
        check_layout(checkpoint, zero_stage(recipe.settings.training))
    watchdog.starting("loading the models")
    encoder = plan.load_teacher()
    source = plan.teacher.source if plan.teacher is not None and encoder is not None else None
    weights = by_main(processes, lambda: run_folder.check_teacher(folder, recipe, source))
    start_up.done("teacher")
    teacher = FrozenTeacher(None if encoder is None else encoder.to(processes.device))
    module = DistillationModule(plan.build_student(), plan.losses).to(processes.device)
    with located(recipe, "losses"):
        reach = _reach(module, teacher, plan, processes)
    start_up.done("student")
    processes.barrier()  # everybody has looked for an earlier session, and can load, before process 0 writes anything
    if processes.is_main:
        run_folder.store(folder, recipe, StoredData(plan.task.fingerprint, plan.task.data_folder), weights)
    trackers = [entry.cls(entry.config, folder) for entry in plan.components.trackers] if processes.is_main else []
    monitor = Monitor(folder, trackers, is_main=processes.is_main)
    try:
        monitor.say(f"run {folder}" + (f", continued from {checkpoint.name}" if checkpoint else ""))
        keep = recipe.settings.checkpoints.keep
        with Interruption() as interruption, Checkpoints(folder, keep, processes, check) as checkpoints:
            return _train(
                plan,
                start,
                teacher,
                module,
                reach,
                folder,
                checkpoint,
                monitor,
                processes,
                interruption,
                checkpoints,
                check,
                watchdog,
                start_up,
            )
    except RuntimeError as error:
        if processes.world_size > 1 and any(word in str(error) for word in ("gloo", "NCCL")):
            raise MachineError("another process of this run is gone; its own message says why") from error
        raise
    finally:
        monitor.close()


def _train(
    plan: Plan,
    start: Progress,
    teacher: FrozenTeacher,
    module: DistillationModule,
    reach: dict[str, frozenset[str]],
    folder: Path,
    checkpoint: Path | None,
    monitor: Monitor,
    processes: Processes,
    interruption: Interruption,
    checkpoints: Checkpoints,
    check: Callable[[], None],
    watchdog: Watchdog,
    start_up: StartUp,
) -> RunResult:
    settings = plan.recipe.settings
    _tell_reach(module, reach, plan, monitor)
    watchdog.starting("making the engine ready")
    with located(plan.recipe, "training"):
        engine = Engine(module, reach, plan.optimizer, settings.training, processes)
    teacher.to(engine.dtype)
    start_up.done("engine")
    if settings.training.compile:
        watchdog.starting("compiling the models")
        with located(plan.recipe, "training"):
            compile_models(engine.module, teacher, plan.small_batch().to(processes.device))
        start_up.done("compiling")
    monitor.say(str(start_up))
    torch.manual_seed(settings.seed + processes.rank)  # each process draws a dropout of its own

    def export(name: str, progress: Progress, held_out: Mapping[str, float]) -> None:
        target = folder / "exports" / name
        weights, student = engine.float32_student(), engine.module.student

        def write() -> None:
            export_student(target, student, weights, plan.task, plan.recipe, progress.step, held_out, check)

        by_main(processes, write)
        monitor.say(f"step {progress.step}: student exported to {target}")

    trainer = Trainer(
        settings,
        engine,
        teacher,
        plan.task,
        plan.scheduler,
        monitor,
        processes,
        checkpoints,
        interruption,
        watchdog,
        Occasions(settings.validation, settings.checkpoints, plan.steps_per_epoch),
        start,
        export,
    )
    progress = trainer.train(checkpoint)
    if not progress.finished:
        checkpoints.wait()
        monitor.say(f"step {progress.step}: stopped; start the same command again to continue")
        return RunResult(folder, False, None, trainer.last_validation)
    final = _final_export(folder, plan.recipe)
    if final is not None:
        export(final.name, progress, trainer.last_validation)
    if _predicts(plan):
        watchdog.tick("the predictions")
        _write_predictions(plan, engine.module.student, folder, trainer, processes, watchdog, check)
    checkpoints.wait()
    monitor.say(f"step {progress.step}: finished")
    return RunResult(folder, True, final, trainer.last_validation)


def _final_export(folder: Path, recipe: Recipe) -> Path | None:
    """Where the finished student goes; None if the recipe wants none."""
    return folder / "exports" / "final" if recipe.settings.checkpoints.export_at_end else None


def _predicts(plan: Plan) -> bool:
    """Whether a finished run leaves predictions: its task scores them, and losses read what they are made of."""
    return plan.task.metric is not None and plan.requests.student.class_logits


def _write_predictions(
    plan: Plan,
    trained: Encoder,
    folder: Path,
    trainer: Trainer,
    processes: Processes,
    watchdog: Watchdog,
    check: Callable[[], None],
) -> None:
    """Let the best student predict; the one just trained, if there is no best one or the model cannot read it."""
    source = folder / "exports" / "best"
    student = plan.student.load_export(source, Signals.classes()) if source.is_dir() else None
    if student is None:
        source, student = folder / "exports" / "final", trained
    size = plan.recipe.settings.validation.batch_size or trainer.micro_batch_size

    def tick() -> None:
        watchdog.tick("the predictions")

    target = folder / PREDICTIONS
    scores = write_predictions(target, student.to(processes.device), source, plan.task, size, processes, tick, check)
    shown = "".join(f", {name} {value:.4f}" for name, value in scores.items())
    trainer.monitor.say(f"predictions of {source.parent.name}/{source.name} written to {target}{shown}")


def _reach(
    module: DistillationModule, teacher: FrozenTeacher, plan: Plan, processes: Processes
) -> dict[str, frozenset[str]]:
    """Which losses move which parameters, tried on a small batch."""
    last = np.array([plan.task.num_samples("train") - 1], dtype=np.int64)
    module.counts(plan.task.batch("train", last, np.zeros_like(last)))  # a loss may know fewer samples than there are
    return find_reach(module, plan.small_batch().to(processes.device), teacher)


def _tell_reach(module: DistillationModule, reach: dict[str, frozenset[str]], plan: Plan, monitor: Monitor) -> None:
    """Tell once about parts of the student that no loss reaches."""
    total = sum(parameter.numel() for parameter in module.student.parameters())
    trained = sum(p.numel() for name, p in module.student.named_parameters() if reach[f"student.{name}"])
    depth, layers = plan.requests.student.depth(plan.student.info.num_layers), plan.student.info.num_layers
    monitor.say(f"training {trained:,} of the student's {total:,} parameters")
    if depth < layers:
        monitor.say(
            f"no loss reads the student beyond block {depth - 1}: blocks {depth} to {layers - 1} stay as they are"
        )
