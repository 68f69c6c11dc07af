"""Detect collapse and stagnation of a student at validation; see docs/evaluation.md for definitions and thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from kdcore.layers import at_least_float32
from kdcore.signals import Batch, Block, SignalRequest, Signals
from kdcore.training.engine.module import DistillationModule, ModelRequests
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.events import explained_shares
from kdcore.training.runtime.collectives import all_gather, broadcast_from_main
from kdcore.training.runtime.distributed import DistributedContext

WARM_UP = 0.1
"""Fraction of the budget before which no sign is reported."""

MIN_RANK_RATIO = 0.1
MIN_SPREAD_RATIO = 0.01
MAX_DEAD_UNITS = 0.1
MIN_EXPLAINED = 0.01

_TEXTS_PER_DIMENSION = 4
_LEAST_TEXTS = 32
_LEAST_TEACHER_RANK = 2.0
_CONSTANT = 1e-5  # relative to the mean; float32 rounds the mean of a constant by about 1e-7


class PooledStates:
    """Mean-pooled states of held-out texts in student and teacher, after the deepest block that losses read in each.

    The texts are spread evenly over the split. There are at most 4d texts, where d is the larger hidden size.
    """

    def __init__(self, module: DistillationModule, teachers: FrozenTeachers, num_texts: int) -> None:
        requests = module.requests([label for label, _ in module.labelled_losses()])
        info = module.student.info
        self._student: Block = requests.student.deepest_block(info.num_layers)
        self._teacher, self._teacher_block, teacher_width = teachers.deepest_block(requests.teachers)
        width = max(info.hidden_size, teacher_width)
        self._stride = max(1, -(-num_texts // (_TEXTS_PER_DIMENSION * width)))
        self._parts: dict[str, list[Tensor]] = {"student": [], "teacher": []}

    def requests_with(self, requests: ModelRequests, batch: Batch) -> ModelRequests:
        """Request the signals that `add` reads for this batch."""
        if not len(self._rows(batch)):
            return requests
        of_teachers = dict(requests.teachers)
        if self._teacher is not None:
            before = of_teachers.get(self._teacher, SignalRequest())
            of_teachers[self._teacher] = before | Signals.hidden([self._teacher_block])
        return ModelRequests(requests.student | Signals.hidden([self._student]), of_teachers)

    def add(self, batch: Batch, student: Signals, teachers: Mapping[str, Signals]) -> None:
        """Pool the states of a batch without waiting for the device."""
        rows = torch.from_numpy(self._rows(batch)).to(batch.input_ids.device, non_blocking=True)
        if not len(rows):
            return
        self._parts["student"].append(_means(student.tokens(self._student), batch.lengths)[rows])
        if self._teacher is not None:
            states = teachers[self._teacher].tokens(self._teacher_block)
            self._parts["teacher"].append(_means(states, batch.teacher_view.lengths)[rows])

    def checks(self, processes: DistributedContext) -> dict[str, float]:
        """Return rank, dead units, spread and width of both models by name; every process must call this."""
        own = {side: torch.cat(parts).cpu() for side, parts in self._parts.items() if parts}
        everyone = all_gather(processes, own)

        def compute() -> dict[str, float]:
            found = {}
            for side in self._parts:
                parts = [one[side] for one in everyone if side in one]
                if parts:
                    states = torch.cat(parts)
                    found["texts"] = float(len(states))
                    found[f"{side}_width"] = float(states.shape[1])
                    found[f"{side}_rank"] = effective_rank(states)
                    found[f"{side}_dead_units"] = dead_units(states)
                    found[f"{side}_spread"] = relative_spread(states)
            return found

        return broadcast_from_main(processes, compute)

    def _rows(self, batch: Batch) -> np.ndarray:
        return np.empty(0, np.int64) if batch.samples is None else np.flatnonzero(batch.samples % self._stride == 0)


def _means(states: Tensor, lengths: np.ndarray) -> Tensor:
    """Average states of the real tokens (N, d) over each sequence; return (B, d) in at least float32."""
    starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(states.device, non_blocking=True)
    tokens = torch.arange(len(states), device=states.device)
    return embedding_bag(tokens, at_least_float32(states), starts, mode="mean")


def effective_rank(states: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values of centred, standardised states (N, d).

    This is RankMe (arXiv 2210.02885). It is between 1 and min(N - 1, d), or 0 if no dimension varies.
    """
    centred, spread = _centred(states)
    varying = centred[:, spread > 0] / spread[spread > 0]
    if not varying.numel():
        return 0.0
    gram = varying.T @ varying if len(varying) > varying.shape[1] else varying @ varying.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return float(torch.special.entr(values / values.sum()).sum().exp())


