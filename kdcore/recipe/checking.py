"""Check plain data against a pydantic model and report problems with their location in kdcore's error format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdcore.errors import InputError, Problem, RecipeError, similar
from kdcore.recipe.fields import Option, at, field_of, inside, keys_of, literals
from kdcore.recipe.merging import KeyPath, load_merged
from kdcore.recipe.paths import resolve_path
from kdcore.recipe.schema import ComponentSection
from kdcore.recipe.yaml import Origin, Plain, describe
from kdcore.registry import ALL, Registry
from kdcore.utils.stored import EXPECTED

SettingsT = TypeVar("SettingsT", bound=BaseModel)
Locate = Callable[[KeyPath], Origin]


def dotted(place: KeyPath) -> str:
    """Format a key path as in messages and overrides: `losses.hidden_mse.layers.0`."""
    return ".".join(str(part) for part in place)


def check(model: type[SettingsT], data: dict[str, Plain], prefix: KeyPath, locate: Locate) -> SettingsT | list[Problem]:
    """Build a model from data, or return all problems.

    Types are strict: the text "64" is not accepted as a number. Lists are accepted for tuples, and integers for floats.

    Args:
        model: the pydantic model.
        data: its keys and values.
        prefix: key path of the data in the recipe.
        locate: function that returns the origin of a key path, or of its nearest ancestor if the key is not given.
    """
    try:
        # Validated as JSON, because strict validation of Python objects rejects the list [1, 2] as a tuple.
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        faults = [_fault(model, data, dict(details)) for details in error.errors(include_url=False)]
        return [_problem(model, data, fault, prefix, locate) for fault in _choose_branches(faults)]


@dataclass(frozen=True)
class _Fault:
    """One of pydantic's errors.

    `steps` contains keys, indices and, as one-element tuples, the tags of a union's branches.
    """

    steps: tuple[str | int | tuple[str], ...]
    type: str
    message: str
    context: dict[str, Any]
    found: Any

    @property
    def place(self) -> KeyPath:
        return tuple(step for step in self.steps if not isinstance(step, tuple))

    @property
    def expected(self) -> str | None:
        """Return the expected type, or None if the fault is not a type error."""
        if self.type in ("literal_error", "enum"):
            return str(self.context["expected"])
        return EXPECTED.get(self.type) or self.context.get("wanted")


def _fault(model: type[BaseModel], data: Plain, details: dict[str, Any]) -> _Fault:
    steps: list[str | int | tuple[str]] = []
    value = data
    location = details["loc"]
    for position, part in enumerate(location):
        within = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        last = position == len(location) - 1
        if within:
            value = value[part]
            steps.append(part)
        elif last and (details["type"] == "missing" or isinstance(part, int)):
            steps.append(part)
        else:
            steps.append((str(part),))
    found = data if details["type"] == "missing" else details["input"]
    return _Fault(tuple(steps), details["type"], details["msg"], details.get("ctx", {}), found)


def _choose_branches(faults: Sequence[_Fault]) -> list[_Fault]:
    """Reduce pydantic's errors for all branches of a union to the most likely branch, or merge them into one fault."""
    chosen: list[_Fault] = []
    unions: dict[tuple[Any, ...], list[_Fault]] = {}
    for fault in faults:
        position = next((index for index, step in enumerate(fault.steps) if isinstance(step, tuple)), None)
        if position is None:
            chosen.append(fault)
        else:
            unions.setdefault(fault.steps[:position], []).append(fault)
    for union, inside_union in unions.items():
        branches: dict[Any, list[_Fault]] = {}
        for fault in inside_union:
            rest = replace(fault, steps=(*union, *fault.steps[len(union) + 1 :]))
            branches.setdefault(fault.steps[len(union)], []).append(rest)
        reduced = [_choose_branches(branch) for branch in branches.values()]
        meant = [one for one in reduced if not any(fault.steps == union and fault.expected for fault in one)]
        if meant:
            chosen += sorted(meant, key=len)[0]
        elif len(reduced) == 1:
            chosen += reduced[0]
        else:
            at_union = [fault for one in reduced for fault in one if fault.steps == union and fault.expected]
            wanted = " or ".join(dict.fromkeys(str(fault.expected) for fault in at_union))
            chosen.append(replace(at_union[0], type="union", context={"wanted": wanted}))
    return chosen


