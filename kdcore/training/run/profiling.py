"""Measure how the time of a training step is spent."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcore.models.packing import countable_attention
from kdcore.recipe.error_location import error_location
from kdcore.recipe.loading import Recipe
from kdcore.signals import Batch, SignalRequest, Signals
from kdcore.training.engine.engine import Engine, accumulation, check_precision
from kdcore.training.engine.gradient_caching import CachedGradients, cache_gradients
from kdcore.training.engine.module import (
    CACHED,
    DistillationModule,
    Term,
    compile_models,
    factors_of,
    find_losses_by_parameter,
)
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.batches import StepBatches, step_counts
from kdcore.training.loop.plan import Plan
from kdcore.training.loop.sampling import StepSamples
from kdcore.training.run.build import make_plan
from kdcore.training.run.device_peaks import data_sheet_peak
from kdcore.training.runtime.distributed import DistributedContext, start_processes
from kdcore.training.runtime.numerics import numerics

PARTS = ("data", "communication", "teacher", "student forward", "losses", "backward", "optimizer")
_ROUNDS = 6
_PRODUCTS = {"cpu": (1024, 1)}
_PRODUCTS_ON_GPU = (8192, 20)
"""Size of square matrices, and products between two synchronisations with the device, which are slow on a GPU."""


@dataclass
class StepProfile:
    """Measurements of one process.

    Attributes:
        seconds: duration of each part of PARTS, the median over steps. Gradients are reduced within backward and
            optimizer.
        steps: number of measured steps.
        tokens: real tokens per step on this process.
        padding: fraction of all positions that are padding.
        computes_padding: whether the student also runs on padding.
        flops: number of multiplications and additions in a step's matrix products.
        limit: operations per second in plain matrix products in training precision, measured separately.
        peak: operations per second according to the device's data sheet; None if unknown.
        device: name of the device.
        plain_seconds: duration of a step without its data, measured without synchronisation between its parts.
        memory: peak memory in bytes, of the device, or of the process on a CPU.
        micro_batch_size: sequences per micro-batch.
        micro_batches: micro-batches per step.
    """

    seconds: dict[str, float]
    steps: int
    tokens: float
    padding: float
    computes_padding: bool
    flops: float
    limit: float
    memory: int
    micro_batch_size: int
    micro_batches: int
    plain_seconds: float
    device: str
    peak: float | None

    @property
    def step_seconds(self) -> float:
        """Seconds of a step; its data is drawn during the previous step."""
        return max(self.seconds["data"], self.plain_seconds)

    @property
    def utilization(self) -> float:
        """Model FLOPs utilization (MFU): fraction of the data sheet's peak, or of the limit if the peak is unknown."""
        return self.flops / self.step_seconds / (self.peak or self.limit)

    def hints(self) -> list[str]:
        """List suggestions that follow from the measurements."""
        hints = []
        others = sum(self.seconds.values()) - self.seconds["data"]
        share = {part: seconds / max(self.seconds["data"], others) for part, seconds in self.seconds.items()}
        if self.seconds["data"] > 0.8 * others:
            hints.append(
                "loading the data of a step takes about as long as training on it: prepare the data in advance "
                "(kdcore prepare) and keep it on a local disk"
            )
        if share["optimizer"] > 0.2 and self.micro_batches == 1:
            hints.append("the optimizer takes a large part of a step: a larger training.batch_size reduces it")
        if self.utilization < 0.4 and self.tokens / self.micro_batches < 4096:
            hints.append(
                f"a micro-batch has only {self.tokens / self.micro_batches:,.0f} tokens and does not saturate the "
                "device: try a larger training.micro_batch_size"
            )
        if self.padding > 0.05 and self.computes_padding:
            hints.append(
                f"{self.padding:.0%} of all computed positions are padding: this model does not support unpadding"
            )
        if share["teacher"] > 0.6:
            hints.append("the teacher takes most of a step: losses on lower blocks run fewer of its blocks")
        return hints


