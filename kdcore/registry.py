"""Discover installed components by name without importing them, and import a component on first use.

Every package, including kdcore itself, declares its components as entry points in the groups listed in `ALL`. Code that
is not installed registers components with `register_loss("name")` and similar functions from a file listed under
`imports:` in a recipe.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from typing import Any, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from kdcore.errors import PluginError

ComponentT = TypeVar("ComponentT", bound=type)

PLUGIN_APIS = (1, 2)
"""The versions of the plugin API that this kdcore supports. Version 1 belongs to kdcore 0.1."""
API_GROUP = "kdcore.plugin_api"
"""The entry point group with which a package declares the plugin APIs it was built for: `2 = "its_module"`."""


@dataclass(frozen=True)
class Unmet:
    """An unmet dependency of a package on another package of the kdcore family.

    Attributes:
        what: the required package and versions, and the version found, for messages: `kdcore-x>=2 (found 1.0)`.
        hint: what to install or upgrade.
    """

    what: str
    hint: str


@dataclass(frozen=True)
class Entry:
    """Metadata of a component of an installed package; the component is not imported.

    Attributes:
        name: name of the component in recipes.
        value: import path of the class, as `module:attribute`.
        distribution: the package's name, as passed to pip.
        version: the package's version.
        group: the entry point group, such as `kdcore.losses`.
        kdcore: the package's lower bound on the version of kdcore, such as `>=0.1`; empty if there is none.
        apis: versions of the plugin API that the package was built for; 1 if it declares none, as in kdcore 0.1.
        unmet: the first required `kdcore-...` package that is missing, has the wrong version, or has an unmet
            requirement itself; None if all requirements are met.
    """

    name: str
    value: str
    distribution: str
    version: str
    group: str
    kdcore: str = ""
    apis: tuple[int, ...] = (1,)
    unmet: Unmet | None = None

    @property
    def package(self) -> str:
        """Return the name and version of the package."""
        return f"{self.distribution} {self.version}"

    @property
    def misfit(self) -> Unmet | None:
        """Return the reason why the package does not work with the installed kdcore; None if it works.

        Checks the plugin API and the lower bound on kdcore's version. Upper bounds are ignored, because package authors
        cannot know which later version will break the package.
        """
        if not set(self.apis) & set(PLUGIN_APIS):
            declared, supported = (" and ".join(map(str, versions)) for versions in (self.apis, PLUGIN_APIS))
            newer = min(self.apis) > max(PLUGIN_APIS)
            hint = f"Run `pip install --upgrade {'kdcore' if newer else self.distribution}`."
            return Unmet(f"plugin API {declared}, but kdcore {_version()} supports {supported}", hint)
        required = Requirement(f"kdcore{self.kdcore}")
        if required.specifier.contains(_version(), prereleases=True):
            return None
        hint = _upgrade_hint(required, _version(), self.distribution)
        return Unmet(f"kdcore{self.kdcore}, but kdcore {_version()} is installed", hint)

    @property
    def precedence(self) -> int:
        """Return the rank of the package among the providers of a name; the provider with the lowest rank is used.

        The rank is 0 for kdcore, 1 for the package of this repository that is known to provide the name, 2 for other
        packages of this repository, and 3 for all others.
        """
        owner = canonicalize_name(self.distribution)
        if owner == "kdcore":
            return 0
        if owner == known_package(self.group, self.name):
            return 1
        return 2 if any(owner in names.values() for names in _known_packages().values()) else 3


@dataclass(frozen=True)
class _Registered:
    """A class registered at run time; `source` is the file under `imports:` that registered it, or None."""

    cls: type
    source: str | None


class Registry:
    """The components of one kind.

    Args:
        group: the entry point group.
        kind: name of the kind in messages, such as `loss`.
        interface: `module:Class` of the base class; imported together with the first component.
        needs_config: whether components have a nested `Config`.
    """

    def __init__(self, group: str, kind: str, interface: str, *, needs_config: bool = True) -> None:
        self.group = group
        self.kind = kind
        self.interface = interface
        self.needs_config = needs_config
        self._registered: dict[str, list[_Registered]] = {}
        self._causes: dict[Entry, tuple[str, str | None]] = {}

    def entries(self) -> list[Entry]:
        """Return the components declared by installed packages, sorted by name and package."""
        return list(_installed(_path_state()).get(self.group, ()))

    def names(self) -> list[str]:
        """Return all available names, sorted."""
        return sorted({entry.name for entry in self.entries()} | set(self._registered))

    def registered(self) -> dict[str, list[type]]:
        """Return the classes registered at run time, by name."""
        return {name: [one.cls for one in found] for name, found in self._registered.items()}

    def providers(self, name: str) -> list[Entry]:
        """Return the installed components that a name refers to; several if it is ambiguous.

        If several packages provide the same name, kdcore takes precedence over our other packages, and these over all
        others.

        Args:
            name: the component's name, or `package:name`, which can refer to any component.
        """
        package, _, bare = name.rpartition(":")
        entries = [entry for entry in self.entries() if entry.name == bare]
        if not package:
            first = min((entry.precedence for entry in entries), default=0)
            return [entry for entry in entries if entry.precedence == first]
        owner: str = canonicalize_name(package)
        own = [entry for entry in entries if canonicalize_name(entry.distribution) == owner]
        if owner == "kdcore" and not own:  # recipes of kdcore 0.1 name components that have moved to packages
            owner = known_package(self.group, bare) or owner
            own = [entry for entry in entries if canonicalize_name(entry.distribution) == owner]
        return own

    def pinned(self, name: str, *, sources: Collection[str] | None = None) -> str:
        """Return the name by which a component is found regardless of which other packages are installed.

        This is `package:name` unless the component is built in or registered at run time. Arguments and errors are the
        same as for `find`.
        """
        found = self.find(name, sources=sources)
        return f"{found.distribution}:{found.name}" if isinstance(found, Entry) and found.precedence else name

    def find(
        self, name: str, *, where: str | None = None, key: str | None = None, sources: Collection[str] | None = None
    ) -> Entry | type:
        """Resolve a name without importing the component.

        A class registered at run time takes precedence over installed components of the same name.

        Args:
            name: the component's name, or `package:name` for the component of a particular package.
            where: file and line of the reference, for the error message.
            key: key path of the reference, for the error message.
            sources: import files whose registrations are considered; all if None.

        Raises:
            PluginError: the name is unknown or is provided by several packages of equal rank, or its package needs a
                different version of kdcore.
        """
        registered = self._registered.get(name, ())
        classes = [one for one in registered if one.source is None or sources is None or one.source in sources]
        entries = [] if classes else self.providers(name)
        if not entries and not classes:
            raise self.unknown(name, where=where, key=key)
        if len(entries) + len(classes) > 1:
            places = [f"package {entry.package}" for entry in entries] + [_place(one.cls) for one in classes]
            choices = [f"{entry.distribution}:{entry.name}" for entry in entries]
            raise PluginError(
                f"{self.kind} `{name}` is ambiguous: provided by {' and '.join(places)}",
                where=where,
                key=key,
                allowed=choices or None,
                hint="Write `package:name` to select one, or rename your own component.",
            )
        if classes:
            return classes[0].cls
        entry = entries[0]
        misfit = entry.misfit
        if misfit:
            raise PluginError(
                f"{self.kind} `{name}` of {entry.package} is built for {misfit.what}",
                where=where,
                key=key,
                hint=misfit.hint,
            )
        if entry.unmet:
            raise PluginError(
                f"{self.kind} `{name}` comes from {entry.package}, which needs {entry.unmet.what}",
                where=where,
                key=key,
                hint=entry.unmet.hint,
            )
        return entry

    def get(
        self, name: str, *, where: str | None = None, key: str | None = None, sources: Collection[str] | None = None
    ) -> type[Any]:
        """Import a component by name and check its interface; arguments as for `find`.

        Raises:
            PluginError: as in `find`, or the component cannot be imported or does not implement the interface.
        """
        found = self.find(name, where=where, key=key, sources=sources)
        if not isinstance(found, Entry):
            return found
        cause = self._causes.get(found)
        problem = ""
        if cause is None:
            try:
                cls = _load(found)
            except (Exception, SystemExit) as error:
                # Importing a half-imported module again often fails with a misleading error: keep the first one.
                cause = self._causes[found] = describe_error(error), _import_hint(error, found)
            else:
                problem = self._fault(cls)
                if not problem:
                    return cls  # type: ignore[no-any-return]
        what = f"{self.kind} `{name}` of {found.package} ({found.value}) "
        raise PluginError(
            what + (f"cannot be imported: {cause[0]}" if cause is not None else f"cannot be used: {problem}"),
            where=where,
            key=key,
            hint=_reinstall_hint(found) if cause is None else cause[1],
        )

    def register(self, name: str) -> Callable[[ComponentT], ComponentT]:
        """Register the decorated class under a name, for code that is not installed.

        Running the same code again (a notebook cell, an edited file) replaces its earlier registration.

        Raises:
            PluginError: the class does not implement the interface of its kind.
        """

        def decorate(cls: ComponentT) -> ComponentT:
            problem = self._fault(cls)
            if problem:
                raise PluginError(f"{self.kind} `{name}` ({_place(cls)}) cannot be registered: {problem}")
            if not name or ":" in name:
                raise PluginError(f"{name!r} is not a valid name for a {self.kind}: it is empty or contains a colon")
            mine = _Registered(cls, _source[-1] if _source else None)
            others = self._registered.get(name, [])
            same = (mine.source, cls.__module__, cls.__qualname__)
            kept = [one for one in others if (one.source, one.cls.__module__, one.cls.__qualname__) != same]
            self._registered[name] = [*kept, mine]
            return cls

        return decorate

    def _fault(self, cls: object) -> str:
        """Return the reason why an object is not a valid component of this kind; empty if it is valid."""
        module, _, attribute = self.interface.partition(":")
        interface = getattr(importlib.import_module(module), attribute)
        if not isinstance(cls, type):
            return f"{cls!r} is not a class"
        if not issubclass(cls, interface):
            return f"{cls.__name__} does not derive from {_public(interface)}"
        if inspect.isabstract(cls):
            return f"{cls.__name__} does not define {', '.join(sorted(getattr(cls, '__abstractmethods__', ())))}"
        return self._config_fault(cls, interface) if self.needs_config else ""

    def _config_fault(self, cls: type, interface: type) -> str:
        config = getattr(cls, "Config", None)
        pydantic = sys.modules.get("pydantic")  # not imported: then nothing derives from its BaseModel
        if not isinstance(config, type) or pydantic is None or not issubclass(config, pydantic.BaseModel):
            return f"{cls.__name__} has no nested class `Config` that derives from kdcore.ComponentConfig"
        expected = getattr(interface, "Config", None)
        missing = set(getattr(expected, "model_fields", ())) - set(getattr(config, "model_fields", ()))
        if isinstance(expected, type) and missing:
            return (
                f"{cls.__name__}.Config lacks {', '.join(sorted(missing))}; derive it from {_public(interface)}.Config"
            )
        if getattr(config, "model_config", {}).get("extra") != "forbid":
            return f"{cls.__name__}.Config accepts unknown keys; derive it from kdcore.ComponentConfig"
        return ""

    def unknown(
        self, name: str, *, names: Collection[str] | None = None, where: str | None = None, key: str | None = None
    ) -> PluginError:
        """Create the error for an unknown name, suggesting similar names and the package that would provide it.

        Args:
            name: the component's name, or `package:name`.
            names: the valid names; all names if None.
            where: file and line of the reference.
            key: key path of the reference.
        """
        package, _, bare = name.rpartition(":")
        names = self.names() if names is None else names
        elsewhere = _known_packages().get(self.group, {})
        hints = []
        if package and bare in names:
            having = [entry.distribution for entry in self.entries() if entry.name == bare]
            hints.append(f"The package {package} does not provide it; these packages do: {', '.join(having)}.")
        elif bare in (ours := _known_packages().get(f"{self.group} of papers", {})):
            hints.append(f"kdcore calls it {ours[bare]}.")
        elif bare in elsewhere:
            hints.append(f"The package {elsewhere[bare]} provides it: `pip install {elsewhere[bare]}`.")
        else:
            # A name may be in both lists: remove duplicates, so that the hint does not repeat it.
            near = difflib.get_close_matches(bare, dict.fromkeys([*names, *elsewhere]), n=3)
            if near:
                install = {one: "" if one in names else f" (`pip install {elsewhere[one]}`)" for one in near}
                hints.append(f"Did you mean {' or '.join(f'`{one}`{install[one]}' for one in near)}?")
        return PluginError(
            f"unknown {self.kind} `{name}`",
            where=where,
            key=key,
            allowed=[*names] or "none is installed",
            hint=" ".join(hints) or f"A package can add a {self.kind} with an entry point in the group {self.group}.",
        )


def component_names(group: str) -> list[str]:
    """Return the names of all components of a group, such as `kdcore.trackers`, that are installed or registered.

    None of them is imported.
    """
    return ALL[group].names()


@dataclass(frozen=True)
class FoundComponent:
    """A component that was found by its name.

    Attributes:
        name: its name without the package.
        cls: the class.
        package: the installed package that provides it; None for a class registered at run time.
    """

    name: str
    cls: type[Any]
    package: str | None


def find_component(group: str, name: str) -> FoundComponent:
    """Find a component by its name and import it.

    Args:
        group: the entry point group, such as `kdcore.corpora`.
        name: the component's name, or `package:name`.

    Raises:
        PluginError: no package provides it, several packages of equal rank provide it, or it cannot be used.
    """
    found = ALL[group].find(name)
    package = found.distribution if isinstance(found, Entry) else None
    return FoundComponent(name.rpartition(":")[2], ALL[group].get(name), package)


def is_same_component(name: str, other: str) -> bool:
    """Return whether two names are equal, or refer to the same installed component of any kind.

    Args:
        name: a component's name, or `package:name`.
        other: like `name`.
    """
    if name == other:
        return True
    return any(set(registry.providers(name)) & set(registry.providers(other)) for registry in ALL.values())


def near_names(name: str) -> str | None:
    """Suggest installed components of any kind with a similar name; None if there are none."""
    kinds = {near: registry.kind for registry in ALL.values() for near in registry.names()}
    near = difflib.get_close_matches(name, kinds, n=3)
    return f"Did you mean {' or '.join(f'the {kinds[one]} `{one}`' for one in near)}?" if near else None


_source: list[str] = []


@contextmanager
def registering_from(source: str) -> Iterator[None]:
    """Attribute registrations inside this context to the file `source`."""
    _source.append(source)
    try:
        yield
    finally:
        _source.pop()


def _load(entry: Entry) -> Any:
    module, _, attribute = entry.value.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found


def describe_error(error: BaseException) -> str:
    """Return one line of text that describes an error and names the line that raised it."""
    text = f"{type(error).__name__}: {error}".replace("\n", " ").strip().removesuffix(":")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.exists(frame.filename)]
    frames = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if frames else text


def _import_hint(error: BaseException, entry: Entry) -> str | None:
    """Return advice on an error raised by importing a component."""
    if not entry.precedence:
        return None
    missing = getattr(error, "name", None) or ""
    top = missing.partition(".")[0]
    if top == "kdcore" or (isinstance(error, AttributeError) and "kdcore attribute" in str(error)):
        return (
            f"The package uses a name that kdcore {_version()} does not have: run `pip install --upgrade kdcore`, or "
            f"`pip install --upgrade {entry.distribution}` if kdcore is the newest."
        )
    if isinstance(error, ModuleNotFoundError) and top != entry.value.partition(":")[0].partition(".")[0]:
        return f"The package {entry.distribution} needs the module `{missing}`: install the package that contains it."
    return _reinstall_hint(entry)


def _reinstall_hint(entry: Entry) -> str | None:
    if not entry.precedence:
        return None
    reinstall = f"`pip install --force-reinstall {entry.distribution}`"
    return f"The error is in the package {entry.distribution}: repair it, or reinstall it with {reinstall}."


def _public(cls: type) -> str:
    """Return the name under which plugins import a class of kdcore."""
    names = vars(importlib.import_module("kdcore"))["__all__"]
    return f"kdcore.{cls.__name__}" if cls.__name__ in names else f"{cls.__module__}.{cls.__qualname__}"


def _place(cls: object) -> str:
    if not isinstance(cls, type):
        return repr(cls)
    return f"class {cls.__qualname__} in {getattr(sys.modules.get(cls.__module__), '__file__', None) or cls.__module__}"


def _path_state() -> tuple[tuple[str, int], ...]:
    """Return the cache key of discovery: `sys.path` and the modification times of its folders."""
    return tuple((path, os.stat(path).st_mtime_ns) for path in sys.path if os.path.isdir(path))


@lru_cache(maxsize=1)
def _installed(_state: tuple[tuple[str, int], ...]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            entries = _declared(distribution)
        except Exception as error:  # metadata that an interrupted installation left must not stop other packages
            place = getattr(distribution, "_path", "a package")
            print(f"warning: {place} is ignored: its metadata is damaged ({describe_error(error)})", file=sys.stderr)
            continue
        # Of two installations of one package, Python imports the first on `sys.path`.
        if not entries or canonicalize_name(entries[0].distribution) in seen:
            continue
        seen.add(canonicalize_name(entries[0].distribution))
        for entry in entries:
            found.setdefault(entry.group, []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: (entry.name, entry.distribution))
    return found


def _declared(distribution: metadata.Distribution) -> list[Entry]:
    """Return the components that a package declares. Damaged metadata can cause any exception."""
    points = [point for point in distribution.entry_points if point.group in ALL]
    if not points:
        return []
    name, version = distribution.name, distribution.version
    if not name or not version:
        raise ValueError("it has no name or no version")
    asked, unmet = _kdcore_versions(distribution), _unmet_requirement(distribution, (canonicalize_name(name),))
    declared = (point.name for point in distribution.entry_points if point.group == API_GROUP)
    apis = tuple(sorted(int(version) for version in declared)) or (1,)
    return [Entry(point.name, point.value, name, version, point.group, asked, apis, unmet) for point in points]


def _kdcore_versions(distribution: metadata.Distribution) -> str:
    """Return the package's lower bound on the version of kdcore, without extras."""
    bounds = [_lower_bound(one) for one in _requirements(distribution) if canonicalize_name(one.name) == "kdcore"]
    return ",".join(filter(None, bounds))


