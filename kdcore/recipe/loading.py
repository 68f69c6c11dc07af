"""Load a recipe file into checked settings and component classes.

`load_recipe` checks everything that does not need a component: YAML, `extends`, overrides, the core's keys and all
component names. `Recipe.components` imports the components and checks their sections.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcore.errors import InputError, Problem, RecipeError, similar
from kdcore.recipe.checking import SectionWalker, SettingsT, check, checked_or_raise, dotted
from kdcore.recipe.fields import Option, at, inside, keys_of
from kdcore.recipe.imports import is_of_a_run, run_import
from kdcore.recipe.merging import KeyPath, load_merged
from kdcore.recipe.paths import refuse_impossible, resolve_recipe
from kdcore.recipe.schema import (
    MERGE_DEFAULTS,
    SECTION_DEFAULTS,
    TEACHER,
    ComponentSection,
    CompositeSettings,
    RecipeSettings,
    TeacherKeys,
    is_composite,
)
from kdcore.recipe.showing import annotated
from kdcore.recipe.yaml import Node, Origin, Plain, as_json, describe, dump_yaml
from kdcore.registry import Registry, callbacks, losses, models, optimizers, schedulers, tasks, trackers, transforms

__all__ = ["Component", "Components", "Origin", "Recipe", "load_config", "load_recipe"]

logger = logging.getLogger("kdcore")

REGISTRIES: dict[str, Registry] = {
    "teacher": models,
    "teachers": models,
    "student": models,
    "task": tasks,
    "losses": losses,
    "optimizer": optimizers,
    "scheduler": schedulers,
    "tracking": trackers,
    "callbacks": callbacks,
    "stages": transforms,
}


_TRUST = "trust_remote_code"
_NAME_TOO_LONG = re.compile(r"[\w.~:@+-]{256}")


@dataclass(frozen=True)
class Component:
    """A component of a recipe.

    Attributes:
        name: name of the component in the recipe.
        cls: the class.
        config: the checked instance of its nested `Config`.
        key: its key path in the recipe, such as `losses.hidden_mse`.
        cache: folder of a teacher's stored signals, or `auto`; None if its signals are not stored.
        section: the keys and values given in the recipe, with absolute paths.
    """

    name: str
    cls: type[Any]
    config: BaseModel
    key: str
    cache: str | None = None
    section: Mapping[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True)
class Components:
    """All components of a recipe.

    Attributes:
        teachers: models by label; the model under `teacher:` has the label `teacher`.
        composites: teachers that combine others, by label.
    """

    teachers: dict[str, Component]
    composites: dict[str, CompositeSettings]
    student: Component
    task: Component
    losses: dict[str, Component]
    optimizer: Component
    scheduler: Component
    trackers: list[Component]
    callbacks: list[Component]
    transforms: list[Component]


@dataclass(frozen=True)
class _Section:
    """The section of one component in a recipe."""

    place: KeyPath
    name: str
    settings: dict[str, Plain]

    @property
    def registry(self) -> Registry:
        return REGISTRIES[str(self.place[0])]

    def core_keys(self, cls: type[Any]) -> type[TeacherKeys] | None:
        """Return the keys that the core adds to the component's keys; None if it adds none."""
        return TeacherKeys if self.place[0] in ("teacher", "teachers") and "cache" not in keys_of(cls.Config) else None