@dataclass
class _PartTimer:
    """Accumulate seconds by part, synchronising with the device at every boundary unless `plain` is set."""

    device: torch.device
    plain: bool = False
    steps: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent in the context to `part`."""
        started = self.now()
        try:
            yield
        finally:
            self.add(part, self.now() - started)

    def add(self, part: str, seconds: float) -> None:
        """Add to a part of the step that is running."""
        self.steps[-1][part] = self.steps[-1].get(part, 0.0) + seconds

    def now(self) -> float:
        """Return the time, after the device has finished all queued work."""
        return time.perf_counter() if self.plain else synchronized_time(self.device)


def synchronized_time(device: torch.device) -> float:
    """Return the time after the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> float:
    """Measure operations per second of large matrix products; `now` returns the time once all queued work is done."""
    size, products = _PRODUCTS.get(device.type, _PRODUCTS_ON_GPU)
    one = torch.randn(size, size, device=device).to(dtype)
    result = torch.empty_like(one)
    seconds = []
    for _ in range(_ROUNDS):
        started = now()
        for _ in range(products):
            torch.mm(one, one, out=result)
        seconds.append(now() - started)
    return 2.0 * size**3 * products / min(seconds)


def profile_recipe(recipe: Recipe, steps: int = 5) -> StepProfile:
    """Run a few steps of a recipe and measure them; nothing is written except prepared data.

    Args:
        recipe: the recipe.
        steps: number of steps to measure, after a warm-up.

    Raises:
        InputError: the recipe, its data or its models cannot be used.
    """
    with error_location(recipe, "training"):
        check_precision(recipe.settings.training)
    plan = make_plan(recipe)
    processes = start_processes()
    with numerics(recipe.settings.training, processes.device):
        return _Profiler(plan, processes).measure(steps)