def _lower_bound(requirement: Requirement) -> str:
    """Return a requirement's specifier without upper bounds; an exact version becomes a lower bound."""
    found = []
    for one in requirement.specifier:
        if one.operator in (">=", ">", "!="):
            found.append(str(one))
        elif one.operator in ("==", "~=", "==="):
            found.append(f">={one.version.removesuffix('.*')}")
    return ",".join(sorted(found))


def _unmet_requirement(distribution: metadata.Distribution, above: tuple[str, ...]) -> Unmet | None:
    """Find the first unmet requirement for a `kdcore-...` package, direct or indirect.

    These packages import each other inside commands, where a missing package would cause a traceback.

    Args:
        distribution: the package whose requirements are checked.
        above: canonical names of the chain of dependent packages, from the one first checked to `distribution`. The
            first package's requirement for kdcore itself is skipped, because it is reported by a separate message.
    """
    for requirement in _requirements(distribution):
        name = canonicalize_name(requirement.name)
        family = name.startswith("kdcore-") or (name == "kdcore" and len(above) > 1)
        if not family or name in above:
            continue
        try:
            required = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return Unmet(f"{requirement.name}, which is not installed", f"Run {_pip_install(requirement)}.")
        if name == "kdcore":
            requirement.specifier = SpecifierSet(_lower_bound(requirement))
        if not requirement.specifier.contains(required.version or "", prereleases=True):
            hint = _upgrade_hint(requirement, required.version, above[-1])
            return Unmet(f"{requirement.name}{requirement.specifier} (found {required.version})", hint)
        indirect = _unmet_requirement(required, (*above, name)) if name != "kdcore" else None
        if indirect is not None:
            return Unmet(f"{requirement.name} {required.version}, which needs {indirect.what}", indirect.hint)
    return None


