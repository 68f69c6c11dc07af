"""Run the Python files listed under `imports:` in a recipe, which register components."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

from kdcore.errors import KdcoreError, PluginError
from kdcore.registry import registering_from

_done: dict[str, int] = {}
_MARKS = ("checkpoints", "exports", "environment.json", "data.json", "metrics.jsonl", "train.log")


def is_of_a_run(recipe: Path) -> bool:
    """Return whether a recipe file is the copy that a run stored in its folder."""
    places = {recipe, recipe.resolve()}
    return any(
        place.name == "recipe.yaml" and any((place.parent / mark).exists() for mark in _MARKS) for place in places
    )


def run_import(file: str, *, where: str, key: str) -> None:
    """Run a file, but only once per process unless the file changes.

    Raises:
        PluginError: the file does not exist, or its code raises an error; the message contains the cause and the line.
    """
    path = Path(file)
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"the file {path} does not exist"
        raise PluginError(what, where=where, key=key, hint="`imports:` lists Python files that register components.")
    changed = path.stat().st_mtime_ns
    if _done.get(file) == changed:
        return
    # A unique and stable module name, so that losses defined in the file can be pickled.
    name = f"kdcore_import_{path.stem}_{hashlib.sha256(file.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file", where=where, key=key, hint="Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with registering_from(file):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"{path} failed: {_cause(error, file)}", where=where, key=key) from error
    _done[file] = changed


def _cause(error: BaseException, file: str) -> str:
    """Format the error with the line of the file that caused it."""
    text = str(error) if isinstance(error, KdcoreError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, SyntaxError):
        return text
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{text} (line {lines[-1]})" if lines else text
