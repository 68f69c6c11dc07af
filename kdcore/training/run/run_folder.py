"""Store recipe, data and environment of a run in its folder, and check that a resumed run matches them."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kdcore.errors import DataError, Problem, RecipeError
from kdcore.models.base import Model
from kdcore.recipe.loading import Recipe, load_recipe
from kdcore.recipe.schema import TEACHER
from kdcore.registry import is_same_component
from kdcore.tasks.base import StoredData
from kdcore.training.engine.engine import accumulation, zero_stage
from kdcore.training.loop.plan import Plan
from kdcore.utils.atomic import atomic_write
from kdcore.utils.stored import StoredCount, StoredText, read_json_object

_RECIPE = "recipe.yaml"
_ENVIRONMENT = "environment.json"
_DATA = "data.json"
_DATA_FORMAT = 1
_FREE_ON_RESUME = (
    "training.micro_batch_size",
    "training.compile",
    "training.stall_minutes",
    "training.gradient_checkpointing",
    "early_stopping",
    "logging",
    "validation",
    "checkpoints",
    "tracking",
    "callbacks",
    "training.budget",
)
_RESTORE = "restore the file, or start another run with `run.id=NEW`"
_PACKAGES = ("kdcore", "torch", "deepspeed", "transformers", "numpy", "pyarrow")


def check_resumable(folder: Path, recipe: Recipe, data_fingerprint: str) -> None:
    """Refuse to resume a run with settings or data that differ from the start of the run.

    Raises:
        RecipeError: they differ; the message lists the differences.
    """
    stored_path = folder / _RECIPE
    stored = load_recipe(stored_path)
    problems = []
    settings = stored.settings.model_dump(), recipe.settings.model_dump()
    for key, (before, now) in sorted(_differences(stored.named_data(), recipe.named_data()).items()):
        if key == "training.zero_stage" or _value(settings[0], key) == _value(settings[1], key) is not None:
            continue  # one spells out a default that the other omits
        if key == "imports" and _same_content(stored.settings.imports, recipe.settings.imports):
            continue  # a SLURM job runs copies of the recipe's files
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE_ON_RESUME):
            what = f"differs from the recipe that the run was started with (found {now!r}, expected {before!r})"
            problems.append(Problem(what, str(recipe.origin(key)), key))
    for limit in ("steps", "epochs", "hours"):
        before, now = (getattr(r.settings.training.budget, limit) for r in (stored, recipe))
        if (before is None) != (now is None) or (before is not None and now < before):
            key = f"training.budget.{limit}"
            what = f"the budget of a run may only grow (found {now}, was {before})"
            problems.append(Problem(what, str(recipe.origin(key)), key))
    if zero_stage(stored.settings.training) != zero_stage(recipe.settings.training):
        key = "training.zero_stage"
        problems.append(Problem("the ZeRO stage of a run must not change", str(recipe.origin(key)), key))
    if read_environment(folder).data_fingerprint not in (None, data_fingerprint):
        problems.append(Problem("the run was started with other data", str(recipe.origin("task.data")), "task.data"))
    if problems:
        hint = "start another run with `run.id=NEW`, or undo the changes listed here"
        raise RecipeError(
            [Problem("the run in this folder was started with different settings", str(folder), hint=hint), *problems]
        )


def check_split(folder: Path, plan: Plan, before: int, now: int) -> None:
    """Refuse to change how batches are split if a loss couples the sequences of a micro-batch.

    Args:
        folder: the run folder, with the recipe of the previous session.
        plan: the plan of this session.
        before: number of processes that wrote the checkpoint.
        now: number of processes.

    Raises:
        RecipeError: the micro-batch size or the number of processes differs.
    """
    recipe = plan.recipe
    coupled = [label for stage in plan.stages for label, loss in stage.losses.items() if loss.couples_batch]
    if not coupled or recipe.settings.training.gradient_caching:
        return
    label = coupled[0]
    stored = load_recipe(folder / _RECIPE).settings.training
    sizes = accumulation(stored, before)[0], accumulation(recipe.settings.training, now)[0]
    key, what = "training.micro_batch_size", f"the loss `{label}` couples the sequences of a micro-batch"
    problems = []
    if sizes[0] != sizes[1]:
        change = f"the micro-batch size may not change (found {sizes[1]}, expected {sizes[0]})"
        problems.append(Problem(f"{what}: {change}", str(recipe.origin(key)), key))
    if before != now:
        key = f"losses.{label}"
        change = f"the number of processes may not change (found {now}, expected {before})"
        problems.append(Problem(f"{what}: {change}", str(recipe.origin(key)), key))
    if problems:
        hint = "start another run with `run.id=NEW`; with `training.gradient_caching: true` its split may change"
        first = Problem("the run in this folder split its batches differently", str(folder), hint=hint)
        raise RecipeError([first, *problems])


Hashes = Mapping[str, Any]
"""The sha256 of each file of the teacher under `teacher:`, or a map of these for each label under `teachers:`."""


def check_teachers(folder: Path, recipe: Recipe, models: Mapping[str, Model]) -> Hashes:
    """Refuse to resume a run if the weights of its teachers have changed since it was started.

    Args:
        folder: the run folder.
        recipe: the run's recipe.
        models: each loaded teacher, by label.

    Returns:
        The sha256 of each file, for `store`.

    Raises:
        RecipeError: weights have changed; the message lists the files.
    """
    stored = read_environment(folder)
    now = {label: model.file_hashes() for label, model in models.items()}
    if recipe.settings.teachers is None:
        return _check_teacher(folder, recipe, "teacher", now.get(TEACHER, {}), stored.teacher_sha256 or {})
    before = stored.teachers_sha256 or {}
    found = {
        label: _check_teacher(folder, recipe, f"teachers.{label}", now.get(label, {}), before.get(label, {}))
        for label in recipe.settings.models_of_teachers
    }
    return {label: hashes for label, hashes in found.items() if hashes}


def _check_teacher(
    folder: Path, recipe: Recipe, key: str, now: Mapping[str, str], before: Mapping[str, str]
) -> Mapping[str, str]:
    """Compare the hashes of the files of the teacher at `key` with the stored hashes."""
    if before and now:
        path = f"{key}.path"
        problems = [
            Problem(_difference(before.get(name), now.get(name), name), str(recipe.origin(path)), path)
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if problems:
            what = "the teacher's weights have changed since the run was started"
            hint = "restore the weights, or start another run with `run.id=NEW`"
            raise RecipeError([Problem(what, str(folder), hint=hint), *problems])
    return now or before


def _difference(before: str | None, now: str | None, name: str) -> str:
    if before is None:
        return f"{name} was added"
    if now is None:
        return f"{name} is missing"
    return f"{name} has changed (found sha256 {now[:12]}..., expected {before[:12]}...)"


def store(folder: Path, recipe: Recipe, data: StoredData, hashes: Hashes) -> None:
    """Write recipe, data and environment to the folder; a resumed run overwrites them.

    Args:
        folder: the run folder.
        recipe: the run's recipe.
        data: the task's data.
        hashes: result of `check_teachers`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data.folder is not None:
        content = {"format_version": _DATA_FORMAT, "folder": str(data.folder), "fingerprint": data.fingerprint}
        _write(folder / _DATA, json.dumps(content, indent=2) + "\n")
    key = "teacher_sha256" if recipe.settings.teachers is None else "teachers_sha256"
    inputs = {"data_fingerprint": data.fingerprint, key: dict(hashes)}
    _write(folder / _ENVIRONMENT, json.dumps(_environment() | inputs, indent=2) + "\n")
    _write(folder / _RECIPE, recipe.resolved_yaml())


