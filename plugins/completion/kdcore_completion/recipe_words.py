"""Words for completion in recipes: keys, their values, and shipped recipes.

The words are read from the schema of `kdcore recipe schema`. Building the schema takes several seconds, because it
imports all components, so the words are cached in a file whose name depends on the installed versions.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import kdcore

_DEPTH = 5
"""Levels of keys that are completed; recipes with their components have at most four."""

Words = dict[str, list[str]]


def recipe_words() -> Words:
    """Return the values of each key by the key's dotted path, and shipped recipes under an empty key."""
    file = _folder() / f"completion-{_installed()}.json"
    with contextlib.suppress(OSError, ValueError):
        stored: Words = json.loads(file.read_text(encoding="utf-8"))
        return stored
    words = {"": _shipped_recipes(), **dict(_words(_schema()))}
    with contextlib.suppress(OSError):  # a disk that is full or read-only makes completion slow, not wrong
        file.parent.mkdir(parents=True, exist_ok=True)
        kdcore.write_json(file, words)
    return words


def _folder() -> Path:
    return Path(os.environ.get("KDCORE_CACHE") or Path.home() / ".cache" / "kdcore")


def _installed() -> str:
    packages = {(one.name, one.version) for one in metadata.distributions() if "kdcore" in (one.name or "").lower()}
    names = {group: kdcore.component_names(f"kdcore.{group}") for group in ("losses", "models", "tasks", "optimizers")}
    return hashlib.sha256(json.dumps([sorted(packages), names]).encode()).hexdigest()[:16]


def _schema() -> dict[str, Any]:
    command = kdcore.get_command("recipe")()
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        command.run(parser.parse_args(["schema"]))
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def _shipped_recipes() -> list[str]:
    folder = kdcore.shipped_recipes()
    return sorted(f"kdcore:{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.yaml"))


def _words(schema: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    found: dict[str, set[str]] = {}
    _collect(schema, schema, "", found, 0)
    for key, values in sorted(found.items()):
        if not any(other.startswith(f"{key}.") for other in found) or values:
            yield key, sorted(values)


def _collect(schema: dict[str, Any], node: Any, key: str, found: dict[str, set[str]], depth: int) -> None:
    for option in _options(schema, node):
        if key:
            values = found.setdefault(key, set())
            values |= {json.dumps(one).strip('"') for one in [*option.get("enum", []), *_constant(option)]}
            if option.get("type") == "boolean":
                values |= {"true", "false"}
        if depth < _DEPTH:
            for name, inner in option.get("properties", {}).items():
                _collect(schema, inner, f"{key}.{name}".lstrip("."), found, depth + 1)


def _constant(option: dict[str, Any]) -> list[Any]:
    return [option["const"]] if "const" in option else []


def _options(schema: dict[str, Any], node: Any) -> Iterator[dict[str, Any]]:
    """Yield the alternatives of a schema, with references followed."""
    if not isinstance(node, dict):
        return
    if "$ref" in node:
        yield from _options(schema, schema["$defs"][node["$ref"].rpartition("/")[2].replace("~1", "/")])
    for word in ("anyOf", "oneOf", "allOf"):
        for inner in node.get(word, []):
            yield from _options(schema, inner)
    yield node
