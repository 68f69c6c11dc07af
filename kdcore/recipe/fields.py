"""Walks a pydantic model's annotations beside the data: which models, paths and components stand at a place."""

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
    """One of the types that a value may have (a union has several), with the markers of its `Annotated`."""

    type: Any
    markers: tuple[Any, ...] = ()

    @property
    def model(self) -> type[BaseModel] | None:
        """The model that a map here has to fit, if it is one."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, BaseModel) else None

    @property
    def path(self) -> RecipePath | None:
        """The path marker, if a string here is a path."""
        return next((marker for marker in self.markers if isinstance(marker, RecipePath)), None)

    @property
    def component(self) -> ComponentSection | None:
        """The section marker, if a map here names a component."""
        return next((marker for marker in self.markers if isinstance(marker, ComponentSection)), None)


def options(annotation: Any, markers: tuple[Any, ...] = ()) -> Iterator[Option]:
    """All types that an annotation allows, unions and aliases taken apart."""
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


def inside(places: Iterable[Option], part: str | int) -> list[Option]:
    """The types that the value at a key or an index may have, given those of the map or list around it."""
    found: list[Option] = []
    for place in places:
        arguments = [argument for argument in get_args(place.type) if argument is not Ellipsis]
        origin = get_origin(place.type)
        if place.model is not None:
            field = field_of(place.model, part)
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


def literals(places: Iterable[Option]) -> set[Any]:
    """The constants among the types."""
    return {value for place in places if get_origin(place.type) is Literal for value in get_args(place.type)}


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that a recipe may use for a model's fields."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def field_of(model: type[BaseModel], key: str | int) -> FieldInfo | None:
    """The field behind a recipe's key."""
    return keys_of(model).get(key) if isinstance(key, str) else None


def at(model: type[BaseModel], place: Iterable[str | int]) -> list[Option]:
    """The types that the value at a place inside a model may have."""
    found = [Option(model)]
    for part in place:
        found = inside(found, part)
    return found


def key_table(
    model: type[BaseModel], prefix: str = "", without: Collection[str] = ()
) -> list[tuple[str, str, str, str]]:
    """Key, type, default and description of every key of a config, those of nested models below theirs."""
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


def type_name(annotation: Any, markers: tuple[Any, ...] = ()) -> str:
    """A type in the words of a recipe."""
    names = []
    for option in options(annotation, markers):
        origin, arguments = get_origin(option.type), get_args(option.type)
        if origin is Literal:
            names += [str(value) for value in arguments]
        elif option.component is not None:
            names.append(f"{ALL[option.component.group].kind} (a map with its `name`)")
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
