"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdcore.errors import TrainingError
from kdcore.faults import plugin_faults
from kdcore.progress import Progress
from kdcore.schedulers.warmup import WarmupScheduler
from kdcore.training.checkpoint.format import TrainingState, checkpoint_folder
from kdcore.training.checkpoint.manager import load_checkpoint, readable
from kdcore.training.engine.engine import Engine, accumulation, zero_stage
from kdcore.training.engine.gradient_caching import CachedGradients, cache_gradients
from kdcore.training.engine.module import CACHED, Term, factors_of
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.batches import StepBatches, TrainingBatches, step_counts
from kdcore.training.loop.collapse import WARM_UP, collapse_findings
from kdcore.training.loop.context import RunContext
from kdcore.training.loop.divergence import DivergenceMonitor
from kdcore.training.loop.events import (
    CheckpointEvent,
    Event,
    ExportEvent,
    StageEvent,
    StartEvent,
    StepEvent,
    ValidationEvent,
)
from kdcore.training.loop.stages import StageParameters, change_stage
from kdcore.training.loop.triggers import Patience, Triggers
from kdcore.training.loop.validation import ConstantBaselines, validate

Export = Callable[[Engine, str, Progress, ValidationEvent | None], Path]
"""Write the engine's student below `exports`, given the folder's name and its validation for the model card."""


@dataclass
class MetricAccumulator:
    """Sums since the last row of metrics.

    Attributes:
        steps: number of applied steps.
        tokens: number of tokens on all processes.
        started: when the window began.
        sums: sum of each term over this process's samples.
        weighted: the same sums, each step multiplied by the loss's weight in that step.
        counts: number of items of each term, summed over steps and processes.
        term_steps: number of applied steps in which the term's loss was active.
    """

    steps: int
    tokens: float
    started: float
    sums: dict[Term, Tensor]
    weighted: dict[Term, Tensor]
    counts: dict[Term, int]
    term_steps: dict[Term, int]