def stored_data(folder: Path) -> StoredData | None:
    """Read the record of the data that a run started with; None if there is no run or no record.

    Raises:
        DataError: the file is damaged or was written by a newer kdcore.
    """
    if not exists(folder):
        return None
    path = folder / _DATA
    if not path.is_file():  # older runs recorded the fingerprint only
        fingerprint = read_environment(folder).data_fingerprint
        return None if fingerprint is None else StoredData(fingerprint)
    version = read_json_object(path, _Format, hint=_RESTORE).format_version
    if version > _DATA_FORMAT:
        raise DataError(
            f"was written by a newer kdcore: format version {version}",
            where=str(path),
            allowed=f"format version {_DATA_FORMAT}",
            hint="upgrade kdcore, or start another run with `run.id=NEW`",
        )
    stored = read_json_object(path, _DataFile, hint=_RESTORE)
    return StoredData(stored.fingerprint, Path(stored.folder))


class Environment(BaseModel):
    """Versions and fingerprints at the start of a run, as in environment.json; unknown keys are ignored.

    Attributes:
        python: version of Python.
        packages: versions of packages by name.
        git: commit of the working folder's repository and whether it is clean; None outside of a repository.
        data_fingerprint: fingerprint of the data; None if the run recorded none.
        teacher_sha256: SHA-256 of the teacher's files by name; None or empty without a teacher.
        teachers_sha256: the same by label, if the recipe has `teachers`.
    """

    model_config = ConfigDict(frozen=True)

    python: str = ""
    packages: dict[str, str] = {}
    git: dict[str, str | bool] | None = None
    data_fingerprint: str | None = None
    teacher_sha256: dict[str, str] | None = None
    teachers_sha256: dict[str, dict[str, str]] | None = None


class _Format(BaseModel):
    format_version: Annotated[StoredCount, Field(ge=1)]


class _DataFile(BaseModel):
    folder: Annotated[StoredText, Field(min_length=1)]
    fingerprint: Annotated[StoredText, Field(min_length=1)]


def read_environment(folder: Path) -> Environment:
    """Read the versions and fingerprints that a run recorded in environment.json; empty without the file.

    Raises:
        DataError: the file is damaged; the message names each bad key.
    """
    path = folder / _ENVIRONMENT
    return read_json_object(path, Environment, hint=_RESTORE) if path.exists() else Environment()


def exists(folder: Path) -> bool:
    """Return whether a run was started here."""
    return (folder / _RECIPE).is_file()


def _environment() -> dict[str, Any]:
    versions = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] or ""  # an interrupted removal may leave no name
        if name in _PACKAGES or name.startswith("kdcore"):
            versions[name] = distribution.version
    return {"python": platform.python_version(), "packages": dict(sorted(versions.items())), "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the working folder's repository and whether it has changes; None outside of one."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": bool(status.strip())}


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def _same_content(before: Sequence[str], now: Sequence[str]) -> bool:
    """Return whether two lists of files have the same content; False if a file cannot be read."""
    try:
        return [Path(file).read_bytes() for file in before] == [Path(file).read_bytes() for file in now]
    except OSError:
        return False


def _value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _differences(before: Any, now: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in {*before, *now}:
            inner = f"{key}.{name}" if key else str(name)
            found |= _differences(before.get(name), now.get(name), inner)
        return found
    return {} if _is_equal(before, now, key) else {key: (before, now)}


def _is_equal(before: Any, now: Any, key: str) -> bool:
    """Compare two values of a recipe; `name` and `package:name` count as equal if they name the same component."""
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(_is_equal(before[name], now[name], name) for name in before)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(_is_equal(*pair, key) for pair in zip(before, now, strict=True))
    if isinstance(before, str) and isinstance(now, str) and key.rpartition(".")[2] == "name":
        return is_same_component(before, now)
    return bool(before == now)
