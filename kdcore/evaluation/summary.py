"""A short table about a finished run: `python -m kdcore.evaluation.summary runs/NAME/ID`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcore.errors import InputError, KdcoreError
from kdcore.evaluation.agreement import compare
from kdcore.recipe.loading import load_recipe
from kdcore.tasks.masked_lm import MaskedLM
from kdcore.training.build import make_plan

_MOST_SEQUENCES = 512


def summarise(run: Path) -> str:
    """The table of a finished run, with real models loaded the way its user will load them.

    Raises:
        InputError: the folder holds no finished run of the task `masked_lm` with a teacher.
    """
    export = run / "exports" / "final"
    if not export.is_dir():
        raise InputError("there is no finished run in this folder", where=str(run), hint="kdcore-train RECIPE")
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
    ]
    width = max(len(name) for name, _ in table)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in table)


def _load(path: str) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(path, dtype=torch.float32).eval()


def _held_out_losses(run: Path) -> tuple[float, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["held_out/loss"] for row in rows if "held_out/loss" in row]
    return losses[0], losses[-1]


def main() -> int:
    """Print the table of the run named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m kdcore.evaluation.summary RUN_FOLDER", file=sys.stderr)
        return InputError.exit_code
    try:
        print(f"\n{summarise(Path(sys.argv[1]))}")
    except KdcoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
