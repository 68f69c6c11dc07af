"""Paths in recipes: relative to the file that states them, inside an installed package, or shipped with kdcore."""

from __future__ import annotations

import difflib
import json
import os
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from kdcore.errors import RecipeError


def resolve_path(text: str, folder: Path, *, hub: bool = False) -> str:
    """Make a path absolute.

    Args:
        text: a path, `~` and all, or `package:DISTRIBUTION/PATH` for a file that an installed package carries.
        folder: what a relative path is relative to.
        hub: leave a name as it is that is no existing path and does not look like one: a model on a hub.

    Raises:
        RecipeError: the path is empty, or the package is not installed or carries no such file.
    """
    if text.startswith("package:"):
        return str(_in_package(text))
    if not text.strip():
        raise RecipeError("the path is empty")
    try:
        path = folder / Path(text).expanduser()
    except RuntimeError:
        raise RecipeError(f"there is no home folder for `{text}`") from None
    if hub and not text.startswith((".", "/", "~")) and not path.exists():
        return text
    # Not Path.resolve(): a link to a folder of data keeps the name under which its owner knows it.
    return os.path.abspath(path)


def resolve_recipe(text: str, folder: Path) -> Path:
    """The recipe file that `extends:` or a command names; `kdcore:base/x.yaml` is one that kdcore ships.

    Raises:
        RecipeError: kdcore ships no such recipe, or a package lacks it.
    """
    if not text.startswith("kdcore:"):
        return Path(resolve_path(text, folder))
    recipes = shipped_recipes()
    name = text.removeprefix("kdcore:")
    path = recipes / name
    if not path.is_file():
        names = sorted(file.relative_to(recipes).as_posix() for file in recipes.rglob("*.yaml"))
        near = difflib.get_close_matches(name, names, n=1)
        raise RecipeError(
            f"kdcore ships no recipe `{name}`",
            allowed=[f"kdcore:{one}" for one in names],
            hint=f"Did you mean `kdcore:{near[0]}`?" if near else None,
        )
    return path


def shipped_recipes() -> Path:
    """The folder of the recipes that come with kdcore."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"  # beside the package in an editable checkout


def _in_package(text: str) -> Path:
    name, _, inside = text.removeprefix("package:").partition("/")
    if not name or not inside:
        raise RecipeError(f"`{text}` names no file of a package", allowed="package:DISTRIBUTION/PATH")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise RecipeError(
            f"`{text}` is in the package {name}, which is not installed", hint=f"Run `pip install {name}`."
        ) from None
    candidates = [Path(str(distribution.locate_file(inside)))]
    source = _editable_source(distribution)
    if source is not None:
        candidates.append(source / inside)
    for path in candidates:
        if path.exists():
            return Path(os.path.abspath(path))
    files = [str(file) for file in distribution.files or () if ".dist-info" not in str(file)]
    near = difflib.get_close_matches(inside, files, n=3)
    raise RecipeError(
        f"the package {name} {distribution.version} has no `{inside}`",
        hint=f"Did you mean {' or '.join(f'`package:{name}/{one}`' for one in near)}?" if near else None,
    )


def _editable_source(distribution: metadata.Distribution) -> Path | None:
    """The project folder of a package that was installed with `pip install -e`."""
    text = distribution.read_text("direct_url.json")
    if text is None:
        return None
    direct = json.loads(text)
    if not direct.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(direct["url"]).path))
