"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
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
from kdcore.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from kdcore.training.distributed import Processes
from kdcore.training.engine import Engine, accumulation, zero_stage
from kdcore.training.interruption import Interruption
from kdcore.training.module import FrozenTeacher, Term
from kdcore.training.monitor import Monitor
from kdcore.training.validation import validate


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
    """Runs the steps of one run from where its last checkpoint left it to the end of its budget."""

    def __init__(
        self,
        settings: RecipeSettings,
        engine: Engine,
        teacher: FrozenTeacher,
        task: Task,
        scheduler: Scheduler,
        monitor: Monitor,
        processes: Processes,
        run_folder: Path,
        interruption: Interruption,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.teacher = teacher
        self.task = task
        self.scheduler = scheduler
        self.monitor = monitor
        self.processes = processes
        self.run_folder = run_folder
        self.interruption = interruption
        training = settings.training
        self.micro_batch_size, _ = accumulation(training, processes.world_size)
        self.batches = TrainingBatches(task, settings.seed, training.batch_size, self.micro_batch_size, processes)
        self.step = 0
        self.seconds_before = 0.0
        self.window = self._new_window()
        self.validates = task.num_samples("held_out") > 0
        self.last_validation: dict[str, float] = {}
        self.validated_step = self.saved_step = -1
        self.lr = 0.0
        self.started = time.monotonic()

    def train(self, checkpoint: Path | None) -> Progress:
        """Train until the budget is used up or a signal asks to stop; a checkpoint is written at the end of either.

        Raises:
            TrainingError: a loss is not finite.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        self.monitor.start(self._progress(self.seconds_before))
        self.started = time.monotonic()
        if not self.validates:
            self.monitor.say("the data holds out nothing: no validation")
        if self.step == 0:
            self._validate(self._progress(0.0))
        with closing(self.batches):
            while True:
                micro_batches = self.batches.step(self.step)
                counts, stop, seconds = self._agree(micro_batches, self.interruption.requested)
                progress = self._progress(seconds)
                if stop or progress.finished:
                    break
                self._train_step(micro_batches, counts, progress)
                self.step += 1
                progress = self._progress(seconds)
                self.monitor.stepped(progress)
                if self.step % self.settings.logging.every == 0:
                    self._log(progress)
                if self.step % self.settings.validation.every == 0:
                    self._validate(progress)
                if self.step % self.settings.checkpoints.every == 0:
                    self._save(progress)
        if progress.finished and self.validated_step != self.step:
            self._validate(progress)
        # Of the same step, a newer checkpoint knows the time at which the budget was used up.
        if self.step and (self.saved_step != self.step or self.settings.training.budget.hours is not None):
            self._save(progress)
        return progress

    def _train_step(self, micro_batches: list[Batch], counts: Mapping[Term, float], progress: Progress) -> None:
        module, window = self.engine.module, self.window
        weights = module.weights_at(progress.fraction)
        # A term that counts nothing in the whole step is 0.
        shares = {term: 1.0 / count if count else 0.0 for term, count in counts.items() if term.label in weights}
        factors = {term: weights[term.label] * share for term, share in shares.items()}
        self.lr = self.engine.peak_lr * self.scheduler.factor(progress)
        asked_of_teacher = module.requests(weights).teacher
        for host_batch in micro_batches if weights else ():
            batch = host_batch.to(self.processes.device)
            sums = self.engine.train_micro_batch(batch, self.teacher(batch, asked_of_teacher), factors)
            self.engine.finish_micro_batch(self.lr, weights)
            for term, value in sums.items():
                window.objective = window.objective + value * factors[term]
                window.terms[term] = window.terms.get(term, 0.0) + value * shares[term]
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
        seconds = self.seconds_before + time.monotonic() - self.started if self.processes.is_main else 0.0
        *counts, total_tokens, stops, clock = self.processes.sum([*local.values(), tokens, float(stop), seconds])
        self.window.tokens += total_tokens
        return dict(zip(local, counts, strict=True)), stops > 0, clock

    def _log(self, progress: Progress) -> None:
        window = self.window
        own = torch.stack([window.objective, *window.terms.values()]).tolist()
        objective, *sums = self.processes.sum(own)
        total = objective / window.steps
        losses = {term: value / window.term_steps[term] for term, value in zip(window.terms, sums, strict=True)}
        metrics = {f"train/{term}": value for term, value in losses.items()}
        metrics["train/loss"] = total
        metrics["train/lr"] = self.lr
        metrics["train/tokens_per_second"] = window.tokens / max(1e-9, time.monotonic() - window.started)
        metrics |= {f"train/{name}": value for name, value in self.engine.metrics().items()}
        if self.processes.is_main:
            self.monitor.log(progress, metrics)
        self.window = self._new_window()
        self._check_finite(progress, {"loss": total, **{str(term): value for term, value in losses.items()}})

    def _validate(self, progress: Progress) -> None:
        self.validated_step = self.step
        if not self.validates:
            return
        batch_size = self.settings.validation.batch_size or self.micro_batch_size
        module = self.engine.module
        weights = module.weights_at(progress.fraction)
        self.last_validation = validate(module, self.teacher, self.task, batch_size, self.processes, weights)
        if self.processes.is_main:
            self.monitor.log(progress, {f"held_out/{name}": value for name, value in self.last_validation.items()})
        self.monitor.say(f"step {progress.step}: held-out loss {self.last_validation['loss']:.5g}")
        self._check_finite(progress, {f"held-out {name}": value for name, value in self.last_validation.items()})

    def _check_finite(self, progress: Progress, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise TrainingError(
                f"at step {progress.step} this is not finite: {', '.join(wrong)}; start another run (run.id=NEW) with "
                "a lower optimizer.lr or a longer scheduler.warmup, or look at the data"
            )

    def _save(self, progress: Progress) -> None:
        # What has not been logged yet has not been looked at: a good checkpoint must not make room for a ruined one.
        self._check_finite(progress, {"loss": self.processes.sum([self.window.objective.item()])[0]})
        state = TrainingState(
            step=progress.step,
            seconds=progress.seconds,
            world_size=self.processes.world_size,
            zero_stage=zero_stage(self.settings.training),
        )
        keep = self.settings.checkpoints.keep
        window = {
            "steps": self.window.steps,
            "objective": self.window.objective,
            "terms": self.window.terms,
            "term_steps": self.window.term_steps,
        }
        folder = save_checkpoint(self.run_folder, state, window, self.engine, self.processes, keep)
        self.saved_step = progress.step
        self.monitor.say(f"step {progress.step}: checkpoint {folder.name}")

    def _restore(self, checkpoint: Path) -> None:
        state, window = load_checkpoint(checkpoint, self.engine, self.processes)
        self.step, self.seconds_before = state.step, state.seconds
        device = self.processes.device
        self.window.steps, self.window.term_steps = window["steps"], window["term_steps"]
        self.window.objective = window["objective"].to(device)
        self.window.terms = {term: value.to(device) for term, value in window["terms"].items()}

    def _progress(self, seconds: float) -> Progress:
        return self.start.at(self.step, seconds)

    def _new_window(self) -> _Window:
        return _Window(0, 0.0, time.monotonic(), torch.zeros((), device=self.processes.device), {}, {})
