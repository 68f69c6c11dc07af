"""Find the nested models, paths and components at a key path of a pydantic model."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdcore.recipe.schema import ComponentSection, RecipePath
from kdcore.registry import ALL


@dataclass(frozen=True)
class Option:
    """One possible type of a value (a union has several), with its `Annotated` markers."""

    type: Any
    markers: tuple[Any, ...] = ()

    @property
    def model(self) -> type[BaseModel] | None:
        """Return the pydantic model of a map, or None if the type is not a model."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, BaseModel) else None

    @property
    def path(self) -> RecipePath | None:
        """Return the path marker, or None if a string of this type is not a path."""
        return next((marker for marker in self.markers if isinstance(marker, RecipePath)), None)

    @property
    def component(self) -> ComponentSection | None:
        """Return the section marker, or None if a map of this type is not a component's section."""
        return next((marker for marker in self.markers if isinstance(marker, ComponentSection)), None)


def options(annotation: Any, markers: tuple[Any, ...] = ()) -> Iterator[Option]:
    """Yield all types that an annotation allows, with unions and aliases expanded."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        yield from options(inner, (*markers, *more))
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from options(inner, markers)
    elif hasattr(annotation, "__value__"):  # `type X = ...` and typing_extensions.TypeAliasType
        yield from options(annotation.__value__, markers)
    else:
        yield Option(annotation, markers)


def inside(containers: Iterable[Option], part: str | int) -> list[Option]:
    """Return the possible types of the value at a key or index, given the types of the map or list that contains it."""
    found: list[Option] = []
    for container in containers:
        arguments = [argument for argument in get_args(container.type) if argument is not Ellipsis]
        origin = get_origin(container.type)
        if container.model is not None:
            field = field_of(container.model, part)
            if field is not None:
                found += options(field.annotation, tuple(field.metadata))
        elif not isinstance(origin, type) or not arguments:
            continue
        elif issubclass(origin, Mapping):
            found += options(arguments[-1])
        elif issubclass(origin, tuple) and isinstance(part, int):
            found += options(arguments[min(part, len(arguments) - 1)])
        elif issubclass(origin, Iterable):
            found += options(arguments[0])
    return found


def literals(candidates: Iterable[Option]) -> set[Any]:
    """Return the values of the `Literal` types among the candidates."""
    return {value for option in candidates if get_origin(option.type) is Literal for value in get_args(option.type)}


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields by their keys in a recipe."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def field_of(model: type[BaseModel], key: str | int) -> FieldInfo | None:
    """Return the field of a recipe's key, or None."""
    return keys_of(model).get(key) if isinstance(key, str) else None


def at(model: type[BaseModel], key_path: Iterable[str | int]) -> list[Option]:
    """Return the possible types of the value at a key path inside a model."""
    found = [Option(model)]
    for part in key_path:
        found = inside(found, part)
    return found


def key_table(
    model: type[BaseModel], prefix: str = "", without: Collection[str] = ()
) -> list[tuple[str, str, str, str]]:
    """Return the name, type, default and description of every key of a config, including nested models."""
    rows = []
    for key, field in keys_of(model).items():
        if key in without:
            continue
        default = "required" if field.is_required() else _default(field)
        rows.append(
            (f"{prefix}{key}", type_name(field.annotation, tuple(field.metadata)), default, field.description or "")
        )
        for option in options(field.annotation):
            if option.model is not None:
                rows += key_table(option.model, f"{prefix}{key}.")
    return rows


def without_paths(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the local paths from a config's plain data; names of hub models are kept.

    Files and folders are identified by name and content, not by their location.

    Args:
        model: the config's class.
        values: its keys and plain values.
    """
    kept: dict[str, Any] = _without_paths([Option(model)], dict(values))
    return kept


def _without_paths(places: list[Option], value: Any) -> Any:
    if isinstance(value, dict):
        items = [(key, inside(places, key), item) for key, item in value.items()]
        return {key: _without_paths(at, item) for key, at, item in items if not _is_path(at, item)}
    if isinstance(value, list):
        listed = [(inside(places, number), item) for number, item in enumerate(value)]
        return [_without_paths(at, item) for at, item in listed if not _is_path(at, item)]
    return value


def _is_path(places: list[Option], value: Any) -> bool:
    is_path = any(option.path is not None and not option.path.hub for option in places)
    return is_path and isinstance(value, str) and value not in literals(places)


def path_keys(model: type[BaseModel]) -> set[str]:
    """List the fields of a config that contain a local path."""
    found = {name: options(field.annotation, tuple(field.metadata)) for name, field in model.model_fields.items()}
    return {
        name for name, places in found.items() if any(place.path is not None and not place.path.hub for place in places)
    }


def type_name(annotation: Any, markers: tuple[Any, ...] = ()) -> str:
    """Format a type in the terms of a recipe."""
    names = []
    for option in options(annotation, markers):
        origin, arguments = get_origin(option.type), get_args(option.type)
        if origin is Literal:
            names += [str(value) for value in arguments]
        elif option.component is not None:
            kind = ALL[option.component.group].kind
            names.append(f"{kind} (a map with its `name`)" if option.component.default is None else "map")
        elif option.model is not None:
            names.append("map")
        elif isinstance(origin, type) and arguments:
            inner = [type_name(argument) for argument in arguments if argument is not Ellipsis]
            fixed = issubclass(origin, tuple) and Ellipsis not in arguments
            many = "map" if issubclass(origin, Mapping) else "list"
            names.append(f"[{', '.join(inner)}]" if fixed else f"{many} of {inner[-1]}")
        else:
            plain = getattr(option.type, "__name__", str(option.type))
            path = option.path and ("path or hub name" if option.path.hub else "path")
            names.append(path or _WORDS.get(plain, plain))
    return " | ".join(dict.fromkeys(names))


_WORDS = {"str": "text", "int": "integer", "float": "number", "bool": "true | false", "NoneType": "null", "Any": "any"}


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    value = list(value) if isinstance(value, tuple) else value
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
