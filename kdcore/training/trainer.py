"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcore.errors import TrainingError
from kdcore.progress import Progress
from kdcore.recipe.schema import RecipeSettings
from kdcore.schedulers.base import Scheduler
from kdcore.signals import Batch
from kdcore.tasks.base import Task
from kdcore.training.batches import TrainingBatches
from kdcore.training.checkpoint import Checkpoints, load_checkpoint, readable
from kdcore.training.checkpoint_files import TrainingState
from kdcore.training.distributed import Processes
from kdcore.training.engine import Engine, accumulation, zero_stage
from kdcore.training.health import Health
from kdcore.training.interruption import Interruption
from kdcore.training.module import FrozenTeacher, Term
from kdcore.training.monitor import Monitor
from kdcore.training.occasions import Occasions
from kdcore.training.validation import validate
from kdcore.training.watchdog import Watchdog


@dataclass
class _Window:
    """What has been summed since the last row of metrics."""

    steps: int
    tokens: float
    started: float
    objective: Tensor
    terms: dict[Term, Tensor]
    term_steps: dict[Term, int]


class Trainer:
    """Runs the steps of one run from where its last checkpoint left it to the end of its budget.

    Arguments of the constructor that are not objects of the run:
        occasions: when validation, checkpoints and exports are due.
        start: the run's limits, as its progress before the first step.
        export: writes the student to a folder of that name below `exports`; every process calls it.
    """

    def __init__(
        self,
        settings: RecipeSettings,
        engine: Engine,
        teacher: FrozenTeacher,
        task: Task,
        scheduler: Scheduler,
        monitor: Monitor,
        processes: Processes,
        checkpoints: Checkpoints,
        interruption: Interruption,
        watchdog: Watchdog,
        occasions: Occasions,
        start: Progress,
        export: Callable[[str, Progress, Mapping[str, float]], None],
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.teacher = teacher
        self.task = task
        self.scheduler = scheduler
        self.monitor = monitor
        self.processes = processes
        self.checkpoints = checkpoints
        self.interruption = interruption
        self.watchdog = watchdog
        self.export = export
        training = settings.training
        self.micro_batch_size, _ = accumulation(training, processes.world_size)
        self.batches = TrainingBatches(task, settings.seed, training.batch_size, self.micro_batch_size, processes)
        self.health = Health(settings, engine, self.batches, processes)
        self.occasions = occasions
        self.start = start
        self.step = 0
        self.seconds_before = 0.0
        self.done = start
        self.window = self._new_window()
        self.validates = settings.validation.every != "never" and task.num_samples("held_out") > 0
        self.last_validation: dict[str, float] = {}
        self.best_score: float | None = None
        self.validated_step = self.saved_step = -1
        self.lr = 0.0
        self.started = time.monotonic()

    def train(self, checkpoint: Path | None) -> Progress:
        """Train until the budget is used up or a signal asks to stop; a checkpoint is written at the end of either.

        Raises:
            TrainingError: something is not finite, the loss scale is at its minimum, or early stopping gives the run
                up.
            MachineError: a checkpoint cannot be written.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        self.monitor.start(self.start.at(self.step, self.seconds_before))
        self.started = time.monotonic()
        if self.step == 0:
            self._validate(self.start)
        with closing(self.batches):
            while True:
                self.watchdog.tick(f"step {self.step + 1}")
                micro_batches = self.batches.step(self.step)
                counts, stop, seconds = self._agree(micro_batches, self.interruption.requested)
                progress = self.start.at(self.step, seconds)
                if stop or progress.finished:
                    break
                self._train_step(micro_batches, counts, progress)
                self.step += 1
                self._do_what_is_due(self.start.at(self.step, seconds))
        if progress.finished:
            self._finish(progress)
        elif self.step and self.saved_step != self.step:
            self._save()
        return progress

    def _do_what_is_due(self, progress: Progress) -> None:
        """After a step: what it carried progress over. The checkpoint comes last, so that it knows of all the rest."""
        before, self.done = self.done, progress
        self.monitor.stepped(progress)
        if self.step % self.settings.logging.every == 0:
            self._log(progress)
        if self.occasions.validation(before, progress):
            self._validate(progress)
        self._export(before, progress)
        milestone = self.occasions.milestone(before, progress)
        if milestone or self.occasions.checkpoint(before, progress):
            self._save(milestone=milestone)

    def _finish(self, progress: Progress) -> None:
        """What is due at the end, to which time may have leapt over marks that no step had reached."""
        before, self.done = self.done, progress
        if self.validated_step != self.step:
            self._validate(progress)
        self._export(before, progress)
        # Of the same step, a newer checkpoint knows the time at which the budget was used up.
        timed = progress.max_seconds is not None or progress.exit_seconds is not None
        if self.step and (self.saved_step != self.step or timed):
            self._save()

    def _train_step(self, micro_batches: list[Batch], counts: Mapping[Term, float], progress: Progress) -> None:
        module, window = self.engine.module, self.window
        weights = module.weights_at(progress.fraction)
        # A term that counts nothing in the whole step is 0.
        shares = {term: 1.0 / count if count else 0.0 for term, count in counts.items() if term.label in weights}
        factors = {term: weights[term.label] * share for term, share in shares.items()}
        self.lr = self.engine.peak_lr * self.scheduler.factor(progress)
        asked_of_teacher = module.requests(weights).teacher
        objective, terms = window.objective, dict(window.terms)
        for number, host_batch in enumerate(micro_batches if weights else ()):
            batch = host_batch.to(self.processes.device)
            sums = self.engine.train_micro_batch(batch, self.teacher(batch, asked_of_teacher), factors)
            self.engine.finish_micro_batch(self.lr, weights)
            self.health.micro_batch(self.step, number, sums)
            for term, value in sums.items():
                window.objective = window.objective + value * factors[term]
                window.terms[term] = window.terms.get(term, 0.0) + value * shares[term]
        if weights and not self.health.updated(self.step):
            window.objective, window.terms = objective, terms  # a step that was skipped is in no average
            return
        for term in shares:
            window.term_steps[term] = window.term_steps.get(term, 0) + 1
        window.steps += 1

    def _agree(self, micro_batches: list[Batch], stop: bool) -> tuple[dict[Term, float], bool, float]:
        """Counts over all processes, whether anyone was asked to stop, and process 0's clock: one host reduction."""
        local: dict[Term, float] = {}
        for batch in micro_batches:
            for term, count in self.engine.module.counts(batch).items():
                local[term] = local.get(term, 0.0) + count
        tokens = float(sum(batch.num_tokens for batch in micro_batches))
        seconds = self._clock() if self.processes.is_main else 0.0
        flags = [float(stop), float(self.checkpoints.failed)]
        *counts, total_tokens, stops, failed, clock = self.processes.sum([*local.values(), tokens, *flags, seconds])
        if failed:
            self.checkpoints.wait()
        self.window.tokens += total_tokens
        return dict(zip(local, counts, strict=True)), stops > 0, clock

    def _log(self, progress: Progress) -> None:
        window = self.window
        own = torch.stack([window.objective, *window.terms.values()]).tolist()
        objective, *sums = self.processes.sum(own)
        losses = {"loss": objective / window.steps} if window.steps else {}  # in fp16 all may have been skipped
        for term, total in zip(window.terms, sums, strict=True):
            losses.setdefault(str(term), total / window.term_steps[term])
        metrics = {f"train/{name}": value for name, value in losses.items()}
        metrics["train/lr"] = self.lr
        metrics["train/tokens_per_second"] = window.tokens / max(1e-9, time.monotonic() - window.started)
        metrics |= {f"train/{name}": value for name, value in self.engine.metrics().items()}
        if self.processes.is_main:
            self.monitor.log(progress, metrics)
        self.window = self._new_window()
        self.health.check(progress.step, losses)
        if window.steps:
            self.health.logged(progress.step, losses["loss"])

    def _validate(self, progress: Progress) -> None:
        self.validated_step = self.step
        if not self.validates:
            return
        batch_size = self.settings.validation.batch_size or self.micro_batch_size
        module = self.engine.module
        weights = module.weights_at(progress.fraction)
        with self._pause():
            values = validate(module, self.teacher, self.task, batch_size, self.processes, weights, self.watchdog)
        self.last_validation = values
        if self.processes.is_main:
            self.monitor.log(progress, {f"held_out/{name}": value for name, value in values.items()})
        score = f", {self.task.metric} {values[self.task.metric]:.4f}" if self.task.metric in values else ""
        self.monitor.say(f"step {progress.step}: held-out loss {values['loss']:.5g}{score}")
        self.health.check(progress.step, {f"held-out {name}": value for name, value in values.items()})
        self._export_best(progress, values)
        stopping = self.settings.early_stopping
        if stopping.max_loss is not None and stopping.after_minutes is not None:
            minutes = progress.seconds / 60
            if minutes >= stopping.after_minutes and values["loss"] > stopping.max_loss:
                raise TrainingError(
                    f"at step {progress.step}, after {minutes:.1f} minutes, the held-out loss is {values['loss']:.5g}: "
                    f"more than early_stopping.max_loss ({stopping.max_loss:g}) allows after "
                    f"early_stopping.after_minutes ({stopping.after_minutes:g})"
                )

    def _export_best(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Export the student if it is better, by the task's metric, than after every step before."""
        score = None if self.task.metric is None else values.get(self.task.metric)
        if not self.step or score is None or (self.best_score is not None and score <= self.best_score):
            return
        self.best_score = score
        self._write_export("best", progress)

    def _export(self, before: Progress, now: Progress) -> None:
        for share in self.occasions.exports(before, now):
            self._write_export(f"budget-{share:g}", now)

    def _write_export(self, name: str, progress: Progress) -> None:
        self.watchdog.tick(f"the export after step {self.step}")
        self.health.check_weights(self.step)
        with self._pause():
            self.export(name, progress, self.last_validation if self.validated_step == self.step else {})

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """What happens here is no training: the speed that is reported leaves its time out."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.window.started += time.monotonic() - began

    def _save(self, *, milestone: bool = False) -> None:
        # What has not been logged yet has not been looked at: a good checkpoint must not make room for a ruined one.
        self.watchdog.tick(f"the checkpoint after step {self.step}")
        self.health.check(self.step, {"loss": self.processes.sum([self.window.objective.item()])[0]})
        self.health.check_weights(self.step)
        state = TrainingState(
            step=self.step,
            seconds=self._clock(),
            done_seconds=self.done.seconds,
            world_size=self.processes.world_size,
            zero_stage=zero_stage(self.settings.training),
            milestone=milestone,
            best_score=self.best_score,
        )
        window = {
            "steps": self.window.steps,
            "objective": self.window.objective,
            "terms": {str(term): value for term, value in self.window.terms.items()},
            "term_steps": {str(term): count for term, count in self.window.term_steps.items()},
            "health": self.health.state(),
        }
        with self._pause():
            self.checkpoints.save(state, window, self.engine)
        self.saved_step = self.step

    def _restore(self, checkpoint: Path) -> None:
        state, window = load_checkpoint(checkpoint, self.engine, self.processes)
        self.step, self.seconds_before = state.step, state.seconds
        self.best_score = state.best_score
        self.done = self.start.at(state.step, state.done_seconds)
        device = self.processes.device
        with readable(checkpoint):
            self.health.restore(window["health"])
            self.window.steps = window["steps"]
            self.window.term_steps = {Term.parse(text): count for text, count in window["term_steps"].items()}
            self.window.objective = window["objective"].to(device)
            self.window.terms = {Term.parse(text): value.to(device) for text, value in window["terms"].items()}

    def _clock(self) -> float:
        """Seconds of training by this process's clock, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.started

    def _new_window(self) -> _Window:
        return _Window(0, 0.0, time.monotonic(), torch.zeros((), device=self.processes.device), {}, {})
