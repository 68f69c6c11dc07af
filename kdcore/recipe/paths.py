"""Resolve paths in recipes: relative to the recipe file, inside an installed package, or shipped with kdcore."""

from __future__ import annotations

import difflib
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from kdcore.errors import RecipeError

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, as Linux limits them


def resolve_path(text: str, folder: Path, *, hub: bool = False) -> str:
    """Make a path absolute.

    Args:
        text: a path, which may start with `~`, or `package:DISTRIBUTION/PATH` for a file of an installed package.
        folder: base of relative paths.
        hub: return the text unchanged if it neither exists as a path nor looks like one, because it is then the name of
            a hub model.

    Raises:
        RecipeError: the path is empty, the package is not installed, or it does not contain the file.
    """
    if text.startswith("package:"):
        return str(_in_package(text))
    if not text.strip():
        raise RecipeError("the path is empty")
    refuse_impossible(text)
    try:
        path = folder / Path(text).expanduser()
    except RuntimeError:
        raise RecipeError(f"cannot expand `~` in `{text}`: the home folder is unknown") from None
    if hub and not text.startswith((".", "/", "~")) and not path.exists():
        return text
    # Not Path.resolve(): symbolic links keep the name that the user gave them.
    return os.path.abspath(path)


def refuse_impossible(text: str) -> None:
    """Reject a path that no file system allows.

    Raises:
        RecipeError: a part of it is too long, or it contains NUL.
    """
    if "\0" in text:
        raise RecipeError("the path contains the character NUL")
    longest = max((len(os.fsencode(part)) for part in text.split("/")), default=0)
    if longest > _LONGEST_NAME or len(os.fsencode(text)) > _LONGEST_PATH:
        what, limit = ("a name in the path", _LONGEST_NAME) if longest > _LONGEST_NAME else ("the path", _LONGEST_PATH)
        length = longest if longest > _LONGEST_NAME else len(os.fsencode(text))
        raise RecipeError(f"{what} is too long (found {length:,} bytes, expected at most {limit:,})")


def resolve_recipe(text: str, folder: Path) -> Path:
    """Resolve the recipe file given to `extends:` or a command; `kdcore:base/x.yaml` is shipped with kdcore.

    Raises:
        RecipeError: kdcore does not ship the recipe, or the package does not contain it.
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
            f"kdcore does not ship a recipe `{name}`",
            allowed=[f"kdcore:{one}" for one in names],
            hint=f"Did you mean `kdcore:{near[0]}`?" if near else None,
        )
    return path


def shipped_recipes() -> Path:
    """Return the folder of the recipes shipped with kdcore."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"  # next to the package in an editable checkout


def _in_package(text: str) -> Path:
    name, _, inside = text.removeprefix("package:").partition("/")
    if not name or not inside:
        raise RecipeError(f"`{text}` is not a path inside a package", allowed="package:DISTRIBUTION/PATH")
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
        f"the package {name} {distribution.version} does not contain `{inside}`",
        hint=f"Did you mean {' or '.join(f'`package:{name}/{one}`' for one in near)}?" if near else None,
    )


def package_path(path: str) -> str | None:
    """Return an absolute path inside an installed package as `package:DISTRIBUTION/PATH`; None for other paths."""
    for folder in filter(os.path.isabs, sys.path):
        if Path(path).is_relative_to(folder) and folder != path:
            inside = Path(path).relative_to(folder)
            for name in metadata.packages_distributions().get(inside.parts[0], ()):
                if (Path(str(metadata.distribution(name).locate_file(inside)))) == Path(path):
                    return f"package:{name}/{inside}"
    return None


def _editable_source(distribution: metadata.Distribution) -> Path | None:
    """Return the project folder of a package installed with `pip install -e`, or None."""
    text = distribution.read_text("direct_url.json")
    if text is None:
        return None
    direct = json.loads(text)
    if not direct.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(direct["url"]).path))
