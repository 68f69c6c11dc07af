"""Format a recipe as YAML with the origin of every value as a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdcore.recipe.merging import KeyPath
from kdcore.recipe.yaml import Node, Origin, Plain, plain_scalar

_SIMPLE = re.compile(r"[A-Za-z_./~][\w./~@+-]*(:[\w./~@+-]+)*")


def annotated(root: Node, defaults: Mapping[str, Plain]) -> str:
    """Format a recipe with a comment after every value: file and line, the override, or `default`.

    Args:
        root: the values given in the recipe.
        defaults: the core's keys with their values; keys missing from the recipe are marked as defaults.
    """
    assert isinstance(root.value, dict)
    lines = list(_map(_with_defaults(root, defaults), ()))
    width = min(max((len(text) for text, _ in lines), default=0), 72)
    return "".join(f"{text:<{width}}  # {comment}\n" if comment else f"{text}\n" for text, comment in lines)


def flow_yaml(value: Plain) -> str:
    """Return a value as YAML on one line, such as `[jsonl, {name: wandb}]`.

    Null values of maps are left out.
    """
    return _flow(_unstated(value))


def _with_defaults(node: Node, defaults: Mapping[str, Plain]) -> dict[str, Node]:
    assert isinstance(node.value, dict)
    merged = dict(node.value)
    for key, value in defaults.items():
        if key not in merged:
            if value is not None:
                merged[key] = _unstated(value)
        elif isinstance(value, dict) and isinstance(merged[key].value, dict):
            merged[key] = Node(_with_defaults(merged[key], value), merged[key].origin)
    return merged


def _unstated(value: Plain) -> Node:
    if isinstance(value, dict):
        return Node({key: _unstated(inner) for key, inner in value.items() if inner is not None}, Origin())
    if isinstance(value, list):
        return Node([_unstated(inner) for inner in value], Origin())
    return Node(value, Origin())


def _map(items: Mapping[str, Node], place: KeyPath) -> Iterator[tuple[str, str]]:
    indent = "  " * len(place)
    for key, node in items.items():
        if isinstance(node.value, dict) and node.value:
            yield f"{indent}{_scalar(key)}:", ""
            yield from _map(node.value, (*place, key))
        elif isinstance(node.value, list) and any(isinstance(item.value, dict) for item in node.value):
            yield f"{indent}{_scalar(key)}:", ""
            for item in node.value:
                yield f"{indent}- {_flow(item)}", _comment(item.origin)
        else:
            yield f"{indent}{_scalar(key)}: {_flow(node)}", _comment(node.origin)


def _flow(node: Node) -> str:
    if isinstance(node.value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(value)}" for key, value in node.value.items()) + "}"
    if isinstance(node.value, list):
        return "[" + ", ".join(_flow(item) for item in node.value) + "]"
    return _scalar(node.value)


def _scalar(value: bool | int | float | str | None) -> str:
    if isinstance(value, str):
        plain = _SIMPLE.fullmatch(value) and plain_scalar(value) == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


def _comment(origin: Origin) -> str:
    if origin.file is None:
        return str(origin) if origin.override is not None else "default"
    near = origin.file.is_relative_to(Path.cwd())
    return str(Origin(origin.file.relative_to(Path.cwd()) if near else origin.file, origin.line))
