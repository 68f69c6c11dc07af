"""Read run folders for comparisons."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore import Environment, InputError, find_component, load_recipe, read_environment, read_metrics

logger = logging.getLogger("kdcore")

WORDS = ("method", "run", "seed", "export")
MISSING = "none"


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        folder: the run folder.
        name: `NAME/ID`.
        state: `finished`, `running`, `stopped`, ... as in `kdcore runs list`.
        recipe: the resolved recipe, with defaults of the core's keys.
        stated: the keys that are set in the recipe.
        metrics: rows of metrics.jsonl in file order; training and held-out losses are in separate rows.
        data: fingerprint of the data; None if the run did not store one.
        teacher: digest of the teacher's weights, or their location in older runs; None without a teacher.
    """

    folder: Path
    name: str
    state: str
    recipe: dict[str, Any]
    stated: dict[str, Any]
    metrics: list[dict[str, Any]]
    data: str | None
    teacher: str | None

    @property
    def method(self) -> str:
        """Names of the losses, joined by ` + `."""
        return " + ".join(self.losses)

    @property
    def losses(self) -> tuple[str, ...]:
        """Short names of the losses, without duplicates."""
        losses: dict[str, dict[str, Any]] = self.recipe["losses"]
        names = (str(section.get("name", label)) for label, section in losses.items())
        return tuple(dict.fromkeys(short_name("kdcore.losses", name) for name in names))

    def label(self, key: str) -> str | None:
        """Return the printable value of a key of `--by` or `--over`; None if the run has no such key."""
        if key == "method":
            return self.method
        if key == "run":
            return self.name
        value: Any = self.recipe
        for part in key.split("."):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return None if value is None else describe(value)


def short_name(group: str, name: str) -> str:
    """Remove the package from a component's name if the name alone refers to the same component.

    Args:
        group: the entry point group, such as `kdcore.losses`.
        name: the component's name, or `package:name`.
    """
    package, _, bare = name.rpartition(":")
    try:
        return bare if package and find_component(group, bare).package == package else name
    except InputError:
        return name


def describe(value: Any) -> str:
    """Format a value of a recipe in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {describe(one)}" for key, one in value.items()) or "{}"
    if isinstance(value, list):
        return "[" + ", ".join(describe(one) for one in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_run(folder: Path, state: str) -> ComparedRun:
    """Read a run folder.

    Args:
        folder: the run folder.
        state: the run's state, from `kdcore.run_status`.

    Raises:
        InputError: the recipe cannot be read.
    """
    recipe = load_recipe(folder / "recipe.yaml")
    settings = recipe.settings.model_dump(mode="json")
    environment = _environment(folder)
    paths = [str(section.get("path")) for section in recipe.settings.models_of_teachers.values()]
    teacher = ", ".join(paths) or None
    weights = environment.teacher_sha256 or environment.teachers_sha256
    if weights:
        teacher = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return ComparedRun(
        folder=folder.absolute(),
        name=f"{recipe.settings.run.name}/{recipe.settings.run.id}",
        state=state,
        recipe={**settings, **_sections(settings, recipe.data)},
        stated=recipe.data,
        metrics=read_metrics(folder),
        data=environment.data_fingerprint,
        teacher=teacher,
    )


def check_keys(runs: Sequence[ComparedRun], keys: Sequence[str]) -> None:
    """Require that each key exists in at least one run.

    Raises:
        InputError: a key exists in no run; the message suggests a similar key.
    """
    for key in keys:
        if key in WORDS or any(run.label(key) is not None for run in runs):
            continue
        known = sorted({name for run in runs for name in _dotted(run.recipe)} | set(WORDS))
        near = difflib.get_close_matches(key, known, n=1)
        raise InputError(
            f"no run has a key `{key}` in its recipe",
            where="--by/--over",
            allowed=[*WORDS, "a key of the recipe, such as student.initialize.blocks"],
            hint=f"Did you mean `{near[0]}`?" if near else None,
        )


def _sections(settings: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Merge the sections of a recipe over the defaults of the core's keys."""
    return {
        key: {**settings[key], **value} if isinstance(value, dict) and isinstance(settings.get(key), dict) else value
        for key, value in stated.items()
        if key not in ("run",)
    }


def _dotted(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    inner = [name for key, one in value.items() for name in _dotted(one, f"{prefix}.{key}" if prefix else str(key))]
    return [prefix, *inner] if prefix else inner


def _environment(folder: Path) -> Environment:
    """Read environment.json; a damaged file must not exclude the run."""
    try:
        return read_environment(folder)
    except InputError as error:
        logger.warning(f"{error.problems[0]}\n  The run is compared without the fingerprints of its data and teacher.")
        return Environment()
