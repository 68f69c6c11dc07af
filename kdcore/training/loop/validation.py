"""Compute the training objective and a task's scores on held-out text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kdcore.signals import Batch, Signals
from kdcore.tasks.base import Task
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.batches import held_out_batches
from kdcore.training.loop.collapse import PooledStates
from kdcore.training.loop.predictions import Outputs, largest_class, scored_head
from kdcore.training.runtime.collectives import all_gather
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.training.runtime.watchdog import Watchdog


class ConstantBaselines:
    """The held-out values that the best constant predictions reach, each computed at its loss's first validation.

    They do not depend on the student, and held-out batches are the same at every validation.
    """

    def __init__(self) -> None:
        self.values: dict[Term, float] = {}
        self._known: set[str] = set()
        self._sums: dict[str, dict[str, Tensor]] = {}

    def add(
        self, module: DistillationModule, batch: Batch, teachers: Mapping[str, Signals], labels: Iterable[str]
    ) -> None:
        """Add a batch for the losses whose values are not known yet."""
        _accumulate(self._sums, module.constant_sums(batch, teachers, set(labels) - self._known))

    def finish(self, module: DistillationModule, labels: Iterable[str], processes: DistributedContext) -> None:
        """Compute the values from the sums of all processes; every process must call this."""
        if self._known.issuperset(labels):
            return
        # Moved to one device, because losses may count on the host, and read in one transfer.
        all_sums = [value.to(processes.device, torch.float64) for own in self._sums.values() for value in own.values()]
        flat = torch.cat([value.flatten() for value in all_sums]).cpu() if all_sums else torch.empty(0)
        values = iter(torch.split(flat, [value.numel() for value in all_sums]))
        host = {
            label: {name: next(values).reshape(value.shape) for name, value in own.items()}
            for label, own in self._sums.items()
        }
        total: dict[str, dict[str, Tensor]] = {}
        for part in all_gather(processes, host):
            _accumulate(total, part)
        self.values |= module.constant_baselines(total)
        self._known.update(labels)
        self._sums = {}

    def named(self, weights: Mapping[str, float], terms: Iterable[Term]) -> dict[str, float]:
        """Return the values of active losses by the names of their terms, and `loss` if all terms have a value."""
        terms = list(terms)
        found = {str(term): self.values[term] for term in terms if term in self.values}
        if len(found) == len(terms):
            found["loss"] = sum(weights[term.label] * self.values[term] for term in terms)
        return found


def _accumulate(total: dict[str, dict[str, Tensor]], sums: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Add the sums of each loss to those in `total`."""
    for label, values in sums.items():
        known = total.setdefault(label, {})
        for name, value in values.items():
            known[name] = value + known[name] if name in known else value


@torch.no_grad()
def validate(
    module: DistillationModule,
    teachers: FrozenTeachers,
    task: Task,
    batch_size: int,
    processes: DistributedContext,
    weights: Mapping[str, float],
    watchdog: Watchdog,
    constants: ConstantBaselines,
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Compute each term of the active losses over all held-out samples, and their weighted total as `loss`.

    If losses read the task's own head, its scores are included.

    Args:
        module: student and losses.
        teachers: the teachers.
        task: the task, which provides batches and scores.
        batch_size: sequences per batch.
        processes: the processes; every process must call this.
        weights: weights of the active losses by label.
        watchdog: the watchdog, which is notified of each batch.
        constants: values of the best constant predictions; values of losses that were not validated before are added.

    Returns:
        The values, the values of the best constant predictions for losses that define them, and the checks of
        `kdcore.training.loop.collapse`.
    """
    was_training = module.training
    module.eval()
    sums: dict[Term, Tensor] = {}  # on the device, without synchronisation until the end
    counts: dict[Term, float] = {}
    head = scored_head(task)
    outputs = Outputs(head) if head is not None and module.reads_head(head.name) else None
    requests = module.requests(weights)
    if outputs is not None:
        requests = replace(requests, student=requests.student | outputs.request)
    states = PooledStates(module, teachers, task.num_samples("held_out"))
    try:
        for host_batch in held_out_batches(task, batch_size, processes):
            watchdog.tick("a validation")
            batch = host_batch.to(processes.device)
            asked = states.requests_with(requests, host_batch)
            answers = teachers(batch, asked.teachers)
            for term, count in module.counts(host_batch).items():
                counts[term] = counts.get(term, 0.0) + count
            constants.add(module, batch, answers, weights)
            student = module.student(batch, asked.student)
            states.add(batch, student, answers)
            for term, value in module.sums_of(student, answers, batch, weights).items():
                sums[term] = value.double() + sums.get(term, 0.0)
            if outputs is not None:
                outputs.add(batch, student)
    finally:
        module.train(was_training)
    constants.finish(module, weights, processes)
    # A process without a batch must still list the same terms in the same order.
    first = next(held_out_batches(task, 1, _first(processes)))
    terms = [term for term in module.counts(first) if term.label in weights]
    own = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}
    reduced = processes.sum([table.get(term, 0.0) for table in (own, counts) for term in terms])
    values = {
        term: total / count if count else 0.0
        for term, total, count in zip(terms, reduced[: len(terms)], reduced[len(terms) :], strict=True)
    }
    result = {str(term): value for term, value in values.items()}
    result["loss"] = sum(weights[term.label] * value for term, value in values.items())
    checks = states.checks(processes)
    if outputs is not None:
        gathered = outputs.gathered(processes)
        result |= task.scores("held_out", gathered)
        checks |= largest_class(outputs.head, gathered)
    return result, constants.named(weights, terms), checks


def _first(processes: DistributedContext) -> DistributedContext:
    return DistributedContext(0, 1, processes.device, processes.host_group)