def _upgrade_hint(required: Requirement, found: str, requiring: str) -> str:
    """Return advice on a requirement whose installed version does not match: upgrade the older package."""
    if _is_too_old(found, required):
        return f"Run {_pip_install(required)}."
    return f"Run `pip install --upgrade {requiring}`. If that is the newest version already: {_pip_install(required)}."


def _is_too_old(found: str, required: Requirement) -> bool:
    """Return whether a version is below the lower bound of a requirement."""
    try:
        version = Version(found)
        return any(
            Version(one.version.removesuffix(".*")) >= version and not one.contains(version, prereleases=True)
            for one in required.specifier
            if one.operator in (">=", ">", "~=", "==")
        )
    except (InvalidVersion, TypeError):  # reinstalling repairs a package without a valid version
        return True


def _pip_install(requirement: Requirement) -> str:
    whole = f"{requirement.name}{requirement.specifier}"
    return f'`pip install "{whole}"`' if requirement.specifier else f"`pip install {whole}`"


def _requirements(distribution: metadata.Distribution) -> Iterator[Requirement]:
    """Yield the package's requirements without extras; skip malformed ones."""
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def unknown_groups() -> list[tuple[str, str, str | None]]:
    """List misspelt entry point groups of installed packages as (group, package, similar group of kdcore)."""
    known = [*ALL, API_GROUP]
    found = []
    for distribution in metadata.distributions():
        with suppress(Exception):  # damaged metadata is reported where components are looked up
            for group in sorted({point.group for point in distribution.entry_points} - set(known)):
                near = difflib.get_close_matches(group.replace("_", "."), known, n=1, cutoff=0.8)
                if near or group.partition(".")[0].lower() == "kdcore":
                    found.append((group, f"{distribution.name} {distribution.version}", near[0] if near else None))
    return found


