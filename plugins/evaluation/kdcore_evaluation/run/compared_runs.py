"""Run folders, as comparisons read them."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore import InputError, load_recipe, read_metrics

WORDS = ("method", "run", "seed", "export")
MISSING = "none"


@dataclass(frozen=True)
class ComparedRun:
    """A run that is compared.

    Attributes:
        folder: the run folder.
        name: `NAME/ID`.
        state: `finished`, `running`, `stopped`, ... as `kdcore runs list` says.
        recipe: its recipe, resolved, with the defaults of the core's keys.
        stated: the keys that the recipe states itself.
        metrics: rows of metrics, in their order; rows of some steps hold training losses, others held-out ones.
        data: fingerprint of its data; None if it is not known.
        teacher: digest of its teacher's weights, or where they are; None without a teacher.
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
        """Names of the losses, joined."""
        losses: dict[str, dict[str, Any]] = self.recipe["losses"]
        return " + ".join(dict.fromkeys(str(section.get("name", label)) for label, section in losses.items()))

    def label(self, key: str) -> str | None:
        """What this run has at a key of `--by` or `--over`, for people; None if there is nothing."""
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


def describe(value: Any) -> str:
    """A value of a recipe in one line."""
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
        folder: it.
        state: what is known of how the run is doing.

    Raises:
        InputError: its recipe cannot be read.
    """
    recipe = load_recipe(folder / "recipe.yaml")
    settings = recipe.settings.model_dump(mode="json")
    environment = _json(folder / "environment.json")
    teacher = (recipe.data.get("teacher") or {}).get("path")
    weights = environment.get("teacher_sha256")
    if weights:
        teacher = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return ComparedRun(
        folder=folder.absolute(),
        name=f"{recipe.settings.run.name}/{recipe.settings.run.id}",
        state=state,
        recipe={**settings, **_sections(settings, recipe.data)},
        stated=recipe.data,
        metrics=read_metrics(folder),
        data=environment.get("data_fingerprint"),
        teacher=None if teacher is None else str(teacher),
    )


def check_keys(runs: Sequence[ComparedRun], keys: Sequence[str]) -> None:
    """Refuse keys that no run has.

    Raises:
        InputError: with the keys that would have been near.
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
    """Stated sections over the defaults of the core's keys."""
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


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
