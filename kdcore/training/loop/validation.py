"""The training objective, and a task's scores, on held-out text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdcore.tasks.base import Task
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.batches import held_out_batches
from kdcore.training.loop.predictions import Outputs, scored_head
from kdcore.training.runtime.distributed import DistributedContext
from kdcore.training.runtime.watchdog import Watchdog


@torch.no_grad()
def validate(
    module: DistillationModule,
    teachers: FrozenTeachers,
    task: Task,
    batch_size: int,
    processes: DistributedContext,
    weights: Mapping[str, float],
    watchdog: Watchdog,
) -> dict[str, float]:
    """Compute each term of the active losses over all held-out samples, and their weighted total as `loss`.

    If losses read the task's own head, its scores are included.

    `weights` maps labels of active losses to their weights; `watchdog` is notified of each batch.
    """
    was_training = module.training
    module.eval()
    sums: dict[Term, Tensor] = {}  # on the device, without synchronisation until the end
    counts: dict[Term, float] = {}
    head = scored_head(task)
    outputs = Outputs(head) if head is not None and module.reads_head(head.name) else None
    requests = module.requests(weights)
    asked_of_student = requests.student if outputs is None else requests.student | outputs.request
    try:
        for host_batch in held_out_batches(task, batch_size, processes):
            watchdog.tick("a validation")
            batch = host_batch.to(processes.device)
            answers = teachers(batch, requests.teachers)
            for term, count in module.counts(batch).items():
                counts[term] = counts.get(term, 0.0) + count
            student = module.student(batch, asked_of_student)
            for term, value in module.sums_of(student, answers, batch, weights).items():
                sums[term] = value.double() + sums.get(term, 0.0)
            if outputs is not None:
                outputs.add(batch, student)
    finally:
        module.train(was_training)
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
    return result | (task.scores("held_out", outputs.gathered(processes)) if outputs is not None else {})


def _first(processes: DistributedContext) -> DistributedContext:
    return DistributedContext(0, 1, processes.device, processes.host_group)
