"""`kdcore summary`: what came out of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.commands.base import Command
from kdcore.errors import InputError
from kdcore.trackers.jsonl import read_metrics

if TYPE_CHECKING:
    from kdcore.tasks.sequence_classification import SequenceClassification

_MOST_SEQUENCES = 512


class SummaryCommand(Command):
    """Print a short table about a finished run.

    Of masked-LM data: losses, sizes, speed, agreement with the teacher on held-out text. Of labelled texts: losses,
    scores beside the share of the most frequent class, sizes.
    """

    help = "print what came out of a finished run: loss, size, speed, agreement with the teacher"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RUN."""
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        print(summarise(arguments.run))
        return 0


def summarise(run: Path) -> str:
    """The table of a finished run, with real models loaded the way its user will load them.

    Raises:
        InputError: the folder holds no finished run of the task `masked_lm` with a teacher, or of
            `sequence_classification`.
    """
    import numpy as np

    from kdcore.evaluation.agreement import compare
    from kdcore.recipe.loading import load_recipe
    from kdcore.tasks.masked_lm import MaskedLM
    from kdcore.tasks.sequence_classification import SequenceClassification
    from kdcore.training.build import make_plan
    from kdcore.training.run_folder import stored_data

    export = run / "exports" / "final"
    if not export.is_dir():
        raise InputError("there is no finished run in this folder", where=str(run), hint="give a folder runs/NAME/ID")
    plan = make_plan(load_recipe(run / "recipe.yaml"), stored_data(run))
    if isinstance(plan.task, SequenceClassification):
        return _aligned(_about_classes(run, plan.task))
    if plan.teacher is None or plan.teacher.source is None or not isinstance(plan.task, MaskedLM):
        what = "the table needs a teacher and the task `masked_lm`, or the task `sequence_classification`"
        raise InputError(what, where=str(run))
    held_out = plan.task.data.split("held_out")
    if len(held_out) < 2:
        raise InputError("the table needs held-out text", where=str(run), hint="task.data.held_out: 0.1")
    rows, lengths = held_out.rows(np.arange(min(len(held_out), _MOST_SEQUENCES)))
    teacher, student = _load(plan.teacher.source), _load(str(export))
    agreement = compare(teacher, student, rows, lengths)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (teacher, student)]
    table = [
        *_held_out_losses(run),
        ("blocks", f"teacher {teacher.config.num_hidden_layers}, student {student.config.num_hidden_layers}"),
        ("parameters", f"teacher {sizes[0]:,}, student {sizes[1]:,}: {sizes[1] / sizes[0]:.0%}"),
        ("inference speed", f"student {agreement.speedup:.2f} times the teacher's, on this machine"),
    ]
    if agreement.cosine is not None:
        table.append(("embeddings", f"mean cosine {agreement.cosine:.3f} to the teacher's"))
    table += [
        (
            "similarities",
            f"rank correlation {agreement.rank_correlation:.3f}, all pairs of {agreement.sequences} texts",
        ),
        ("student", f"{export}  (AutoModel.from_pretrained loads it)"),
        ("curves", f"tensorboard --logdir {run / 'tensorboard'}  (pip install tensorboard)"),
    ]
    for label, loss in plan.losses.items():
        if getattr(loss.config, "layers", "uniform") != "uniform":
            change = f"run.id=NEW losses.{label}.layers=uniform"
            table.append(("try next", f"kdcore-train {run / 'recipe.yaml'} {change}"))
            break
    return _aligned(table)


def _aligned(table: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in table)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in table)


def _about_classes(run: Path, task: SequenceClassification) -> list[tuple[str, str]]:
    """Rows about a run on labelled texts; its student is the best one, if there were scores."""
    from kdcore.data.labelled import majority_share
    from kdcore.tasks.metrics import OF_CLASSES, OF_NUMBERS

    best = run / "exports" / "best"
    export = best if best.is_dir() else run / "exports" / "final"
    student = _load(str(export))
    size, held_out = sum(parameter.numel() for parameter in student.parameters()), task.labels("held_out")
    scores = {
        name: values
        for name, values in _held_out_values(run).items()
        if name.partition("_")[0] in (*OF_CLASSES, *OF_NUMBERS)
    }
    table = _held_out_losses(run, leave_out=scores)
    for name, (first, *later) in scores.items():
        if later:
            table.append(
                (f"held-out {name}", f"{first:.4f} before, {max(later):.4f} at best, {later[-1]:.4f} at the end")
            )
    if task.config.data.classes and held_out is not None and len(held_out):
        share = f"{majority_share(held_out):.4f} of {len(held_out):,} held-out texts"
        table.append(("majority class", f"{share}: the accuracy of always saying the same"))
    table += [
        ("blocks", str(student.config.num_hidden_layers)),
        ("parameters", f"{size:,}"),
        ("student", f"{export}  (AutoModelForSequenceClassification.from_pretrained loads it)"),
    ]
    if (run / "predictions").is_dir():
        table.append(("predictions", str(run / "predictions")))
    return table


def _load(path: str) -> Any:
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(path, dtype=torch.float32).eval()


def _held_out_losses(run: Path, leave_out: Collection[str] = ()) -> list[tuple[str, str]]:
    """A row for each loss with its first held-out value, before training or when it set in, and its last."""
    rows = []
    for label, found in _held_out_values(run).items():
        if len(found) > 1 and label not in leave_out:
            first, last = found[0], found[-1]
            ratio = f": {first / last:.1f} times smaller" if 0 < last < first else ""
            rows.append((f"held-out {label}", f"{first:.4f} before, {last:.4f} after{ratio}"))
    return rows


def _held_out_values(run: Path) -> dict[str, list[float]]:
    """Every held-out value but the weighted sum, by its name, in the order of steps."""
    values: dict[str, list[float]] = {}
    for row in read_metrics(run):
        for name, value in row.items():
            kind, _, label = name.partition("/")
            if kind == "held_out" and label != "loss":
                values.setdefault(label, []).append(value)
    return values