class Recipe:
    """A recipe after applying `extends` and overrides, with its core keys checked.

    Attributes:
        path: the file.
        data: all given keys and values. Paths of core keys are absolute; paths of components become absolute when
            `components` is called.
        settings: the checked core keys with their defaults.
        overrides: strings of the form `key=value`, as they were given.
        files: the recipe file and the files that it extends.
        allow_imports: see `load_recipe`.
        source: the file or map from which the recipe was read.
        loaded: monotonic time at which the recipe was read.
    """

    def __init__(
        self,
        path: Path,
        root: Node,
        data: dict[str, Plain],
        settings: RecipeSettings,
        overrides: Sequence[str],
        files: Sequence[Path] = (),
        allow_imports: bool | None = None,
        source: Path | Mapping[str, Any] | None = None,
    ) -> None:
        self.loaded = time.monotonic()
        self.source = path if source is None else source
        self.files = tuple(files)
        self.allow_imports = allow_imports
        self.path = path
        self.overrides = tuple(overrides)
        self.data = data
        self.settings = settings
        self._root = root
        self._components: Components | None = None
        self._component_at: dict[str, Component] = {}
        self._pinned: dict[KeyPath, str] = {}

    @property
    def run_folder(self) -> Path:
        """Return the run folder, which may not exist yet."""
        run = self.settings.run
        return Path(run.folder).absolute() / run.name / run.id

    def origin(self, key: str) -> Origin:
        """Return the origin of the value at a dotted key, or of its nearest ancestor if it is not given."""
        return self._root.origin_at(tuple(key.split(".")) if key else ())

    def components(self) -> Components:
        """Run the files under `imports:`, import all components of the recipe and check their sections.

        Files that `allow_imports` does not cover are skipped with a warning.

        Raises:
            PluginError: a file under `imports:` failed.
            RecipeError: components are invalid; the error lists all problems of all components.
        """
        if self._components is None:
            self._components = self._load_components()
        return self._components

    def component_class(self, key: str) -> type | None:
        """Return the class of the component at a dotted key, such as `losses.hidden_mse`; None if none is loaded."""
        component = self._component_at.get(key)
        return None if component is None else component.cls

    def resolved_yaml(self) -> str:
        """Format the recipe as one file without `extends`; loading it from any folder gives the same settings.

        Components of packages are named `package:name`, so that packages installed later cannot change which components
        are used.

        Raises:
            InputError: as in `components`, which determines which keys are paths.
        """
        return dump_yaml(self.pinned_data())

    def pinned_data(self) -> Plain:
        """Return the keys and values of `resolved_yaml`, which raises the same errors."""
        self.components()
        data: Plain = self.data
        for place, name in self._pinned.items():
            data = _with_name(data, place, name)
        return data

    def named_data(self) -> dict[str, Plain]:
        """Return the given keys and values, including component names that are implied by a label or default."""
        data = dict(self.data)
        for section in _sections(data):
            _put(data, section.place, {"name": section.name, **section.settings})
        return data

    def annotated_yaml(self) -> str:
        """Format the given values and the core's defaults as YAML, each with its origin as a comment."""
        return annotated(self._root, self.settings.model_dump(mode="json"))

    def _load_components(self) -> Components:
        allowed = self.allowed_imports
        for index, file in enumerate(self.settings.imports):
            place = ("imports", index)
            if file in allowed:
                run_import(file, where=str(self._root.origin_at(place)), key=dotted(place))
        skipped = [file for file in self.settings.imports if file not in allowed]
        if skipped:
            what = f"skipped {', '.join(skipped)}, because the recipe is that of a run folder"
            logger.warning(f"{self._root.origin_at(('imports',))}: imports: {what}; `--allow-imports` runs such files")
        walker = SectionWalker(lambda place: self._root.origin_at(place), self.settings.imports)
        found: dict[KeyPath, Component] = {}
        data = dict(self.data)
        for section in _sections(self.data, walker.problems, self._root):
            where, key = str(walker.locate(section.place)), dotted(section.place)
            try:
                cls = section.registry.get(section.name, where=where, key=key, sources=self.settings.imports)
            except InputError as error:
                walker.problems += error.problems
                continue
            core = section.core_keys(cls)
            options = [Option(model) for model in (cls.Config, core) if model is not None]
            settings = {
                key: walker.walk(inside(options, key), value, (*section.place, key))
                for key, value in section.settings.items()
            }
            trust = (*section.place, _TRUST)
            if settings.get(_TRUST) is True and not self._may_run(trust):
                del settings[_TRUST]
                what = "left out, because the recipe is that of a run folder; `--allow-imports` keeps it"
                logger.warning(f"{self._root.origin_at(trust)}: {dotted(trust)}: {what}")
            _put(data, section.place, settings)
            walker.pin(section.registry, section.name, section.place)
            own = settings if core is None else {key: one for key, one in settings.items() if key != "cache"}
            checked = self._check_section(section, cls, own)
            cached = None
            if core is not None and "cache" in settings:
                cached = check(core, {"cache": settings["cache"]}, section.place, self._root.origin_at)
            for result in (checked, cached):
                walker.problems += result if isinstance(result, list) else []
            if not isinstance(checked, list) and not isinstance(cached, list):
                stored = None if cached is None else cached.cache
                found[section.place] = Component(section.name, cls, checked, key, stored, own)
        if walker.problems and skipped:
            hint = "if a file under `imports:` registers it, run the command with `--allow-imports`"
            walker.problems = [replace(one, hint=f"{one.hint} {hint}" if one.hint else hint) for one in walker.problems]
        if walker.problems:
            raise RecipeError(walker.problems)
        self.data = data
        self.settings = RecipeSettings.model_validate(data)
        self._pinned = walker.pinned
        self._component_at = {component.key: component for component in found.values()}
        return Components(
            teachers={
                str(place[1]) if place[0] == "teachers" else TEACHER: one
                for place, one in found.items()
                if place[0] in ("teacher", "teachers")
            },
            composites={
                label: CompositeSettings.model_validate(section)
                for label, section in (self.settings.teachers or {}).items()
                if is_composite(section)
            },
            student=found[("student",)],
            task=found[("task",)],
            losses={str(place[1]): one for place, one in found.items() if place[0] == "losses"},
            optimizer=found[("optimizer",)],
            scheduler=found[("scheduler",)],
            trackers=_listed(found, "tracking"),
            callbacks=_listed(found, "callbacks"),
            transforms=_listed(found, "stages"),
        )

    @property
    def allowed_imports(self) -> list[str]:
        """Return the imported files that `components` runs."""
        return [file for index, file in enumerate(self.settings.imports) if self._may_run(("imports", index))]

    def _may_run(self, place: KeyPath) -> bool:
        """Return whether the listed file may run. By default, files listed in the recipe of a run folder may not."""
        origin = self._root.origin_at(place)
        if origin.override is not None or self.allow_imports:
            return True
        if self.allow_imports is not None or is_of_a_run(self.path):
            return False
        return origin.file == self.path or not any(is_of_a_run(file) for file in self.files)

    def _check_section(self, section: _Section, cls: type[Any], settings: dict[str, Plain]) -> Any:
        own = {key: value for key, value in settings.items() if key != "name"}
        if section.place[0] == "losses":
            if "label" in own:
                key = dotted((*section.place, "label"))
                what = "the label of a loss is its key under `losses`, `label` cannot be set"
                return [Problem(what, str(self.origin(key)), key)]
            own |= {"name": section.name.rpartition(":")[2], "label": str(section.place[1])}
        if section.place == ("student",) and self.settings.teachers and "from" not in keys_of(cls.Config):
            own.pop("from", None)  # the core's key
        return check(cls.Config, own, section.place, lambda place: self._root.origin_at(place))