def _problem(model: type[BaseModel], data: Plain, fault: _Fault, prefix: KeyPath, locate: Locate) -> Problem:
    place = (*prefix, *fault.place)
    where, key = str(locate(place)), dotted(place) or None
    around = at(model, fault.place[:-1])
    if fault.type == "extra_forbidden":
        allowed = sorted({name for option in around if option.model for name in keys_of(option.model)})
        hint = similar(str(fault.place[-1]), allowed)
        return Problem(f"unknown key `{fault.place[-1]}`", where, key, allowed or "no keys", hint)
    if fault.type == "missing":
        name = str(fault.place[-1])
        fields = [field_of(option.model, name) for option in around if option.model]
        about = next((field.description for field in fields if field is not None and field.description), None)
        section = dotted(place[:-1])
        hint = f"Add `{name}:` under `{section}:`" if section else f"Add `{name}:` to the file"
        return Problem(f"`{name}` is missing", where, key, hint=f"{hint}: {about}" if about else f"{hint}.")
    if fault.expected is not None:
        return _wrong_type(fault, where, key)
    if fault.type == "value_error":
        return Problem(str(fault.context.get("error", fault.message)), where, key)
    if fault.type == "string_pattern_mismatch":
        return Problem(f"{describe(fault.found)} does not match the pattern {fault.context['pattern']}", where, key)
    if fault.type in ("too_short", "string_too_short"):
        return Problem(f"must have at least {_count(fault.context['min_length'], fault)}", where, key)
    if fault.type in ("too_long", "string_too_long"):
        return Problem(f"must have at most {_count(fault.context['max_length'], fault)}", where, key)
    message = fault.message.removeprefix("Input should be ").removeprefix("Value error, ")
    if message != fault.message and not fault.message.startswith("Value error"):
        return Problem(f"must be {message}, found {describe(fault.found)}", where, key)
    return Problem(f"{message[:1].lower()}{message[1:]}", where, key)


def _wrong_type(fault: _Fault, where: str, key: str | None) -> Problem:
    hint = None
    text = fault.found if isinstance(fault.found, str) else None
    if fault.type in ("literal_error", "enum"):
        allowed = str(fault.context["expected"]).replace(" or ", ", ").replace("'", "")
        hint = similar(str(fault.found), allowed.split(", "))
        return Problem(f"{describe(fault.found)} is not one of the allowed values", where, key, allowed, hint)
    if "number" in str(fault.expected) or "integer" in str(fault.expected):
        hint = "Write it without quotes." if text is not None and text.replace(".", "", 1).isdigit() else None
    elif "text" in str(fault.expected) and isinstance(fault.found, int | float):
        hint = "Write it in quotes."
    return Problem(f"expected {fault.expected}, found {describe(fault.found)}", where, key, hint=hint)


def _count(number: int, fault: _Fault) -> str:
    unit = "character" if fault.type.startswith("string") else "key" if isinstance(fault.found, dict) else "item"
    return f"{number} {unit}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Checked:
    """A component whose section was checked.

    Attributes:
        cls: the class.
        config: the checked instance of its nested `Config`.
        section: the keys and values given in the recipe, with absolute paths. The name of a default component is left
            out.
    """

    cls: type[Any]
    config: Any
    section: dict[str, Plain]


