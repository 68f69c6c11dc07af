"""Detect divergence: NaN and infinity in losses, gradients and weights, an exhausted loss scale, and loss spikes.

No check synchronises with the device in the middle of training. Values are recorded on the device and read where a
synchronisation happens anyway: for a row of metrics, before a checkpoint, or in a skipped step.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcore.errors import TrainingError
from kdcore.recipe.schema import RecipeSettings
from kdcore.training.engine.engine import Engine, accumulation
from kdcore.training.engine.module import Term
from kdcore.training.loop.batches import TrainingBatches
from kdcore.training.runtime.collectives import all_gather
from kdcore.training.runtime.distributed import DistributedContext

logger = logging.getLogger("kdcore")

_NEVER = torch.iinfo(torch.int64).max
_GRADIENTS = "the gradients"
_SHOWN_SAMPLES = 8
_REMEMBERED_LOSSES = 100
_LEAST_LOSSES = 20
_SPIKE_DEVIATIONS = 6.0


@dataclass(frozen=True)
class _Finding:
    """The first value that was not finite.

    Attributes:
        place: its position in the order of training, comparable between processes.
        step: 0-based step.
        micro_batch: 0-based micro-batch of the step and process; None for the gradients and losses of a whole step.
        rank: rank of the process.
        names: names of the terms, or of the gradients.
    """

    place: int
    step: int
    micro_batch: int | None
    rank: int
    names: tuple[str, ...]


class DivergenceMonitor:
    """Detect divergence and its first step; every process must make the same calls."""

    def __init__(
        self,
        settings: RecipeSettings,
        engine: Engine,
        batches: TrainingBatches,
        processes: DistributedContext,
    ) -> None:
        self.engine = engine
        self._batches = batches
        self._processes = processes
        self._run_folder = Path(settings.run.folder, settings.run.name, settings.run.id)
        self._log_every = settings.logging.every
        self._max_steps_at_minimum = settings.early_stopping.max_steps_at_min_loss_scale
        # Each step has a position for each micro-batch, one for losses over the whole batch, and one for gradients.
        self._places = accumulation(settings.training, processes.world_size)[1] + 2
        self._first: dict[tuple[str, ...], Tensor] = {}
        self._steps_at_minimum = 0
        self._rows: list[dict[str, float]] = []
        self._warned_in = -1

    def micro_batch(self, step: int, number: int, sums: Mapping[Term, Tensor]) -> None:
        """Record which terms of a micro-batch are not finite; 0-based numbers."""
        if sums:
            self._remember(tuple(map(str, sums)), torch.stack(list(sums.values())), step * self._places + number)

    def whole_batch(self, step: int, sums: Mapping[Term, Tensor]) -> None:
        """Record which terms of losses over the whole batch are not finite at the 0-based `step`."""
        self.micro_batch(step, self._places - 2, sums)

    def updated(self, step: int) -> bool:
        """Check the engine after a step; return whether the step was applied.

        In fp16, a step whose gradients overflow is skipped and the loss scale is lowered, until no gradient overflows.

        Raises:
            TrainingError: gradients are not finite without a loss scale, or the loss scale is at its minimum.
        """
        engine = self.engine
        if engine.grad_norm is not None:
            self._remember((_GRADIENTS,), engine.grad_norm.reshape(1), (step + 1) * self._places - 1)
        scale = engine.loss_scale
        if engine.skipped:
            finding = self._find()
            self._first.clear()  # the step had no effect
            text = "" if finding is None else f"; {self._described(finding)}"
            if scale is None:
                raise TrainingError(
                    f"at step {step + 1} the gradients are not finite{text or ', but all losses are'}. The "
                    f"weights were not updated. {self._advice(step)}"
                )
            if engine.scale_is_exhausted:
                raise TrainingError(
                    f"at step {step + 1} the loss scale is at its minimum ({scale.minimum:g}) and gradients still "
                    f"overflow{text}: training has diverged. {self._advice(step)}, or train in bf16"
                )
            if finding is not None and self._may_warn(step):
                logger.warning(f"warning: step {step + 1} was skipped: its gradients overflowed{text}")
        self._watch_scale(step, scale.at_minimum if scale is not None else False)
        return not engine.skipped

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Check values that were read after `step` steps; they are the same on every process.

        Raises:
            TrainingError: a value is not finite; the message names the first step and samples, if known.
        """
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            finding = self._find()
            began = "" if finding is None else f"; {self._described(finding)}"
            advice = self._advice(step - 1 if finding is None else finding.step)
            raise TrainingError(f"at step {step} these values are not finite: {', '.join(wrong)}{began}. {advice}")

    def check_weights(self, step: int) -> None:
        """Check the weights after `step` steps, before they are saved or exported; every process must call this.

        Raises:
            TrainingError: the weights are not finite, although losses of the previous weights may still be finite.
        """
        self.check(step, {"the weights": self._processes.sum([self.engine.largest_weight()])[0]})

    def change_engine(self, engine: Engine) -> None:
        """Switch to the engine of a new stage; losses of the previous student are not comparable."""
        self.engine = engine
        self._rows = []

    def logged(self, step: int, averages: Mapping[Term, float], weights: Mapping[str, float]) -> None:
        """Warn if the objective is far above its last logged values, all computed with the current weights of losses.

        A scheduled change of a loss's weight, or a loss that starts or ends, is therefore not mistaken for a spike.

        Args:
            step: number of completed steps.
            averages: average of each term since the last row.
            weights: weights of the losses that are active now, by label.
        """
        active = {str(term): weights[term.label] for term in averages if term.label in weights}

        def total(row: Mapping[str, float]) -> float:
            return sum(weight * row[name] for name, weight in active.items())

        row = {str(term): average for term, average in averages.items()}
        before, loss = [total(row) for row in self._rows if active.keys() <= row.keys()], total(row)
        self._rows = [*self._rows, row][-_REMEMBERED_LOSSES:]
        if len(before) >= _LEAST_LOSSES:
            mean, deviation = statistics.fmean(before), statistics.pstdev(before)
            if loss > mean + _SPIKE_DEVIATIONS * deviation and deviation > 0:
                logger.warning(
                    f"warning: step {step}: loss spike: {loss:.5g} (mean {mean:.5g}, "
                    f"standard deviation {deviation:.2g} over the last {len(before)} rows of metrics)"
                )

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs; the same on every process."""
        return {"steps_at_minimum": self._steps_at_minimum, "rows": list(self._rows)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._steps_at_minimum = state["steps_at_minimum"]
        self._rows = list(state.get("rows", []))  # older versions stored the weighted sums

    def _remember(self, names: tuple[str, ...], values: Tensor, place: int) -> None:
        places = torch.where(torch.isfinite(values), _NEVER, place)
        known = self._first.get(names)
        self._first[names] = places if known is None else torch.minimum(known, places)

    def _find(self) -> _Finding | None:
        """Find the first non-finite value on any process; waits for the device and all processes."""
        places: dict[str, int] = {}
        for names, first in self._first.items():
            for name, place in zip(names, first.tolist(), strict=True):
                places[name] = min(place, places.get(name, _NEVER))
        findings = []
        place = min(places.values(), default=_NEVER)
        if place != _NEVER:
            step, number = divmod(place, self._places)
            names = tuple(name for name, where in places.items() if where == place)
            micro_batch = number if number < self._places - 2 else None
            findings.append(_Finding(place, step, micro_batch, self._processes.rank, names))
        everywhere = [finding for found in all_gather(self._processes, findings) for finding in found]
        return min(everywhere, key=lambda finding: (finding.place, finding.rank), default=None)

    def _described(self, finding: _Finding) -> str:
        """Describe a finding in words."""
        what = f"first seen in step {finding.step + 1} in {', '.join(finding.names)}"
        if finding.names == (_GRADIENTS,):
            return f"{what}, while its losses were finite"
        if finding.micro_batch is None:
            return f"{what}, over the whole batch"
        samples, _ = self._batches.samples(finding.step, finding.rank)[finding.micro_batch]
        process = f" on process {finding.rank}" if self._processes.world_size > 1 else ""
        return f"{what}{process}, among the samples {_listed(samples.tolist())}"

    def _advice(self, step: int) -> str:
        return (
            f"`kdcore debug batch {self._run_folder} {step + 1}` shows that step's samples and their losses; start "
            "another run (run.id=NEW) with a lower optimizer.lr, a longer scheduler.warmup or other data"
        )

    def _watch_scale(self, step: int, at_minimum: bool) -> None:
        self._steps_at_minimum = self._steps_at_minimum + 1 if at_minimum else 0
        if self._steps_at_minimum >= self._max_steps_at_minimum:
            raise TrainingError(
                f"at step {step + 1} the loss scale has been at its minimum for {self._steps_at_minimum} steps, "
                "the limit of early_stopping.max_steps_at_min_loss_scale: the gradients are too large for fp16. "
                f"{self._advice(step)}, or train in bf16"
            )

    def _may_warn(self, step: int) -> bool:
        """Return whether to warn: at most once between two rows of metrics."""
        before, self._warned_in = self._warned_in, step // self._log_every
        return before != self._warned_in


def _listed(samples: Sequence[int]) -> str:
    shown = ", ".join(map(str, samples[:_SHOWN_SAMPLES]))
    more = len(samples) - _SHOWN_SAMPLES
    return f"{shown} and {more} more" if more > 0 else shown