def recipe_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Check the core's keys of a recipe that has not been saved to a file. Keys of components are not checked.

    Args:
        data: keys and values of the recipe.

    Returns:
        One problem for each mistake, with its dotted key but without a file; empty if there are none.
    """
    checked = check(RecipeSettings, dict(data), (), lambda place: Origin())
    return [replace(problem, where=None) for problem in checked] if isinstance(checked, list) else []


def load_recipe(
    path: str | Path | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    allow_imports: bool | None = None,
    check_names: bool = True,
) -> Recipe:
    """Read a recipe and check everything that does not need a component.

    Only YAML and package metadata are read.

    Args:
        path: a file, or `kdcore:quickstart.yaml` for a recipe shipped with kdcore; or the content of a recipe as a map,
            with paths relative to the working directory.
        overrides: strings of the form `key=value`, as on the command line; or values by dotted key, where maps are
            merged and None removes a key.
        allow_imports: whether `Recipe.components` runs the files under `imports:`. By default it does, unless they are
            listed in the recipe of a run folder; files listed in an override always run.
        check_names: whether to look up the names of components. If False, `Recipe.components` reports unknown names
            together with the other problems of components, such as failed imports.

    Raises:
        RecipeError: the recipe is invalid; the error lists all problems with file, line and key.
    """
    overrides = override_texts(overrides)
    file = Path("the recipe") if isinstance(path, Mapping) else resolve_recipe(str(path), Path.cwd())
    merged = load_merged(path if isinstance(path, Mapping) else file, overrides, MERGE_DEFAULTS)
    root = merged.root

    def locate(place: KeyPath) -> Origin:
        return root.origin_at(place)

    problems = [
        Problem("an empty value removes the loss", str(origin), dotted(place), hint="Write `{}` to use its defaults.")
        for place, origin in merged.pointless.items()
        if len(place) == 2 and place[0] == "losses"
    ]
    problems += [
        Problem(f"unknown key `{place[-1]}`, which is empty", str(origin), dotted(place), sorted(known))
        for place, origin in merged.pointless.items()
        if (known := _known_keys(place[:-1])) and place[-1] not in known
    ]
    walker = SectionWalker(locate)
    data = walker.walk([Option(RecipeSettings)], root.plain(), ())
    settings = check(RecipeSettings, data, (), locate)
    problems += walker.problems + (settings if isinstance(settings, list) else [])
    if isinstance(settings, RecipeSettings):
        problems += _contradictions(settings, root)
    problems += _too_long_names(root.value, ())
    if check_names or problems:
        problems += _unknown_names(data, root)
    if problems or isinstance(settings, list):
        raise RecipeError(problems)
    source = path if isinstance(path, Mapping) else file
    return Recipe(file, root, data, settings, overrides, merged.files, allow_imports, source)


def override_texts(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return overrides as strings of the form `key=value`.

    Raises:
        RecipeError: an override is not a string, or a map has a value that a recipe cannot contain.
    """
    if isinstance(overrides, Mapping):
        as_json(overrides)  # reports keys that are not text
        # A map under a key comes before the keys inside of it.
        return [f"{key}={as_json(overrides[key], key)}" for key in sorted(overrides, key=lambda key: key.count("."))]
    listed = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    for one in overrides if listed else [overrides]:
        if not listed or not isinstance(one, str):
            raise RecipeError(
                f"overrides must be a list of strings, or a map (found {one!r})",
                hint='write overrides={"training.batch_size": 64} or ["training.batch_size=64"]',
            )
    return list(overrides)


