"""Expand recipes and sweep axes into runs, and read sweep files."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
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
    """How `kdcore compare` groups the runs of a sweep."""

    by: list[str] = Field(["method"], min_length=1, description="Keys to group by.")
    over: str = Field("seed", description="Key whose values are repetitions.")


class Small(ComponentConfig):
    """Replacements for `--smoke`, which tests the complete sweep in minutes."""

    recipes: list[PathOrHubName] | None = Field(None, min_length=1, description="Replaces `recipes`.")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="Replaces axes with the same key.")
    overrides: dict[str, Any] = Field(default_factory=dict, description="Applied after `overrides` of the sweep.")
    suite: PathOrHubName | None = Field(None, description="Replaces `suite`.")
    suite_overrides: dict[str, Any] = Field(
        default_factory=dict, description="Applied after `suite_overrides` of the sweep."
    )


class SweepFile(ComponentConfig):
    """A sweep file, with axes such as `axes: {seed: [1, 2, 3], optimizer.lr: [1e-4, 5e-4]}`.

    `kdcore launch RECIPE --sweep FILE` uses the axes only. `kdcore sweep FILE` uses all keys: it trains, evaluates and
    compares.
    """

    axes: dict[str, list[Any]] = Field(min_length=1, description="Recipe keys and their values in the sweep.")
    recipes: list[PathOrHubName] | None = Field(None, min_length=1, description="Recipes: files, or kdcore:NAME.")
    overrides: dict[str, Any] = Field(default_factory=dict, description="Overrides of every recipe.")
    suite: PathOrHubName | None = Field(None, description="Evaluation suite for the students.")
    suite_overrides: dict[str, Any] = Field(default_factory=dict, description="Overrides of the suite.")
    compare: Comparing = Comparing()
    smoke: Small | None = None

    @property
    def override_axes(self) -> dict[str, list[str]]:
        """The axes for `make_sweep`, with values written as in overrides.

        Raises:
            InputError: an axis has no key, no values or duplicate values, or is one of `run.id`, `run.name` and
                `run.folder`.
        """
        found = {key: [_written(value) for value in values] for key, values in self.axes.items()}
        for key, values in found.items():
            _check_axis(key, values, f"axes.{key}")
        return found


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep.

    Attributes:
        recipe: file, or `kdcore:NAME`.
        overrides: strings of the form `key=value`.
        folder: the run folder.
    """

    recipe: str
    overrides: list[str]
    folder: Path


def read_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read the axes of `--sweep`, each given as `key=value,value` or as a file. Values are written as in overrides.

    Raises:
        InputError: an axis is malformed, empty or duplicated.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        found = _axis(text) if "=" in text else _file_axes(text)
        for key, values in found.items():
            if key in axes:
                raise InputError(f"duplicate axis `{key}`", where="--sweep")
            axes[key] = values
    return axes


def make_sweep(recipes: Sequence[str], overrides: Sequence[str], axes: dict[str, list[str]]) -> list[SweepCell]:
    """Return every combination of recipes and values, each with a separate run folder.

    Raises:
        InputError: a recipe or a value is invalid, or two runs would share a folder.
    """
    if not axes and len(recipes) == 1:
        return [SweepCell(recipes[0], list(overrides), load_recipe(recipes[0], overrides).run_folder)]
    stated = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == "run.id"]
    names = [load_recipe(recipe, overrides).settings.run.name for recipe in recipes]
    cells: dict[Path, SweepCell] = {}
    for recipe, name in zip(recipes, names, strict=True):
        # Runs of recipes with the same name would share a folder.
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
                    hint="set a different run.name in each recipe",
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
        what = "the axis has no key"
    elif key in ("run.id", "run.name", "run.folder"):
        what = f"`{key}` cannot be an axis, it is set by the sweep"
    elif not values:
        what = f"the axis `{key}` has no values"
    elif len(set(values)) != len(values):
        what = f"the axis `{key}` has duplicate values"
    else:
        return
    raise InputError(what, where=where, hint="write an axis such as --sweep seed=1,2,3")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _file_axes(text: str) -> dict[str, list[str]]:
    if not Path(text).is_file():
        hint = "write an axis such as --sweep seed=1,2,3, or pass a file with the key `axes`"
        raise InputError("neither an axis nor an existing file", where=f"--sweep {text}", hint=hint)
    return load_config(text, SweepFile).override_axes


def as_override(key: str, value: Any) -> str:
    """Return `key=value` in the form that commands and `load_recipe` accept.

    Args:
        key: dotted key.
        value: a string is used as written, so that `1` is read as a number; any other value must be expressible in
            JSON.
    """
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(key: str, keys: Sequence[str]) -> str:
    """Return the shortest suffix of a dotted key that is unique among the axes."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _folder_part(value: str) -> str:
    """Format a value as part of a folder name."""
    plain = value.strip("\"'")
    if _PLAIN.fullmatch(plain) and len(plain) <= _LONGEST:
        return plain
    words = re.sub(r"[^\w.+-]+", "_", plain).strip("_")[:_LONGEST]
    return f"{words}-{sha256(value.encode()).hexdigest()[:6]}"
