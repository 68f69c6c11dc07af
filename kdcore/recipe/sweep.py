"""Sweeps: which runs recipes and axes make, and what becomes of these runs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import Field

from kdcore.errors import InputError
from kdcore.recipe.loading import load_config, load_recipe
from kdcore.recipe.schema import ComponentConfig, PathOrHubName

_PLAIN = re.compile(r"[\w.+-]+")
_LONGEST = 40


class Comparing(ComponentConfig):
    """How the runs of a sweep are compared, as `kdcore compare` takes it."""

    by: list[str] = Field(["method"], min_length=1, description="Keys that make the groups.")
    over: str = Field("seed", description="Key whose values are repetitions.")


class Small(ComponentConfig):
    """What `--smoke` does instead, to try the whole way in minutes."""

    recipes: list[PathOrHubName] | None = Field(None, min_length=1, description="Instead of `recipes`.")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="Instead of the same axes.")
    overrides: dict[str, Any] = Field(default_factory=dict, description="Over those of the whole sweep.")
    suite: PathOrHubName | None = Field(None, description="Instead of `suite`.")
    suite_overrides: dict[str, Any] = Field(default_factory=dict, description="Over those of the whole sweep.")


class SweepFile(ComponentConfig):
    """Axes in a file: `axes: {seed: [1, 2, 3], optimizer.lr: [1e-4, 5e-4]}`.

    `kdcore launch RECIPE --sweep FILE` reads its axes. `kdcore sweep FILE` goes the whole way and reads the rest, too.
    """

    axes: dict[str, list[Any]] = Field(min_length=1, description="A recipe's key, and the values that it takes.")
    recipes: list[PathOrHubName] | None = Field(None, min_length=1, description="Recipes: files, or kdcore:NAME.")
    overrides: dict[str, Any] = Field(default_factory=dict, description="Keys of every recipe, and their values.")
    suite: PathOrHubName | None = Field(None, description="What the students are measured by.")
    suite_overrides: dict[str, Any] = Field(default_factory=dict, description="Keys of the suite, and their values.")
    compare: Comparing = Comparing()
    smoke: Small | None = None


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep, or the only one.

    Attributes:
        recipe: file, or `kdcore:NAME`.
        overrides: `key=value` each.
        folder: the run folder.
    """

    recipe: str
    overrides: list[str]
    folder: Path


def read_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """The axes of `--sweep`: `key=value,value` or a file each; values as they are written in overrides.

    Raises:
        InputError: an axis is malformed, empty, or stated twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        found = _axis(text) if "=" in text else _file_axes(text)
        for key, values in found.items():
            if key in axes:
                raise InputError(f"the axis `{key}` is stated twice", where="--sweep")
            axes[key] = values
    return axes


def make_sweep(recipes: Sequence[str], overrides: Sequence[str], axes: dict[str, list[str]]) -> list[SweepCell]:
    """Every combination of recipes and values, each with a run folder of its own.

    Raises:
        InputError: a recipe or a value is wrong, or two runs would share a folder.
    """
    if not axes and len(recipes) == 1:
        return [SweepCell(recipes[0], list(overrides), load_recipe(recipes[0], overrides).run_folder)]
    stated = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == "run.id"]
    names = [load_recipe(recipe, overrides).settings.run.name for recipe in recipes]
    cells: dict[Path, SweepCell] = {}
    for recipe, name in zip(recipes, names, strict=True):
        # Recipes that share a name would share folders.
        own = [Path(recipe).stem] if names.count(name) > 1 else []
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            labels = [f"{_short(key, list(axes))}={_folder_part(value)}" for key, value in chosen.items()]
            run_id = "-".join([*stated, *own, *labels])
            settings = [*overrides, *(f"{key}={value}" for key, value in chosen.items())]
            if run_id:
                settings.append(f"run.id={json.dumps(run_id)}")
            cell = SweepCell(recipe, settings, load_recipe(recipe, settings).run_folder)
            if cell.folder in cells:
                raise InputError(
                    "two runs of the sweep would share this folder",
                    where=str(cell.folder),
                    hint="give the recipes different run.name",
                )
            cells[cell.folder] = cell
    return list(cells.values())


def _axis(text: str) -> dict[str, list[str]]:
    key, _, stated = text.partition("=")
    values = [part for part in _split(stated) if part]
    _check_axis(key, values, f"--sweep {text}")
    return {key: values}


def _check_axis(key: str, values: Sequence[str], where: str) -> None:
    if not key.strip():
        what = "an axis needs a key"
    elif key in ("run.id", "run.name", "run.folder"):
        what = f"`{key}` follows from the sweep"
    elif not values:
        what = f"the axis `{key}` has no values"
    elif len(set(values)) != len(values):
        what = f"the axis `{key}` has a value twice"
    else:
        return
    raise InputError(what, where=where, hint="such as --sweep seed=1,2,3")


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _file_axes(text: str) -> dict[str, list[str]]:
    if not Path(text).is_file():
        hint = "such as --sweep seed=1,2,3, or a file with the key `axes`"
        raise InputError("this is neither an axis nor a file", where=f"--sweep {text}", hint=hint)
    return written_axes(load_config(text, SweepFile).axes)


def written_axes(axes: Mapping[str, list[Any]]) -> dict[str, list[str]]:
    """Axes of a file with values as they are written in overrides.

    Raises:
        InputError: an axis cannot be one.
    """
    found = {key: [written(value) for value in values] for key, values in axes.items()}
    for key, values in found.items():
        _check_axis(key, values, f"axes.{key}")
    return found


def written(value: Any) -> str:
    """A value as it is written in an override."""
    return value if isinstance(value, str) else json.dumps(value)


def _short(key: str, keys: Sequence[str]) -> str:
    """The end of a dotted key that no other axis has."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _folder_part(value: str) -> str:
    """A value as part of a folder's name."""
    plain = value.strip("\"'")
    if _PLAIN.fullmatch(plain) and len(plain) <= _LONGEST:
        return plain
    words = re.sub(r"[^\w.+-]+", "_", plain).strip("_")[:_LONGEST]
    return f"{words}-{sha256(value.encode()).hexdigest()[:6]}"
