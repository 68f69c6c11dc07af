"""Merge a recipe file with the recipes that it extends and with overrides.

Maps are merged; `null` removes a key; a map with a different `name` replaces the whole map, because its settings belong
to a different component; lists and all other values are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcore.errors import InputError, Problem, RecipeError, similar
from kdcore.recipe.paths import resolve_recipe
from kdcore.recipe.yaml import Node, Origin, as_json, describe, parse_value, read_yaml, yaml_files_near

KeyPath = tuple[str | int, ...]


class Merged:
    """A merged recipe: the tree of values, the keys whose `null` removed nothing, and all files that were read."""

    def __init__(self, root: Node, pointless: dict[KeyPath, Origin], files: Sequence[Path] = ()) -> None:
        self.root = root
        self.pointless = pointless
        self.files = files


def load_merged(source: Path | Mapping[str, Any], overrides: Sequence[str], default_names: Mapping[str, str]) -> Merged:
    """Read a file and its base recipes, and apply overrides.

    Args:
        source: the YAML file; or its content, with paths relative to the working directory.
        overrides: strings of the form `a.b.c=value`.
        default_names: default `name` of a section, by dotted key.

    Raises:
        RecipeError: a file cannot be read, `extends` is invalid or circular, or an override is malformed.
    """
    merger = _Merger(default_names)
    root = merger.file(source, ()) if isinstance(source, Path) else merger.given(source)
    if overrides:
        root = merger.merge(root, merger.overlay(overrides), ())
    if merger.problems:
        raise RecipeError(merger.problems)
    return Merged(root, merger.pointless, merger.files)


class _Merger:
    def __init__(self, default_names: Mapping[str, str]) -> None:
        self.default_names = default_names
        self.problems: list[Problem] = []
        self.pointless: dict[KeyPath, Origin] = {}
        self.files: list[Path] = []

    def file(self, file: Path, stack: tuple[Path, ...]) -> Node:
        if file.resolve() in stack:
            circle = [*stack[stack.index(file.resolve()) :], file]
            raise RecipeError(f"`extends` is circular: {' -> '.join(str(one) for one in circle)}", where=str(file))
        self.files.append(file)
        return self.extended(read_yaml(file), file.parent, (*stack, file.resolve()))

    def given(self, content: Mapping[str, Any]) -> Node:
        return self.extended(parse_value(as_json(content), Origin()), Path.cwd(), ())

    def extended(self, own: Node, folder: Path, stack: tuple[Path, ...]) -> Node:
        """Merge a recipe with its base recipes, whose paths are relative to `folder`."""
        assert isinstance(own.value, dict)
        extends = own.value.pop("extends", None)
        merged = Node({}, own.origin)
        for base in self.bases(extends):
            assert isinstance(base.value, str)
            try:
                path = resolve_recipe(base.value, folder)
                if not path.is_file():
                    raise RecipeError(f"the file {path} does not exist", hint=yaml_files_near(path))
            except InputError as error:
                self.problems += [
                    Problem(one.what, str(base.origin), "extends", one.allowed, one.hint) for one in error.problems
                ]
            else:
                merged = self.merge(merged, self.file(path, stack), ())
        return self.merge(merged, own, ())

    def bases(self, extends: Node | None) -> list[Node]:
        if extends is None or extends.value is None:
            return []
        found = extends.value if isinstance(extends.value, list) else [extends]
        for base in found:
            if not isinstance(base.value, str):
                what = f"expected the path of a recipe, found {describe(base.plain())}"
                self.problems.append(Problem(what, str(base.origin), "extends"))
        return [base for base in found if isinstance(base.value, str)]

    def merge(self, base: Node, over: Node, place: KeyPath) -> Node:
        """Merge `over` into a copy of `base`."""
        if isinstance(base.value, list) and self.is_indices(over):
            return self.merge_items(base, over, place)
        if not isinstance(over.value, dict):
            return over
        if not isinstance(base.value, dict) or self.changes_name(base.value, over.value, place):
            base = Node({}, over.origin)
        assert isinstance(base.value, dict)
        merged = dict(base.value)
        for key, value in over.value.items():
            if value.value is None:
                self.remove(merged, key, value.origin, (*place, key))
            else:
                merged[key] = self.merge(merged.get(key, Node({}, value.origin)), value, (*place, key))
        # An override of a key does not change the origin of the section that contains it.
        return Node(merged, base.origin if over.origin.override is not None else over.origin)

    def remove(self, merged: dict[str, Node], key: str, origin: Origin, place: KeyPath) -> None:
        if key in merged:
            del merged[key]
        elif origin.override is None:
            self.pointless[place] = origin
        else:
            dotted = ".".join(str(part) for part in place)
            hint = similar(key, merged)
            self.problems.append(Problem("the key to remove does not exist", str(origin), dotted, list(merged), hint))

    def changes_name(self, base: dict[str, Node], over: dict[str, Node], place: KeyPath) -> bool:
        if place in ((), ("run",)) or "name" not in over:  # the name of a run is not the name of a component
            return False
        old = base["name"].value if "name" in base else self.default_name(place)
        new = over["name"].value
        if new is None and "name" not in base:  # there is nothing to remove, which `remove` reports
            return False
        if isinstance(old, str) and isinstance(new, str):
            # `name` and `package:name` are the same component.
            return old != new and new.rpartition(":")[2] != old and old.rpartition(":")[2] != new
        return old is not None and old != new

    def default_name(self, place: KeyPath) -> str | None:
        if len(place) == 2 and place[0] == "losses":
            return str(place[1])
        if len(place) == 2 and place[0] == "teachers":
            return self.default_names.get("teachers")
        return self.default_names.get(".".join(str(part) for part in place))

    def is_indices(self, over: Node) -> bool:
        stated = over.origin.override is not None and isinstance(over.value, dict) and over.value
        return bool(stated) and all(key.isdigit() for key in over.value)  # type: ignore[union-attr]

    def merge_items(self, base: Node, over: Node, place: KeyPath) -> Node:
        assert isinstance(base.value, list)
        assert isinstance(over.value, dict)
        items = list(base.value)
        for key, value in over.value.items():
            if int(key) < len(items):
                items[int(key)] = self.merge(items[int(key)], value, (*place, int(key)))
            else:
                dotted = ".".join(str(part) for part in (*place, key))
                count = f"{len(items)} item{'' if len(items) == 1 else 's'}"
                what = f"index out of range: the list has {count}, counted from 0"
                self.problems.append(Problem(what, str(value.origin), dotted))
        return Node(items, base.origin)

    def overlay(self, overrides: Sequence[str]) -> Node:
        """Merge all overrides into one tree, so that their order does not matter."""
        root = Node({}, Origin())
        for override in overrides:
            origin = Origin(override=override)
            key, equals, text = override.partition("=")
            parts = key.strip().split(".")
            if not equals or not all(parts) or any(part.strip() != part for part in parts):
                hint = "Write an override as key=value, such as training.batch_size=64."
                self.problems.append(Problem("this is not a valid override", str(origin), hint=hint))
            elif not text.strip():
                hint = f"Use `{key}=null` to remove the key or `{key}=''` for an empty text."
                self.problems.append(Problem("the value is missing", str(origin), hint=hint))
            elif parts[0] == "extends":
                hint = "Write a recipe that extends several recipes."
                self.problems.append(Problem("`extends` cannot be overridden", str(origin), hint=hint))
            else:
                try:
                    value = parse_value(text, origin)
                except InputError as error:
                    self.problems += error.problems
                    continue
                for part in reversed(parts):
                    value = Node({part: value}, origin)
                root = _united(root, value)
        return Node(root.value, Origin(override=" ".join(overrides)))


def _united(first: Node | None, second: Node) -> Node:
    """Merge two overrides. Maps are merged, and the second override replaces all other values; null is kept."""
    if first is None or not isinstance(first.value, dict) or not isinstance(second.value, dict):
        return second
    merged = {key: _united(first.value.get(key), value) for key, value in second.value.items()}
    return Node({**first.value, **merged}, second.origin)
