"""Predict a run's labelled texts with its teacher, if the teacher is not a kdcore run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from kdcore import Encoder, FinishedRun, InputError, Signals, Split, TaskOutputs, atomic_directory
from kdcore_evaluation.run.finished_scores import SCORES, TEACHER_PREDICTIONS

_BATCH = 16
_SPLITS: tuple[Split, ...] = ("held_out", "test")


@torch.inference_mode()
def write_teacher_predictions(run: FinishedRun) -> Path:
    """Predict the validation and test texts of a run with its teacher, and write them into the run folder.

    Raises:
        InputError: the run does not have exactly one teacher, its task has no labels, or the teacher lacks the head.
    """
    heads, where = run.task.heads(run.task.config), str(run.folder)
    if run.teacher_model is None or len(run.teacher_sources) != 1:
        raise InputError("--predict-with-teacher needs a run with one teacher", where=where)
    if not heads or run.task.metric is None:
        raise InputError("--predict-with-teacher needs a run whose task has labels", where=where)
    if run.task.separate_views:
        raise InputError("--predict-with-teacher needs a teacher with the student's tokenizer", where=where)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = run.teacher_model.load_teacher(Signals.head(heads[0].name)).to(device).eval()
    outputs = {split: _outputs(run, teacher, split, device) for split in _SPLITS if run.task.num_samples(split)}
    folder = run.folder / TEACHER_PREDICTIONS
    with atomic_directory(folder, replace=True) as staging:
        for split, own in outputs.items():
            run.task.write_predictions(staging, split, own)
        scores = run.task.scores("held_out", outputs["held_out"]) if "held_out" in outputs else {}
        content = {"export": str(run.teacher_source), "scores": scores}
        (staging / SCORES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _outputs(run: FinishedRun, teacher: Encoder, split: Split, device: torch.device) -> TaskOutputs:
    """Compute the outputs of the task's head, in the form that `Task.scores` expects."""
    head, count = run.task.heads(run.task.config)[0], run.task.num_samples(split)
    found: list[np.ndarray] = []
    for start in range(0, count, _BATCH):
        samples = np.arange(start, min(start + _BATCH, count))
        host = run.task.draw(split, samples, np.zeros_like(samples))
        batch = host.to(device)
        values = teacher(batch, Signals.head(head.name)).outputs(head.name).float().cpu().numpy()
        found += np.split(values, np.cumsum(host.lengths)[:-1]) if head.level == "token" else [values]
    return found if head.level == "token" else np.concatenate(found)