def load_config(path: str | Path, model: type[SettingsT], overrides: Sequence[str] = ()) -> SettingsT:
    """Read a file that contains one config, such as a data recipe.

    As for recipes, `extends` and overrides are applied, and errors have the same format.

    Args:
        path: the YAML file.
        model: the config's pydantic model.
        overrides: strings of the form `key=value`.

    Raises:
        RecipeError: the file is invalid; the error lists all problems.
    """
    root = load_merged(resolve_recipe(str(path), Path.cwd()), overrides, {}).root
    return checked_or_raise(model, root.plain(), lambda place: root.origin_at(place))


def load_component(path: str | Path, marker: ComponentSection, overrides: Sequence[str] = ()) -> Any:
    """Read a file that contains the section of one component, and construct the component.

    Args:
        path: the YAML file.
        marker: marker that specifies the component's registry and default.
        overrides: strings of the form `key=value`.

    Raises:
        RecipeError: the file is invalid; the error lists all problems.
    """
    root = load_merged(resolve_recipe(str(path), Path.cwd()), overrides, {}).root
    section = root.plain()
    assert isinstance(section, dict)
    walker = SectionWalker(root.origin_at)
    checked = walker.component(marker, section, ())
    if checked is None:
        raise RecipeError(walker.problems)
    return checked.cls(checked.config)


