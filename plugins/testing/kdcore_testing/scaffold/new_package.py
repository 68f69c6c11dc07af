"""Implement `kdcore plugins new`: generate a package with working components and tests."""

from __future__ import annotations

import json
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

from packaging.version import Version

from kdcore import PLUGIN_APIS, InfrastructureError, InputError, atomic_directory

MAX_NAME = 30
"""Maximum length of a component's name, so that generated lines pass the line length check of the package."""

_PREFIX = "kdcore-"


@dataclass(frozen=True)
class Kind:
    """Texts for one kind of component.

    Attributes:
        group: entry-point group of its components.
        what: description of the generated component in the package's README.
        usage: its use in a recipe.
        packages: packages of this repository that it imports, in addition to kdcore.
    """

    group: str
    what: str
    usage: str
    packages: tuple[str, ...] = ()


_TEMPLATES = resources.files("kdcore_testing.scaffold").joinpath("templates")
KINDS = {name: Kind(**texts) for name, texts in json.loads(_TEMPLATES.joinpath("kinds.json").read_text()).items()}
"""The kinds of components that can be generated, by name."""


def new_package(package: str, kinds: Sequence[str], parent: Path) -> list[Path]:
    """Write a package with one component of each kind; write nothing on failure.

    Args:
        package: name of the package and of its folder. The components have the same name without `kdcore-` and with
            underscores.
        kinds: keys of `KINDS`.
        parent: the folder in which to create it.

    Returns:
        The written files, relative to `parent`.

    Raises:
        InputError: the name is invalid or already in use.
        InfrastructureError: the files cannot be written.
    """
    kinds = list(dict.fromkeys(kinds))
    module, name = _names(package)
    folder = parent / package
    if folder.exists() or folder.is_symlink():
        raise InputError("already exists", where=str(folder), hint="choose another name, or remove it first")
    _check_free(package, module, name, kinds)
    files = _files(package, module, name, kinds)
    try:
        with atomic_directory(folder) as staging:
            for file, text in files.items():
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                (staging / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InfrastructureError(f"{folder} cannot be written: {error.strerror}") from error
    return [Path(package) / file for file in files]


def _names(package: str) -> tuple[str, str]:
    """Return the import name of a package and the name of its components."""
    rule = "lower-case letters, digits and single hyphens, starting with a letter, such as kdcore-my-method"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", package):
        raise InputError(f"{package!r} is not a valid name for a package", allowed=rule)
    bare = package.removeprefix(_PREFIX)
    module, name = package.replace("-", "_"), bare.replace("-", "_")
    if not name[0].isalpha() or len(name) > MAX_NAME:
        raise InputError(
            f"{name!r}, derived from {package!r}, is not a valid name for components",
            allowed=f"names that start with a letter and have at most {MAX_NAME} characters",
        )
    if module == "kdcore" or module in sys.stdlib_module_names or keyword.iskeyword(module):
        owner = "kdcore itself" if module == "kdcore" else "Python"
        raise InputError(f"{package!r} is not a valid name for a package: it is used by {owner}", allowed=rule)
    return module, name


def _check_free(package: str, module: str, name: str, kinds: Sequence[str]) -> None:
    """Reject names that would shadow an installed module or make a component ambiguous."""
    if find_spec(module) is not None:
        raise InputError(
            f"{package!r} would shadow the installed module `{module}`",
            hint="choose another name, for example with the prefix `kdcore-`",
        )
    for kind in kinds:
        for entry in metadata.entry_points(group=KINDS[kind].group, name=name):
            owner = "" if entry.dist is None else f" by the package {entry.dist.name} {entry.dist.version}"
            raise InputError(
                f"a {kind} `{name}` is already installed{owner}",
                hint="choose another name, so that recipes are not ambiguous",
            )


def _files(package: str, module: str, name: str, kinds: Sequence[str]) -> dict[str, str]:
    """Return the text of every file, by its path in the package."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    common = {
        "package": package,
        "module": module,
        "name": name,
        "description": f"Adds to kdcore: {', '.join(f'{kind} {name}' for kind in kinds)}.",
        "components": "".join(f"- {kind} `{name}`: {KINDS[kind].what}\n" for kind in kinds),
        "requirements": _requirements(["kdcore", *(package for kind in kinds for package in KINDS[kind].packages)]),
        "test_requirements": f'"pytest>=8.3", {_requirements(["kdcore-testing"])}',
        "plugin_api": str(PLUGIN_APIS[-1]),
        "entry_points": "\n".join(
            f'[project.entry-points."{KINDS[kind].group}"]\n{name} = "{module}.{kind}:{camel}{kind.capitalize()}"\n'
            for kind in kinds
        ),
        "usage": "\n".join(f"```yaml\n{Template(KINDS[kind].usage).substitute(name=name)}```\n" for kind in kinds),
    }
    files = {
        "pyproject.toml": _fill("pyproject.toml", common),
        "README.md": _fill("README.md", common),
        f"{module}/__init__.py": f'"""{common["description"]}"""\n',
        f"{module}/py.typed": "",
    }
    for kind in kinds:
        own = common | {"cls": f"{camel}{kind.capitalize()}"}
        files[f"{module}/{kind}.py"] = _fill(f"{kind}.py", own)
        files[f"tests/test_{name}_{kind}.py"] = _fill(f"test_{kind}.py", own)
    return files


def _fill(file: str, values: dict[str, str]) -> str:
    template = _TEMPLATES.joinpath(f"{file}.txt")
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _requirements(packages: Sequence[str]) -> str:
    """List our packages with this version as the minimum; the plugin API decides whether later versions can be used."""
    version = Version(metadata.version("kdcore"))
    return ", ".join(f'"{package}>={version.major}.{version.minor}"' for package in dict.fromkeys(packages))