def dead_units(states: Tensor) -> float:
    """Return the fraction of dimensions of states (N, d) that are constant."""
    return float((_centred(states)[1] == 0).double().mean())


def relative_spread(states: Tensor) -> float:
    """Return the median over dimensions of states (N, d) of their variance divided by their mean square.

    It is 0 if all states are equal; its maximum is 1, for states centred at 0. As a median, it is not affected by a few
    dominant dimensions, and it does not depend on the scale of dimensions.
    """
    centred, spread = _centred(states)
    squares = states.double().square().mean(0)
    return float(torch.where(spread > 0, centred.square().mean(0) / squares, 0.0).median())


def _centred(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return centred states in float64, and each dimension's standard deviation, with rounding errors set to 0."""
    means = states.double().mean(0)
    centred = states.double() - means
    spread = centred.square().mean(0).sqrt()
    return centred, torch.where(spread > _CONSTANT * means.abs(), spread, 0.0)


def rank_ratio(checks: Mapping[str, float]) -> float | None:
    """Return (student's effective rank - 1) / (teacher's effective rank - 1); None without a usable teacher.

    The teacher's rank is limited to the student's width, because the student's rank cannot exceed its width.
    """
    reachable = min(checks.get("teacher_rank", 0.0), checks["student_width"])
    return (checks["student_rank"] - 1) / (reachable - 1) if reachable >= _LEAST_TEACHER_RANK else None


def collapse_findings(
    values: Mapping[str, float],
    constants: Mapping[str, float],
    checks: Mapping[str, float],
    baselines: Mapping[str, float],
    metric: str | None,
) -> dict[str, str]:
    """Describe each sign of collapse or stagnation with its numbers, by the name of the value or check that shows it.

    Args:
        values: held-out losses and scores by name.
        constants: values that the best constant predictions reach.
        checks: `PooledStates.checks`, and as `largest_class` the fraction of predictions of the most frequent class.
        baselines: scores of predictions that ignore the text.
        metric: the task's main score.
    """
    found: dict[str, str] = {}
    enough = checks.get("texts", 0) >= _LEAST_TEXTS
    if enough:
        few = ", few texts" if checks["texts"] < max(checks["student_width"], checks.get("teacher_width", 0)) else ""
        of, ratio = f"the pooled states ({checks['texts']:,.0f} texts{few})", rank_ratio(checks)
        if ratio is not None and ratio < MIN_RANK_RATIO:
            ranks = f"{checks['student_rank']:.1f}, the teacher's is {checks['teacher_rank']:.1f}"
            found["student_rank"] = f"the effective rank of {of} is {ranks}"
        dead, usual = checks["student_dead_units"], checks.get("teacher_dead_units", 0.0)
        if dead - usual > MAX_DEAD_UNITS:
            found["student_dead_units"] = (
                f"{dead:.0%} of the dimensions of {of} are constant, {usual:.0%} of the teacher's"
            )
        spread, usual = checks.get("student_spread", 1.0), checks.get("teacher_spread", 0.0)
        if spread < MIN_SPREAD_RATIO * usual:
            found["student_spread"] = f"the relative spread of {of} is {spread:.2g}, the teacher's is {usual:.2g}"
    for name, share in explained_shares(values, constants).items():
        if share < MIN_EXPLAINED and name != "loss":
            found[name] = f"{name} {values[name]:.5g} is no better than a constant prediction, {constants[name]:.5g}"
    varied = enough and 1 not in baselines.values()  # no student exceeds a baseline of 1: the labels are of one class
    if varied and metric is not None and values.get(metric, math.inf) <= baselines.get(metric, -math.inf):
        found[metric] = f"{metric} {values[metric]:.4f} is not above its text-free baseline, {baselines[metric]:.4f}"
    if varied and checks.get("largest_class") == 1:
        found["largest_class"] = "all predictions are of one class"
    return found