def _contradictions(settings: RecipeSettings, root: Node) -> Iterator[Problem]:
    """Yield problems of core keys that are valid individually but not in combination."""
    training = settings.training
    if training.micro_batch_size is not None and training.batch_size % training.micro_batch_size:
        key = "training.micro_batch_size"
        fitting = [size for size in range(1, training.batch_size + 1) if training.batch_size % size == 0]
        yield Problem(
            f"the batch size {training.batch_size} is not a multiple of the micro-batch size "
            f"{training.micro_batch_size}",
            str(root.origin_at(("training", "micro_batch_size"))),
            key,
            [str(size) for size in fitting],
        )
    fractions = [stage.get("at") for stage in settings.stages]
    for index, (before, after) in enumerate(pairwise(fractions), start=1):
        if isinstance(before, int | float) and isinstance(after, int | float) and after <= before:
            place = ("stages", index, "at")
            what = f"the stage begins at {after:g}, but the stage before it at {before:g}"
            yield Problem(what, str(root.origin_at(place)), dotted(place), hint="List stages in the order of `at`.")
    for key, kind in (("losses", "loss"), ("teachers", "teacher")):
        for label in getattr(settings, key) or ():
            if "." in label or "/" in label or not label.strip():
                origin = root.origin_at((key, label))
                what = f"{label!r} is not a valid label for a {kind}: it is empty or contains `.` or `/`"
                yield Problem(what, str(origin), key)
    yield from _teacher_problems(settings, root)


def _teacher_problems(settings: RecipeSettings, root: Node) -> Iterator[Problem]:
    """Yield problems of composite teachers, and labels that do not refer to any teacher."""

    def unknown(place: KeyPath, label: Any, allowed: Sequence[str]) -> Iterator[Problem]:
        if label not in allowed:
            what = f"{label!r} is not the label of a teacher"
            yield Problem(what, str(root.origin_at(place)), dotted(place), allowed, similar(str(label), allowed))

    teachers, models = settings.teachers or {}, list(settings.models_of_teachers)
    if settings.teacher is not None and teachers:
        what = "a recipe has either `teacher` or `teachers`"
        yield Problem(what, str(root.origin_at(("teachers",))), "teachers", hint="Write `teacher: null` to remove it.")
        return
    for label, section in teachers.items():
        if is_composite(section):
            place: KeyPath = ("teachers", label)
            checked = check(CompositeSettings, section, place, root.origin_at)
            if isinstance(checked, list):
                yield from checked
                continue
            kind = "average" if checked.average else "concat"
            for index, member in enumerate(checked.members):
                yield from unknown((*place, kind, index), member, models)
    if teachers and "from" in settings.student:
        yield from unknown(("student", "from"), settings.student["from"], models)
    for label, section in settings.losses.items():
        place, named = ("losses", label, "teacher"), section.get("teacher")
        if isinstance(named, str) and not teachers:
            what = "the loss names a teacher, but the recipe has no `teachers`"
            yield Problem(what, str(root.origin_at(place)), dotted(place), hint="Remove the key.")
        elif isinstance(named, str):
            yield from unknown(place, named, list(teachers))


def _known_keys(place: KeyPath) -> set[str]:
    """Return the core's keys at this place; empty for the section of a component, which checks its own keys."""
    return {key for option in at(RecipeSettings, place) if option.model for key in keys_of(option.model)}