class SectionWalker:
    """Make the paths in a section absolute and check its nested components.

    Attributes:
        problems: the problems found so far.
        pinned: map from key path to `package:name`, for the components found so far whose name another package could
            shadow.
    """

    def __init__(self, locate: Locate, sources: Sequence[str] | None = None) -> None:
        self.locate = locate
        self.sources = sources
        self.problems: list[Problem] = []
        self.pinned: dict[KeyPath, str] = {}

    def walk(self, candidates: Iterable[Option], value: Plain, place: KeyPath) -> Plain:
        """Return the value at `place` with absolute paths; `candidates` are its possible types."""
        candidates = list(candidates)
        if isinstance(value, str):
            markers = [option.path for option in candidates if option.path is not None]
            if markers and value not in literals(candidates):
                path = self._path(value, any(marker.hub for marker in markers), place)
                for option in candidates:
                    if option.component is not None and option.component.file and os.path.isfile(path):
                        self._component_file(option.component, Path(path), place)
                return path
        elif isinstance(value, list):
            return [self.walk(inside(candidates, index), item, (*place, index)) for index, item in enumerate(value)]
        elif isinstance(value, dict):
            for option in candidates:
                if option.component is not None:
                    return self._component(option.component, value, place)
            return {key: self.walk(inside(candidates, key), item, (*place, key)) for key, item in value.items()}
        return value

    def _path(self, text: str, hub: bool, place: KeyPath) -> str:
        origin = self.locate(place)
        try:
            return resolve_path(text, origin.folder, hub=hub)
        except InputError as error:
            self.problems += [replace(problem, where=str(origin), key=dotted(place)) for problem in error.problems]
            return text

    def component(self, marker: ComponentSection, section: dict[str, Plain], place: KeyPath) -> Checked | None:
        """Check a section that names a component of a registry, such as a corpus of a data recipe.

        Returns:
            The component, or None if it has problems, which are added to `problems`.
        """
        registry = ALL[marker.group]
        name = section.get("name", marker.default)
        where, key = str(self.locate(place)), dotted(place) or None
        if not isinstance(name, str):
            what = "`name` is missing" if name is None else f"expected text as `name`, found {describe(name)}"
            hint = f"Write a map whose `name` is the name of a {registry.kind}."
            self.problems.append(Problem(what, where, key, registry.names(), hint))
            return None
        try:
            cls = registry.get(name, where=where, key=key, sources=self.sources)
        except InputError as error:
            if "name" not in section and name not in registry.names():
                what = f"this section is read by the {registry.kind} `{name}`, which is not installed"
                self.problems += [replace(problem, what=what, allowed=None) for problem in error.problems]
            else:
                self.problems += error.problems
            return None
        options = [Option(cls.Config)]
        own = {key: value for key, value in section.items() if key != "name"}
        before = len(self.problems)
        walked = {key: self.walk(inside(options, key), item, (*place, key)) for key, item in own.items()}
        config = check(cls.Config, walked, place, self.locate)
        if isinstance(config, list):
            self.problems += config
            return None
        stated = walked if name == marker.default else {"name": name, **walked}
        if name != marker.default:
            self.pin(registry, name, place)
        return Checked(cls, config, stated) if len(self.problems) == before else None

    def pin(self, registry: Registry, name: str, place: KeyPath) -> None:
        """Record the pinned name of the component at `place`, unless the section already uses that name."""
        pinned = registry.pinned(name, sources=self.sources)
        if pinned != name:
            self.pinned[place] = pinned

    def _component(self, marker: ComponentSection, section: dict[str, Plain], place: KeyPath) -> dict[str, Plain]:
        """Return the section with absolute paths; unchanged if it is invalid."""
        checked = self.component(marker, section, place)
        return section if checked is None else checked.section

    def _component_file(self, marker: ComponentSection, file: Path, place: KeyPath) -> None:
        """Check a section in a separate file; problems refer to lines of that file and to the key in the recipe."""
        try:
            root = load_merged(file, (), {}).root
        except InputError as error:
            keys = [dotted((*place, *filter(None, [problem.key]))) for problem in error.problems]
            self.problems += [replace(problem, key=key) for problem, key in zip(error.problems, keys, strict=True)]
            return
        walker = SectionWalker(lambda inner: root.origin_at(inner[len(place) :]), self.sources)
        section = root.plain()
        assert isinstance(section, dict)
        walker.component(marker, section, place)
        self.problems += walker.problems


def build_component(group: str, section: Mapping[str, Any], *, where: str | Path, key: str = "") -> Any:
    """Construct the component named by a section with absolute paths, and check its keys with its `Config`.

    Args:
        group: the registry's entry point group, such as `kdcore.corpora`.
        section: the component's `name` and its own keys.
        where: file that contains the section, for messages.
        key: dotted key path of the section in that file, for messages.

    Raises:
        PluginError: `name` is missing, or the component does not exist.
        RecipeError: keys are wrong; all problems are listed.
    """
    place = tuple(key.split(".")) if key else ()
    cls = ALL[group].get(str(section.get("name")), where=str(where), key=key or None)
    own = {name: value for name, value in section.items() if name != "name"}
    config = check(cls.Config, own, place, lambda _: Origin(Path(where)))
    if isinstance(config, list):
        raise RecipeError(config)
    return cls(config)


def checked_or_raise(model: type[SettingsT], data: dict[str, Plain], locate: Locate) -> SettingsT:
    """Build the model of a whole file, after making paths absolute and checking nested components and all keys.

    Raises:
        RecipeError: the file is invalid; the error lists all problems.
    """
    walker = SectionWalker(locate)
    walked = walker.walk([Option(model)], data, ())
    checked = check(model, walked, (), locate)
    problems = walker.problems + (checked if isinstance(checked, list) else [])
    if problems or isinstance(checked, list):
        raise RecipeError(problems)
    return checked