class Trainer:
    """Train from the last checkpoint to the end of the budget."""

    def __init__(
        self,
        context: RunContext,
        engine: Engine,
        teachers: FrozenTeachers,
        stages: Sequence[StageParameters],
        stage: int,
        export: Export,
    ) -> None:
        """Set up the loop; training starts when the events of `train` are consumed.

        Args:
            context: the objects that all parts of the run share.
            engine: engine of this session's first stage.
            teachers: the teachers.
            stages: parameters of every stage of the run.
            stage: number of this session's first stage.
            export: function that writes the student to a folder.
        """
        self.context = context
        self.settings = settings = context.settings
        self.processes = context.processes
        self.watchdog = context.watchdog
        self.engine = engine
        self.teachers = teachers
        self.task = context.plan.task
        self.scheduler = context.plan.scheduler
        self.start = context.start
        self.micro_batch_size, _ = accumulation(settings.training, self.processes.world_size)
        self.batches = TrainingBatches(
            self.task,
            settings.seed,
            settings.training.batch_size,
            self.micro_batch_size,
            self.processes,
            whole=settings.training.gradient_caching,
            exchange=self._exchange,
            # When a step is drawn, all processes agree on the clock of the last step.
            fraction_at=lambda step: self.start.at(step, self.done.seconds).fraction,
        )
        self._exchanges = dist.new_group(backend="gloo") if self.processes.world_size > 1 else None
        self.divergence = DivergenceMonitor(settings, engine, self.batches, self.processes)
        self.triggers = Triggers(settings.validation, settings.checkpoints, context.plan.steps_per_epoch)
        self.validates = settings.validation.every != "never" and self.task.num_samples("held_out") > 0
        self.stages = stages
        self.stage = stage
        self.step = 0
        self.seconds_before = 0.0
        self.done = self.start
        self.window = self._new_window()
        self.last_validation: ValidationEvent | None = None
        self.initial: dict[str, float] = {}
        self.constants = ConstantBaselines()
        self.best_score: float | None = None
        self.patience = Patience(settings)
        self.validated_step = self.saved_step = -1
        self.finished = False
        self.lr = 0.0
        self.weights: dict[str, float] = {}
        self.drawn_at = 0.0
        self.started = time.monotonic()
        self._write_student = export

    def train(self, checkpoint: Path | None) -> Generator[Event, None, Progress]:
        """Train until the budget is used up or a signal requests a stop, and then write a checkpoint.

        If the consumer closes the generator, training ends after the last event that the consumer received. In this
        case, no checkpoint is written, and the run resumes from its last one.

        Returns:
            Progress at the end.

        Raises:
            TrainingError: a value is not finite, the loss scale is at its minimum, or early stopping ends the run.
            InfrastructureError: a checkpoint cannot be written.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        self.started = time.monotonic()
        with closing(self.batches):
            yield StartEvent(self.start.at(self.step, self.seconds_before), checkpoint)
            if self.step == 0:
                yield from self._validate(self.start)
                if self.settings.checkpoints.export_at_start:
                    yield self.export("initial", self.start)
            while True:
                self.watchdog.tick(f"step {self.step + 1}")
                batches = self.batches.step(self.step)
                counts, tokens, stop, seconds = self._agree(batches)
                progress = self.start.at(self.step, seconds)
                if stop or progress.finished or self.patience.used_up:
                    break
                if self._stage_is_over(progress):
                    yield self._change_stage(progress)
                    continue
                self.window.tokens += tokens
                self._train_step(batches, counts, progress)
                self.step += 1
                yield from self._after_step(self.start.at(self.step, seconds))
        self.finished = progress.finished or self.patience.used_up
        if self.finished:
            yield from self._finish(progress)
        elif self.step and self.saved_step != self.step:
            yield self._save()
        return progress

    @property
    def held_out(self) -> dict[str, float]:
        """The values of the last validation; empty if this session did not validate."""
        return {} if self.last_validation is None else dict(self.last_validation.values)

    def _stage_is_over(self, progress: Progress) -> bool:
        following = self.context.plan.stages[self.stage + 1 :]
        return bool(following) and progress.fraction >= following[0].begins

    def _change_stage(self, progress: Progress) -> StageEvent:
        """Transform the student after all actions due in the previous step have been performed.

        A checkpoint of this step therefore records the previous stage, and a run that resumes from it repeats the
        change.
        """
        self.stage += 1
        self.watchdog.tick(f"the change to stage {self.stage}")
        with self._pause():
            self.engine = change_stage(self.context, self.engine, self.stage, self.stages[self.stage], self.teachers)
        self.divergence.change_engine(self.engine)
        self.constants = ConstantBaselines()
        self.best_score = None  # scores of different structures are not comparable
        stage = self.context.plan.stages[self.stage]
        return StageEvent(progress, self.stage, stage.name, stage.info)

    def _train_step(self, batches: StepBatches, counts: Mapping[Term, float], progress: Progress) -> None:
        """Take one optimizer step.

        It follows the gradient of the sum over all terms of `weight * sum / global count`, where sums and counts cover
        all micro-batches and processes. With gradient caching, the gradients of coupled losses with respect to the
        student's signals are computed first, over the whole batch; each micro-batch then backpropagates its part.
        """
        engine, world_size, window = self.engine, self.processes.world_size, self.window
        self.weights = weights = engine.module.weights_at(progress.fraction)
        self.drawn_at = batches.fraction
        factors = factors_of(counts, weights) | {CACHED: 1.0}
        with plugin_faults(self.scheduler, "scheduler"):
            self.lr = engine.peak_lr * self.scheduler.factor(progress)
        before = dict(window.sums), dict(window.weighted)
        coupled, cached = self._cache_gradients(batches, weights, factors)
        separate = [label for label in weights if label not in {term.label for term in coupled}]
        requests = engine.module.requests(separate).teachers
        pairs = zip(batches.micro_batches, cached, strict=True)
        for number, (host_batch, gradients) in enumerate(pairs if weights else ()):
            batch = host_batch.to(self.processes.device)
            signals = self.teachers(batch, requests)
            sums = engine.forward(batch, signals, separate, gradients)
            objective = torch.stack([factors[term] * value for term, value in sums.items()]).sum()
            engine.backward(world_size * objective)  # DeepSpeed averages gradients over processes
            sums = {term: value.detach() for term, value in sums.items() if term != CACHED}
            del objective  # frees the graph's memory before the optimizer step
            engine.finish_micro_batch(self.lr, weights)
            self.divergence.micro_batch(self.step, number, sums)
            self._record(sums, weights)
        self.divergence.whole_batch(self.step, coupled)
        self._record({term: value / world_size for term, value in coupled.items()}, weights)
        if weights and not self.divergence.updated(self.step):
            window.sums, window.weighted = before  # no average includes a skipped step
            return
        for term in factors:
            if term != CACHED:
                window.term_steps[term] = window.term_steps.get(term, 0) + 1
                window.counts[term] = window.counts.get(term, 0) + int(counts[term])
        window.steps += 1

    def _scheduled(self) -> dict[str, float]:
        """Return the values of the last step that follow a schedule, by their names in metrics."""
        losses = self.engine.module.labelled_losses()
        scheduled = [label for label, loss in losses if isinstance(loss.config.weight, list)]
        weights = {f"weight/{label}": self.weights.get(label, 0.0) for label in scheduled}
        return weights | self.task.scheduled(self.drawn_at)

    def _cache_gradients(
        self, batches: StepBatches, weights: Mapping[str, float], factors: Mapping[Term, float]
    ) -> tuple[dict[Term, Tensor], Sequence[CachedGradients | None]]:
        """Compute the active coupled losses over the whole batch; without gradient caching there are none.

        Returns:
            The sum of each of their terms, and the gradients for each micro-batch.
        """
        module = self.engine.module
        labels = [label for label in weights if label in module.coupled]
        if batches.whole is None or not labels:
            return {}, [None] * len(batches.micro_batches)
        loss_scale = self.engine.loss_scale
        scale = 1.0 if loss_scale is None else loss_scale.now
        micro, whole = batches.micro_batches, batches.whole
        return cache_gradients(module, self.teachers, micro, whole, factors, labels, self.processes, scale)

    def _record(self, sums: Mapping[Term, Tensor], weights: Mapping[str, float]) -> None:
        """Add this process's sums to the metrics."""
        window = self.window
        for term, value in sums.items():
            window.sums[term] = window.sums.get(term, 0.0) + value.double()
            window.weighted[term] = window.weighted.get(term, 0.0) + value.double() * weights[term.label]

    def _after_step(self, progress: Progress) -> Iterator[Event]:
        """Log, validate, export and write a checkpoint, which comes last so that it records the other actions."""
        before, self.done = self.done, progress
        if self.step % self.settings.logging.every == 0:
            yield from self._log(progress)
        else:
            yield StepEvent(progress, None)
        if self.triggers.validation(before, progress):
            yield from self._validate(progress)
        yield from self._export(before, progress)
        milestone = self.triggers.milestone(before, progress)
        if milestone or self.triggers.checkpoint(before, progress):
            yield self._save(milestone=milestone)

    def _finish(self, progress: Progress) -> Iterator[Event]:
        """Perform the actions due at the end, including time-based actions that became due after the last step."""
        before, self.done = self.done, progress
        counted = self.patience.waited
        if self.validated_step != self.step:
            due = progress.fraction >= 1 or self.triggers.validation(before, progress)
            yield from self._validate(progress, counts=due)
        yield from self._export(before, progress)
        # Rewrite the checkpoint of the last step with the time at which the budget was used up, or the last validation.
        timed = progress.max_seconds is not None or progress.exit_seconds is not None
        if self.step and (self.saved_step != self.step or timed or self.patience.waited != counted):
            yield self._save()

    def _exchange(self, batches: StepBatches) -> Callable[[], dict[Any, float]]:
        """Start reading the teachers' signals and all-reducing counts and stop requests, in a background thread.

        With several processes, a stop request takes effect one step later than with one process.
        """
        for batch in batches.micro_batches:
            self.teachers.prefetch(batch)
        local: dict[Any, float] = {**step_counts(self.engine.module, batches, self.processes)}
        local["tokens"] = float(sum(batch.num_tokens for batch in batches.micro_batches))

        def complete() -> dict[Any, float]:
            flags = {"stop": self.context.shutdown.requested, "failed": self.context.checkpoints.failed}
            return local | flags | {"clock": self._clock() if self.processes.is_main else 0.0}

        if self._exchanges is None:
            return complete
        own = complete()
        finish = self.processes.begin_sum(list(own.values()), self._exchanges)
        return lambda: dict(zip(own, finish(), strict=True))

    def _agree(self, batches: StepBatches) -> tuple[dict[Term, float], float, bool, float]:
        """Return the counts, tokens, stop requests and the clock that all processes agree on."""
        totals = batches.totals()
        tokens, stop, failed, clock = (totals.pop(name) for name in ("tokens", "stop", "failed", "clock"))
        if failed:
            self.context.checkpoints.wait()
        return totals, tokens, stop > 0, clock

    def _log(self, progress: Progress) -> Iterator[Event]:
        window = self.window
        averages, loss = self._averages(window)
        losses = {} if loss is None else {"loss": loss}
        for term, average in averages.items():
            losses.setdefault(str(term), average)
        metrics = {f"train/{name}": value for name, value in losses.items()}
        metrics["train/lr"] = self.lr
        metrics |= {f"train/{name}": value for name, value in self._scheduled().items()}
        metrics["train/tokens_per_second"] = window.tokens / max(1e-9, time.monotonic() - window.started)
        metrics |= {f"train/{name}": value for name, value in self.engine.metrics().items()}
        self.window = self._new_window()
        yield StepEvent(progress, metrics)
        self.divergence.check(progress.step, losses)
        self.divergence.logged(progress.step, averages, self.weights)

    def _averages(self, window: MetricAccumulator) -> tuple[dict[Term, float], float | None]:
        """Average each term over all items that it counts in the window, such as masked tokens.

        Returns:
            The averages, and the objective: the sum over terms of weight times average, where a loss that was active in
            only some of the steps counts in proportion. It is None if nothing was counted, because no token was masked
            or, in fp16, because all steps were skipped.
        """
        own = torch.stack([*window.sums.values(), *window.weighted.values()]).tolist() if window.sums else []
        totals = iter(self.processes.sum(own))
        sums, weighted = (dict(zip(window.sums, totals, strict=False)) for _ in range(2))
        averages, loss = {}, None
        for term, count in window.counts.items():
            if count:
                averages[term] = sums[term] / count
                loss = (loss or 0.0) + weighted[term] / count * window.term_steps[term] / window.steps
        return averages, loss

    def _validate(self, progress: Progress, *, counts: bool = True) -> Iterator[Event]:
        """Validate; `counts` is False for the additional validation of a session that exits before the budget ends."""
        self.validated_step = self.step
        if not self.validates:
            return
        batch_size = self.settings.validation.batch_size or self.micro_batch_size
        module = self.engine.module
        weights = module.weights_at(progress.fraction)
        with self._pause():
            values, constants, checks = validate(
                module, self.teachers, self.task, batch_size, self.processes, weights, self.watchdog, self.constants
            )
        if self.step == 0:
            self.initial = values
        metric = self.task.metric if self.task.metric in values else None
        findings = self._findings(progress, values, constants, checks, metric)
        self.last_validation = ValidationEvent(progress, values, metric, constants, self.initial, checks, findings)
        yield self.last_validation
        self.divergence.check(progress.step, {f"held-out {name}": value for name, value in values.items()})
        yield from self._export_best(progress, values)
        if counts:
            self.patience.add(values)
        if self.patience.used_up:
            self.context.monitor.info(f"step {progress.step}: {self.patience}")
        stopping = self.settings.early_stopping
        if stopping.max_loss is not None and stopping.after_minutes is not None:
            minutes = progress.seconds / 60
            if minutes >= stopping.after_minutes and values["loss"] > stopping.max_loss:
                raise TrainingError(
                    f"at step {progress.step}, after {minutes:.1f} minutes, the held-out loss is {values['loss']:.5g}, "
                    f"above early_stopping.max_loss ({stopping.max_loss:g}), which applies after "
                    f"early_stopping.after_minutes ({stopping.after_minutes:g})"
                )

    def _findings(
        self,
        progress: Progress,
        values: Mapping[str, float],
        constants: Mapping[str, float],
        checks: Mapping[str, float],
        metric: str | None,
    ) -> dict[str, str]:
        """Describe signs of collapse after warm-up; a loss is judged only if it has been active for that long."""
        rises = isinstance(self.scheduler, WarmupScheduler) and self.scheduler.rise(progress) < 1
        if rises or progress.fraction < WARM_UP:
            return {}
        early = {
            label
            for label, loss in self.engine.module.labelled_losses()
            if progress.fraction - loss.config.active[0] < WARM_UP
        }
        judged = {name: value for name, value in constants.items() if Term.parse(name).label not in early}
        return collapse_findings(values, judged, checks, self.task.baselines("held_out"), metric)

    def _export_best(self, progress: Progress, values: Mapping[str, float]) -> Iterator[Event]:
        """Export the student if its score, by the task's metric, is the best so far."""
        score = None if self.task.metric is None else values.get(self.task.metric)
        if not self.step or score is None or (self.best_score is not None and score <= self.best_score):
            return
        self.best_score = score
        yield self.export("best", progress)

    def _export(self, before: Progress, now: Progress) -> Iterator[Event]:
        for share in self.triggers.exports(before, now):
            yield self.export(f"budget-{share:g}", now)

    def export(self, name: str, progress: Progress) -> ExportEvent:
        """Export the student to the folder `name` below `exports`; every process must call this."""
        self.watchdog.tick(f"the export after step {self.step}")
        self.divergence.check_weights(self.step)
        validation = self.last_validation if self.validated_step == self.step else None
        with self._pause():
            return ExportEvent(progress, self._write_student(self.engine, name, progress, validation))

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Exclude the context from the logged speed. No batches are counted in it, because the module may change."""
        began = time.monotonic()
        self.batches.settle()
        try:
            yield
        finally:
            self.window.started += time.monotonic() - began

    def _save(self, *, milestone: bool = False) -> CheckpointEvent:
        # Check for NaN since the last log, so that a diverged state never evicts a good checkpoint.
        self.watchdog.tick(f"the checkpoint after step {self.step}")
        total = sum(value.item() for value in self.window.weighted.values())
        self.divergence.check(self.step, {"loss": self.processes.sum([total])[0]})
        self.divergence.check_weights(self.step)
        state = TrainingState(
            step=self.step,
            seconds=self._clock(),
            done_seconds=self.done.seconds,
            world_size=self.processes.world_size,
            zero_stage=zero_stage(self.settings.training),
            milestone=milestone,
            best_score=self.best_score,
            stage=self.stage,
            initial=self.initial,
            watched=self.patience.best,
            waited=self.patience.waited,
        )
        window = {
            "steps": self.window.steps,
            "sums": {str(term): value for term, value in self.window.sums.items()},
            "weighted": {str(term): value for term, value in self.window.weighted.items()},
            "counts": {str(term): count for term, count in self.window.counts.items()},
            "term_steps": {str(term): count for term, count in self.window.term_steps.items()},
            "health": self.divergence.state(),
        }
        with self._pause():
            self.context.checkpoints.save(state, window, self.engine)
        self.saved_step = self.step
        path = checkpoint_folder(self.context.folder, self.step)
        return CheckpointEvent(self.start.at(self.step, state.seconds), path, milestone)

    def _restore(self, checkpoint: Path) -> None:
        state, window = load_checkpoint(checkpoint, self.engine, self.processes)
        self.step, self.seconds_before = state.step, state.seconds
        self.best_score, self.initial = state.best_score, state.initial
        self.patience.restore(state.watched, state.waited)
        self.done = self.start.at(state.step, state.done_seconds)
        device = self.processes.device
        with readable(checkpoint):
            self.divergence.restore(window["health"])
            if "counts" not in window:
                return  # an older version, with averages of steps, which cannot be continued
            self.window.steps = window["steps"]
            self.window.counts, self.window.term_steps = (
                {Term.parse(text): count for text, count in window[key].items()} for key in ("counts", "term_steps")
            )
            self.window.sums, self.window.weighted = (
                {Term.parse(text): value.to(device) for text, value in window[key].items()}
                for key in ("sums", "weighted")
            )

    def _clock(self) -> float:
        """Return seconds of training by this process's clock, including earlier sessions."""
        return self.seconds_before + time.monotonic() - self.started

    def _new_window(self) -> MetricAccumulator:
        return MetricAccumulator(0, 0.0, time.monotonic(), {}, {}, {}, {})
