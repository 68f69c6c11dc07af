"""Report the samples of a training step with their losses, to find samples that make a run diverge."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcore.data.tokenizers import load_tokenizer
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe
from kdcore.signals import Batch
from kdcore.trackers.jsonl import read_metrics
from kdcore.training.checkpoint.format import (
    all_checkpoints,
    problems_of,
    read_state,
    refuse_foreign,
    step_of,
)
from kdcore.training.engine.engine import accumulation, check_weights, float32_weights_of
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.plan import Plan
from kdcore.training.loop.sampling import StepSamples
from kdcore.training.run.build import make_plan
from kdcore.training.run.run_folder import stored_data
from kdcore.training.runtime.distributed import own_device


@dataclass(frozen=True)
class TermValue:
    """One term of a loss for some samples.

    Attributes:
        term: the term.
        count: number of elements that it averages over.
        value: the average; 0 if the count is 0, as in training.
    """

    term: Term
    count: int
    value: float

    def __str__(self) -> str:
        mark = "" if math.isfinite(self.value) else "  <-- not finite"
        return f"{self.term} {self.value:.5g} over {self.count}{mark}"


def batch_report(run: Path, step: int, processes: int | None = None, *, allow_imports: bool = False) -> Iterator[str]:
    """Describe the samples of a step: ids, lengths, text with masks, and their losses.

    Losses are computed in float32 and without dropout, with the weights of the newest good checkpoint before that step,
    or with the initial weights if there is none.

    Args:
        run: the run's folder.
        step: number of the step as in metrics and messages, starting from 1.
        processes: number of processes of the run, which determines the samples of a step; default: the number in the
            checkpoint, or 1 without a checkpoint.
        allow_imports: whether to run the files under `imports:` of the run's recipe.

    Raises:
        InputError: the run or the step does not exist.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise InputError("the folder contains no run", where=str(run), hint="pass a folder runs/NAME/ID")
    if step < 1:
        raise InputError(f"must be at least 1 (found {step})", where="STEP")
    plan = make_plan(load_recipe(path, allow_imports=allow_imports), stored_data(run))
    training = plan.recipe.settings.training
    checkpoint = _newest_good(run, step)
    if checkpoint is not None:
        refuse_foreign(checkpoint)
    count = processes or (1 if checkpoint is None else read_state(checkpoint).world_size)
    lengths = plan.task.lengths("train")
    order = StepSamples(
        plan.task.num_samples("train"),
        plan.recipe.settings.seed,
        training.batch_size,
        accumulation(training, count)[0],
        count,
        plan.task.order,
        lengths,
    )
    seconds = max((row.get("seconds", 0.0) for row in read_metrics(run) if row["step"] < step), default=0.0)
    examiner = _Examiner(plan, checkpoint, plan.start.at(step - 1, seconds).fraction)
    weights = "its initial weights" if checkpoint is None else checkpoint.name
    yield f"step {step} of {run}: {training.batch_size} samples; losses with {weights} in float32, without dropout"
    bad: list[int] = []
    if training.gradient_caching:
        yield ""
        yield "the whole batch"
        yield from (f"  {value}" for value in examiner.values(*order.whole(step - 1), coupled=True))
    for rank in range(count):
        for number, (samples, epochs) in enumerate(order.micro_batches(step - 1, rank), start=1):
            yield ""
            yield f"process {rank}, micro-batch {number}"
            coupled = False if training.gradient_caching else None
            yield from (f"  {value}" for value in examiner.values(samples, epochs, coupled=coupled))
            for sample, epoch in zip(samples, epochs, strict=True):
                yield from examiner.sample(int(sample), int(epoch), bad)
    yield ""
    yield (
        f"samples with non-finite losses: {', '.join(map(str, bad))}" if bad else "the losses of all samples are finite"
    )


class _Examiner:
    """Compute the losses of samples outside of training."""

    def __init__(self, plan: Plan, checkpoint: Path | None, fraction: float) -> None:
        self._draw = partial(plan.task.draw, "train", fraction=fraction)
        self._device = own_device()
        self._teachers = FrozenTeachers(plan.load_teachers(), plan.composites).to(self._device)
        stage = 0 if checkpoint is None else read_state(checkpoint).stage
        student, losses = plan.build_student(stage), plan.stages[stage].losses
        self._module = DistillationModule(student, losses).eval()
        if checkpoint is not None:
            weights = float32_weights_of(checkpoint, read_state(checkpoint).zero_stage)
            check_weights(self._module, weights, checkpoint)
            self._module.load_state_dict(weights)
        self._module.to(self._device)
        # Losses that couple the sequences of a batch are meaningful for whole batches only.
        self._labels = list(losses)
        self._separable = [label for label, loss in losses.items() if not loss.couples_batch]
        with tempfile.TemporaryDirectory(prefix="kdcore-") as folder:
            plan.task.save_tokenizer(Path(folder))
            self._tokenizer: Any = load_tokenizer(folder)

    def values(self, samples: np.ndarray, epochs: np.ndarray, *, coupled: bool | None) -> list[TermValue]:
        """Compute each term of the losses that `coupled` selects.

        True selects losses that couple a batch's sequences, False the other losses, and None all losses.
        """
        labels = [label for label in self._labels if coupled in (None, label not in self._separable)]
        return self._values(self._draw(samples, epochs), labels)

    def sample(self, sample: int, epoch: int, bad: list[int]) -> Iterator[str]:
        """Describe one sample; if one of its losses is not finite, add the sample to `bad`."""
        batch = self._draw(np.array([sample]), np.array([epoch]))
        values = self._values(batch, self._separable)
        if not all(math.isfinite(value.value) for value in values):
            bad.append(sample)
        yield f"  sample {sample}, epoch {epoch}: {batch.num_tokens} tokens, {batch.num_masked} to predict"
        yield from (f"    {value}" for value in values)
        yield f"    {self._text(batch)}"

    @torch.no_grad()
    def _values(self, batch: Batch, labels: Collection[str]) -> list[TermValue]:
        counts = self._module.counts(batch)
        batch = batch.to(self._device)
        sums = self._module.sums(batch, self._teachers(batch, self._module.requests(labels).teachers), labels)
        return [
            TermValue(term, counts[term], float(total) / counts[term] if counts[term] else 0.0)
            for term, total in sums.items()
        ]

    def _text(self, batch: Batch) -> str:
        """Decode the text as the student sees it; `<original as shown>` where a token is to be predicted."""
        ids = batch.input_ids[0, : batch.num_tokens].tolist()
        originals = dict(zip(batch.masked_index.tolist(), batch.masked_labels.tolist(), strict=True))
        parts: list[str] = []
        run: list[int] = []
        for position, shown in enumerate([*ids, None]):
            if shown is not None and position not in originals:
                run.append(shown)
                continue
            if run:
                parts.append(self._tokenizer.decode(run))
                run = []
            if shown is not None:
                original, seen = self._tokenizer.convert_ids_to_tokens([originals[position], shown])
                parts.append(f"<{original} as {seen}>")
        return " ".join(parts)


def _newest_good(run: Path, step: int) -> Path | None:
    """Find the newest undamaged checkpoint from before a step."""
    before = [folder for folder in all_checkpoints(run) if step_of(folder) < step]
    return next((folder for folder in reversed(before) if not problems_of(folder)), None)