def _too_long_names(value: Any, place: KeyPath) -> Iterator[Problem]:
    """Find strings that are too long for a path, before importing the components that define which keys are paths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, node in items:
        yield from _too_long_names(node.value, (*place, key))
        if isinstance(node.value, str) and _NAME_TOO_LONG.search(node.value):
            try:
                refuse_impossible(node.value)
            except RecipeError as error:
                yield Problem(error.problems[0].what, str(node.origin), dotted((*place, key)))


def _unknown_names(data: dict[str, Plain], root: Node) -> list[Problem]:
    problems: list[Problem] = []
    imports = data["imports"] if isinstance(data.get("imports"), list) else []
    for section in _sections(data, problems, root):
        where, key = str(root.origin_at((*section.place, "name"))), dotted(section.place)
        try:
            section.registry.find(section.name, where=where, key=key, sources=imports)
        except InputError as error:
            # A component that is not installed may be registered by an import file that has not been run yet.
            installed = {entry.name for entry in section.registry.entries()}
            if not imports or section.name.rpartition(":")[2] in installed:
                problems += error.problems
    return problems


def _sections(
    data: dict[str, Plain], problems: list[Problem] | None = None, root: Node | None = None
) -> list[_Section]:
    """Return the sections of all components; append problems of invalid sections to `problems` if given."""
    stated: dict[KeyPath, Plain] = {(key,): data[key] for key in ("teacher", "student", "task") if key in data}
    if isinstance(data.get("teachers"), dict):
        stated |= {("teachers", key): one for key, one in data["teachers"].items() if not is_composite(one)}
    if isinstance(data.get("losses"), dict):
        stated |= {("losses", label): section for label, section in data["losses"].items()}
    stated |= {(key,): data.get(key, {}) for key in ("optimizer", "scheduler")}
    tracking = data.get("tracking", RecipeSettings.model_fields["tracking"].get_default(call_default_factory=True))
    for key, listed in (("tracking", tracking), ("callbacks", data.get("callbacks"))):
        for index, one in enumerate(listed if isinstance(listed, list) else ()):
            stated[(key, index)] = {"name": one} if isinstance(one, str) else one
    stages = data.get("stages", [])
    if isinstance(stages, list):
        stated |= {("stages", index): stage for index, stage in enumerate(stages)}
    found = []
    for place, section in stated.items():
        if not isinstance(section, dict):
            continue  # reported by the check of the core keys
        default = place[1] if place[0] == "losses" else SECTION_DEFAULTS.get(str(place[0]))
        name = section.get("name", default)
        if isinstance(name, str):
            found.append(_Section(place, name, section))
        elif problems is not None and root is not None:
            registry = REGISTRIES[str(place[0])]
            what = "`name` is missing" if name is None else f"expected text, found {describe(name)}"
            key = dotted((*place, "name"))
            problems.append(Problem(what, str(root.origin_at((*place, "name"))), key, registry.names()))
    return found


def _listed(found: Mapping[KeyPath, Component], key: str) -> list[Component]:
    return [one for place, one in found.items() if place[0] == key]


def _with_name(value: Plain, place: KeyPath, name: str) -> Plain:
    """Return a copy of a recipe's data in which the component at `place` has this name."""
    if not place:
        return (
            {"name": name, **{key: inner for key, inner in value.items() if key != "name"}}
            if isinstance(value, dict)
            else name
        )
    head, *rest = place
    if isinstance(value, list):
        return [_with_name(item, tuple(rest), name) if index == head else item for index, item in enumerate(value)]
    assert isinstance(value, dict)
    return {key: _with_name(inner, tuple(rest), name) if key == head else inner for key, inner in value.items()}


def _put(data: dict[str, Plain], place: KeyPath, section: dict[str, Plain]) -> None:
    """Replace a section in a recipe's data, copying its ancestors; a section that is not in the data is not added."""
    if place[0] not in data:
        return
    if len(place) == 1:
        data[str(place[0])] = section
    elif isinstance(place[1], int):
        items = data[str(place[0])]
        if isinstance(items[place[1]], dict):
            data[str(place[0])] = [section if index == place[1] else one for index, one in enumerate(items)]
    else:
        data[str(place[0])] = {**data[str(place[0])], place[1]: section}
