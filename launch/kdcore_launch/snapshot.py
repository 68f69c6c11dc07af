"""Copy the code and recipe at submission, so that a job uses them unchanged even if it starts later or is restarted."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from kdcore import InputError, atomic_directory, load_preparation, load_recipe

_GROUP = "kdcore."
_RECIPE = "recipe.yaml"
_IMPORTS = "imports"
_DATA = "data.yaml"


def copy_code(folder: Path) -> None:
    """Copy kdcore and all installed packages with components for it into a folder for PYTHONPATH.

    The metadata for component discovery is copied as well. Dependencies such as torch are not copied.

    Raises:
        InputError: a package cannot be copied.
    """
    with atomic_directory(folder, replace=True) as staging:
        for distribution, modules in _distributions():
            for module in modules:
                _copy_module(module, staging)
            info = staging / f"{distribution.name.replace('-', '_')}-{distribution.version}.dist-info"
            info.mkdir()
            for name in ("METADATA", "entry_points.txt"):
                text = distribution.read_text(name)
                if text is not None:
                    (info / name).write_text(text, encoding="utf-8")


def copy_recipe(recipe: str, overrides: Sequence[str], folder: Path, *, allow_imports: bool | None = None) -> Path:
    """Merge a recipe with its base recipes and overrides, write it to one file, and copy the Python files it imports.

    Raises:
        InputError: the recipe or one of its components is invalid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    given = load_recipe(recipe, overrides, allow_imports=allow_imports)
    for index, file in enumerate(given.allowed_imports):
        copy = folder / _IMPORTS / str(index) / Path(file).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise InputError(f"the file cannot be copied: {error.strerror}", where=file, key="imports") from error
        copies.append(str(copy))
    imports = [f"imports={json.dumps(copies)}"] if given.settings.imports else []
    text = load_recipe(recipe, [*overrides, *imports]).resolved_yaml()
    (folder / _RECIPE).write_text(text, encoding="utf-8")
    return folder / _RECIPE


def copy_data_recipe(recipe: str, overrides: Sequence[str], folder: Path) -> Path:
    """Merge a data recipe with its base recipes and overrides, and write it to one file.

    Raises:
        InputError: the data recipe or one of its corpora is invalid, or the package that reads it is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resolved = load_preparation(recipe, overrides).config.model_dump(mode="json", exclude_unset=True)
    (folder / _DATA).write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")  # JSON is valid YAML
    return folder / _DATA


def _distributions() -> Iterator[tuple[metadata.Distribution, list[str]]]:
    """Yield kdcore and every package that has components for it, each once, with the names of its modules."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        points = [point for point in distribution.entry_points if point.group.startswith(_GROUP)]
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if points and name not in {"", *seen}:
            seen.add(name)
            yield distribution, sorted({point.value.partition(":")[0].partition(".")[0] for point in points})


def _copy_module(name: str, folder: Path) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return  # broken, or a namespace package without code; kdcore reports an error if it is used
    try:
        if spec.submodule_search_locations:
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(next(iter(spec.submodule_search_locations)), folder / name, ignore=ignored)
        else:
            shutil.copyfile(spec.origin, folder / Path(spec.origin).name)
    except (OSError, shutil.Error) as error:
        hint = "`snapshot: false` in the profile runs the code as it is when the job starts"
        raise InputError(f"the package cannot be copied: {error}", where=spec.origin, hint=hint) from error