def known_package(group: str, name: str) -> str | None:
    """Return the package of this repository that provides a component, installed or not."""
    return _known_packages().get(group, {}).get(name)


@lru_cache(maxsize=1)
def _known_packages() -> dict[str, dict[str, str]]:
    """Map group and name to the providing package; the file is written by `plugins/index.py`."""
    text = resources.files("kdcore").joinpath("known_packages.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def _version() -> str:
    return metadata.version("kdcore")


models = Registry("kdcore.models", "model", "kdcore.models.base:Model")
tasks = Registry("kdcore.tasks", "task", "kdcore.tasks.base:Task")
losses = Registry("kdcore.losses", "loss", "kdcore.losses.base:Loss")
optimizers = Registry("kdcore.optimizers", "optimizer", "kdcore.optimizers.base:Optimizer")
schedulers = Registry("kdcore.schedulers", "scheduler", "kdcore.schedulers.base:Scheduler")
corpora = Registry("kdcore.corpora", "corpus", "kdcore.data.base:Corpus")
preparations = Registry("kdcore.preparations", "preparation", "kdcore.data.preparation:Preparation")
trackers = Registry("kdcore.trackers", "tracker", "kdcore.trackers.base:Tracker")
callbacks = Registry("kdcore.callbacks", "callback", "kdcore.callbacks.base:Callback")
transforms = Registry("kdcore.transforms", "transform", "kdcore.transforms.base:Transform")
defaults = Registry("kdcore.defaults", "defaults", "kdcore.scripting.defaults:Defaults", needs_config=False)
commands = Registry("kdcore.commands", "command", "kdcore.commands.base:Command", needs_config=False)
export_options = Registry(
    "kdcore.export_options", "export option", "kdcore.commands.base:ExportOption", needs_config=False
)
job_queues = Registry("kdcore.job_queues", "job queue", "kdcore.commands.base:JobQueue", needs_config=False)
summary_rows = Registry("kdcore.summary_rows", "summary", "kdcore.tasks.finished_run:SummaryRows", needs_config=False)

ALL: dict[str, Registry] = {
    registry.group: registry
    for registry in (
        models,
        tasks,
        losses,
        optimizers,
        schedulers,
        corpora,
        preparations,
        trackers,
        callbacks,
        transforms,
        defaults,
        commands,
        export_options,
        job_queues,
        summary_rows,
    )
}

register_model = models.register
register_task = tasks.register
register_loss = losses.register
register_optimizer = optimizers.register
register_scheduler = schedulers.register
register_corpus = corpora.register
register_preparation = preparations.register
register_tracker = trackers.register
register_callback = callbacks.register
register_transform = transforms.register
register_defaults = defaults.register
register_command = commands.register
register_summary = summary_rows.register

get_command = commands.get
