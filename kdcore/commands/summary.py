"""`kdcore summary`: what came out of a finished run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdcore.commands.base import Command
from kdcore.errors import InputError

_MOST_SEQUENCES = 512


class SummaryCommand(Command):
    """Print a short table about a finished run: losses, sizes, speed, agreement with the teacher on held-out text."""

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
        InputError: the folder holds no finished run of the task `masked_lm` with a teacher.
    """
    import numpy as np

    from kdcore.evaluation.agreement import compare
    from kdcore.recipe.loading import load_recipe
    from kdcore.tasks.masked_lm import MaskedLM
    from kdcore.training.build import make_plan

    export = run / "exports" / "final"
    if not export.is_dir():
        raise InputError("there is no finished run in this folder", where=str(run), hint="give a folder runs/NAME/ID")
    plan = make_plan(load_recipe(run / "recipe.yaml"))
    if plan.teacher is None or plan.teacher.source is None or not isinstance(plan.task, MaskedLM):
        raise InputError("the table needs a teacher and the task `masked_lm`", where=str(run))
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
    width = max(len(name) for name, _ in table)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in table)


def _load(path: str) -> Any:
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(path, dtype=torch.float32).eval()


def _held_out_losses(run: Path) -> list[tuple[str, str]]:
    """A row for each loss with its first held-out value, before training or when it set in, and its last."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    values: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        for name, value in json.loads(line).items():
            kind, _, label = name.partition("/")
            if kind == "held_out" and label != "loss":
                values.setdefault(label, []).append(value)
    rows = []
    for label, (first, *_, last) in ((label, found) for label, found in values.items() if len(found) > 1):
        ratio = f": {first / last:.1f} times smaller" if 0 < last < first else ""
        rows.append((f"held-out {label}", f"{first:.4f} before, {last:.4f} after{ratio}"))
    return rows