class _Profiler:
    """Run steps of a plan, part by part."""

    def __init__(self, plan: Plan, processes: DistributedContext) -> None:
        settings = plan.recipe.settings
        self.plan, self.processes, self.task = plan, processes, plan.task
        self.micro_batch_size, self.micro_batches = accumulation(settings.training, processes.world_size)
        self.teachers = FrozenTeachers(plan.load_teachers(), plan.composites).to(processes.device)
        module = DistillationModule(plan.build_student(), plan.losses).to(processes.device)
        self._small_batch = plan.small_batch().to(processes.device)
        losses = find_losses_by_parameter(module, self._small_batch, self.teachers)
        with error_location(plan.recipe, "training"):
            self.engine = Engine(module, losses, plan.optimizer, settings.training, processes)
        self.teachers.to(self.engine.dtype)
        self.clock = _PartTimer(processes.device)
        self._watch()

    def _watch(self) -> None:
        """Time the student and the losses when the module calls them."""
        module = self.engine.module
        started: dict[str, float] = {}
        for part, inner in [
            ("student forward", module.student),
            *(("losses", loss) for loss in module.losses.values()),
        ]:

            def enter(_: object, args: object, part: str = part) -> None:
                started[part] = self.clock.now()

            def leave(_: object, args: object, output: object, part: str = part) -> None:
                self.clock.add(part, self.clock.now() - started[part])

            inner.register_forward_pre_hook(enter)
            inner.register_forward_hook(leave)

    def measure(self, steps: int) -> StepProfile:
        """Run one step to count operations and one to warm up, then `steps` with timed parts and `steps` without."""
        settings = self.plan.recipe.settings
        samples = StepSamples(
            self.task.num_samples("train"),
            settings.seed,
            settings.training.batch_size,
            self.micro_batch_size,
            self.processes.world_size,
            self.task.order,
            self.task.lengths("train"),
        )
        tokens, positions = 0, 0
        with countable_attention(), FlopCounterMode(display=False) as counter:  # it cannot see compiled operations
            self._step(samples, 0)
        if settings.training.compile:
            with error_location(self.plan.recipe, "training"):
                compile_models(self.engine.module, self.teachers, self._small_batch)
        self._step(samples, 1)
        self.clock.steps.clear()
        for step in range(2, 2 + steps):
            for batch in self._step(samples, step):
                tokens, positions = tokens + batch.num_tokens, positions + batch.input_ids.numel()
        seconds = {part: median(one.get(part, 0.0) for one in self.clock.steps) for part in PARTS}
        device, dtype = self.processes.device, self.engine.dtype
        memory = self._memory()  # before the limit is measured with large matrices
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return StepProfile(
            seconds,
            steps,
            tokens / steps,
            1 - tokens / positions,
            not self.engine.module.student.packs,
            float(counter.get_total_flops()),
            matrix_rate(device, dtype, lambda: synchronized_time(device)),
            memory,
            self.micro_batch_size,
            self.micro_batches,
            self._plain_seconds(samples, range(2 + steps, 2 + 2 * steps)),
            name,
            data_sheet_peak(name, dtype, tf32=torch.get_float32_matmul_precision() != "highest"),
        )

    def _plain_seconds(self, samples: StepSamples, steps: Sequence[int]) -> float:
        """Measure a step without synchronisation between its parts, and without drawing its data."""
        drawn = [self._draw(samples, step) for step in steps]
        self.clock.plain = True
        started = synchronized_time(self.processes.device)
        for batches in drawn:
            self._train(batches)
        return (synchronized_time(self.processes.device) - started) / len(steps)

    def _step(self, samples: StepSamples, step: int) -> list[Batch]:
        self.clock.steps.append({})
        with self.clock.timed("data"):
            batches = self._draw(samples, step)
        self._train(batches)
        return batches.micro_batches

    def _draw(self, samples: StepSamples, step: int) -> StepBatches:
        drawn = samples.micro_batches(step, self.processes.rank)
        batches = [self.task.draw("train", chosen, epochs, 0.0) for chosen, epochs in drawn]
        caches = self.plan.recipe.settings.training.gradient_caching
        return StepBatches(batches, self.task.draw("train", *samples.whole(step), 0.0) if caches else None)

    def _train(self, drawn: StepBatches) -> None:
        module, clock = self.engine.module, self.clock
        batches, whole = drawn.micro_batches, drawn.whole
        weights = module.weights_at(0.0)
        with clock.timed("communication"):
            factors = self._factors(drawn, weights)
        cached: Sequence[CachedGradients | None] = [None] * len(batches)
        coupled = [label for label in weights if whole is not None and label in module.coupled]
        if whole is not None and coupled:
            with self._backward_beside_its_parts():
                _, cached = cache_gradients(
                    module, self._run_teachers, batches, whole, factors, coupled, self.processes, 1.0
                )
        separate = [label for label in weights if label not in coupled]
        asked = module.requests(separate).teachers
        for host_batch, gradients in zip(batches, cached, strict=True):
            with clock.timed("data"):
                batch = host_batch.to(self.processes.device)
            with self._backward_beside_its_parts():
                sums = self.engine.forward(batch, self._run_teachers(batch, asked), separate, gradients)
                objective = torch.stack([factors[term] * value for term, value in sums.items()]).sum()
                self.engine.backward(self.processes.world_size * objective)
            with clock.timed("optimizer"):
                self.engine.finish_micro_batch(0.0, weights)

    def _run_teachers(self, batch: Batch, requests: Mapping[str, SignalRequest]) -> Mapping[str, Signals]:
        with self.clock.timed("teacher"):
            return self.teachers(batch, requests)

    @contextmanager
    def _backward_beside_its_parts(self) -> Iterator[None]:
        """Add the time spent in the context, except forward passes of models and losses, to `backward`."""

        def forward() -> float:
            return sum(self.clock.steps[-1].get(part, 0.0) for part in ("teacher", "student forward", "losses"))

        started, before = self.clock.now(), forward()
        yield
        self.clock.add("backward", self.clock.now() - started - (forward() - before))

    def _factors(self, batches: StepBatches, weights: Mapping[str, float]) -> dict[Term, float]:
        """Compute weight / global count of every term, as in training."""
        local = step_counts(self.engine.module, batches, self.processes)
        counts = dict(zip(local, self.processes.sum(list(local.values())), strict=True))
        return factors_of(counts, weights) | {CACHED: 1.0}

    def _memory(self) -> int:
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
