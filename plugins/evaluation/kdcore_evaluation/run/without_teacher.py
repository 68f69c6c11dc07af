"""Train the students of finished runs without their teachers, for comparison."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcore import EXIT_INPUT, InputError, KdcoreError, atomic_write, dump_yaml, load_recipe, run_state
from kdcore_evaluation.run.compared_runs import ComparedRun
from kdcore_evaluation.run.pool import ChildProcess, run_children

SUFFIX = "-without-teacher"


def train_without_teacher(runs: Sequence[ComparedRun]) -> list[Path]:
    """Train a counterpart next to each run that has a teacher and predictions; return the folders.

    The counterpart `ID-without-teacher` has the same recipe and starts from the same weights, without the losses that
    need a teacher. Finished counterparts are not trained again, interrupted ones are resumed.

    Raises:
        InputError: a run has no loss that can be trained without a teacher, or no `exports/initial`; or training
            failed.
    """
    recipes = {run.folder.with_name(run.folder.name + SUFFIX): recipe_without_teacher(run) for run in runs}
    jobs = []
    for folder, recipe in recipes.items():
        if run_state(folder) != "finished":
            path = folder.with_name(f".{folder.name}.yaml")
            with atomic_write(path) as file:
                file.write(dump_yaml(recipe).encode())
            arguments = ["-m", "kdcore", "train", str(path)]
            jobs.append(ChildProcess(str(folder), arguments, folder.with_name(f".{folder.name}.log")))
    failed: dict[str, Path] = {}

    def ended(job: ChildProcess, code: int) -> bool:
        print(f"run {job.name}: {'finished' if not code else f'failed with exit code {code}'}", file=sys.stderr)
        if code:
            failed[job.name] = job.log
        return code != EXIT_INPUT

    run_children(jobs, 1, ended)
    if failed:
        name, log = next(iter(failed.items()))
        raise InputError("training without a teacher failed", where=name, hint=f"see {log} for the reason")
    return list(recipes)


def recipe_without_teacher(run: ComparedRun) -> dict[str, Any]:
    """Return a recipe that trains a run's student without its teacher.

    Raises:
        InputError: no loss can be trained without a teacher, the student before training was not exported, or the
            recipe imports files.
    """
    where, initial = str(run.folder), run.folder / "exports" / "initial"
    if run.stated.get("imports"):
        hint = "write a recipe with `teacher: null` and another `run.id`, and train it with kdcore-train"
        raise InputError("files under `imports:` of a run folder's recipe are not run", where=where, hint=hint)
    if not (initial / "config.json").is_file():
        raise InputError(
            "the student before training was not exported, but training without a teacher starts from it",
            where=where,
            hint="train with `checkpoints.export_at_start: true`",
        )
    recipe = {key: value for key, value in run.stated.items() if key not in ("teacher", "teachers")}
    recipe["run"] = {**recipe["run"], "folder": str(run.folder.parent.parent), "id": run.folder.name + SUFFIX}
    recipe["student"] = {key: value for key, value in recipe["student"].items() if key == "name"}
    recipe["student"]["initialize"] = {"from": str(initial)}
    kept = _without_teacher(recipe)
    recipe["losses"] = {
        label: {key: value for key, value in section.items() if key != "teacher"}
        for label, section in recipe["losses"].items()
        if label in kept
    }
    if not kept:
        raise InputError(
            "no loss of the run can be trained without a teacher",
            where=where,
            key="losses",
            hint="add one that learns from labels, such as `classification: {}`, to the distilled runs",
        )
    return recipe


def _without_teacher(recipe: dict[str, Any]) -> list[str]:
    """Return the labels of the losses that do not read a teacher."""
    with tempfile.TemporaryDirectory(prefix="kdcore-") as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_yaml(recipe), encoding="utf-8")
        found = load_recipe(path).components()
    student = found.student.cls(found.student.config, "student", None)
    student.set_heads(found.task.cls.heads(found.task.config))
    kept = []
    for label, component in found.losses.items():
        try:
            loss = component.cls(component.config, None, student.info)
        except (KdcoreError, AttributeError):  # reads the description of its teacher
            continue
        if not loss.requests().teacher:
            kept.append(label)
    return kept
