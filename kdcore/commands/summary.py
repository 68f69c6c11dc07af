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
    rows, lengths = held_out.rows(np.arange(min(len(held_out), _MOST_SEQUENCES)))
    teacher, student = _load(plan.teacher.source), _load(str(export))
    agreement = compare(teacher, student, rows, lengths)
    before, after = _held_out_losses(run)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (teacher, student)]
    table = [
        ("held-out loss", f"{before:.4f} before, {after:.4f} after: {before / after:.1f} times smaller"),
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
        ("try next", f"kdcore-train {run / 'recipe.yaml'} run.id=NEW losses.{next(iter(plan.losses))}.layers=uniform"),
    ]
    width = max(len(name) for name, _ in table)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in table)


def _load(path: str) -> Any:
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(path, dtype=torch.float32).eval()


def _held_out_losses(run: Path) -> tuple[float, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["held_out/loss"] for row in rows if "held_out/loss" in row]
    return losses[0], losses[-1]
