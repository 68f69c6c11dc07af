"""Write the sources of the site: `python docs/site/stage.py FOLDER`.

The pages of docs/ are copied, with links that lead to files of the repository redirected to pages of the site. The
reference is generated from docstrings, from the `Config` classes of all installed components and from `--help` texts,
and the benchmark history from docs/benchmarks/history.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import os
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark_page import benchmark_files

import kdcore
from kdcore.commands.main import main as run_kdcore
from kdcore.recipe.fields import key_table
from kdcore.recipe.schema import RecipeSettings
from kdcore.registry import ALL, Entry, Registry, commands, losses

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = {file.parent.name: file.parent for file in sorted(ROOT.glob("plugins/*/README.md"))} | {
    "launch": ROOT / "launch"
}
PROJECT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PUBLIC_PACKAGES = ("kdcore_preparation", "kdcore_supervised", "kdcore_testing")

# Pages of the Python reference: title, and the modules of kdcore whose public names are on the page.
API_PAGES = {
    "runs": ("Recipes and runs", ("commands.train", "scripting", "training", "recipe", "tasks.finished_run")),
    "losses": ("Losses, signals and layers", ("losses", "objectives", "signals", "layers", "relations")),
    "tasks": ("Tasks", ("tasks",)),
    "models": ("Models and transforms", ("models", "transforms")),
    "optimization": ("Optimizers, schedulers and budgets", ("optimizers", "schedulers", "progress")),
    "data": ("Prepared data and readers", ("data",)),
    "components": ("Components, commands and trackers", ("registry", "commands", "trackers", "callbacks", "faults")),
    "files": ("Errors, files and processes", ("errors", "utils")),
}


def site_target(page: str, target: str) -> str:
    """Translate a link of a page into one between pages of the site.

    Args:
        page: path of the page in the repository, such as `docs/recipes.md`.
        target: the link, relative to the page, with or without an anchor.

    Returns:
        Path in the site, with the anchor.

    Raises:
        ValueError: the link leads to a file that has no page.
    """
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)).removesuffix("/README.md")
    anchor = f"#{anchor}" if anchor else ""
    if path.startswith("docs/") and (ROOT / path).is_file():
        return path.removeprefix("docs/") + anchor
    if path.startswith(("plugins/", "launch")) and (name := posixpath.basename(path)) in PACKAGES:
        return f"packages/{name}.md{anchor}"
    if path in PROJECT_PAGES:
        return f"project/{path.lower()}{anchor}"
    if path == "README.md":
        return f"index.md{anchor}"
    if path.startswith("recipes/") and (ROOT / path).is_file():
        return f"reference/shipped-recipes.md#{_slug(path.removeprefix('recipes/'))}"
    if (ROOT / path).is_file():
        return f"files/{path}"
    raise ValueError(f"{page}: the link {target} leads to nothing that the site has")


def translated(text: str, page: str, place: str) -> str:
    """Redirect the links of a page's text.

    Args:
        text: Markdown.
        page: the page's path in the repository.
        place: the page's path in the site.
    """

    def redirect(found: re.Match[str]) -> str:
        target = site_target(page, found[2])
        return f"{found[1]}({posixpath.relpath(target, posixpath.dirname(place) or '.')})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    pattern = r"(\[[^\]]*\])\(((?![a-z]+:|#)[^)\s]+)\)"
    return "".join(part if part.startswith("```") else re.sub(pattern, redirect, part) for part in parts)


def pages() -> Iterator[tuple[str, str]]:
    """Yield the written pages, as path in the repository and path in the site."""
    for file in sorted(DOCS.rglob("*.md")):
        path = file.relative_to(DOCS).as_posix()
        yield f"docs/{path}", path
    for name, folder in PACKAGES.items():
        yield f"{folder.relative_to(ROOT).as_posix()}/README.md", f"packages/{name}.md"
    for name in PROJECT_PAGES:
        yield name, f"project/{name.lower()}"


def api_pages() -> dict[str, list[str]]:
    """Assign every public name of kdcore to a page of the Python reference, by the module that defines it.

    Raises:
        ValueError: a module has no page.
    """
    stub = Path(kdcore.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {page: [] for page in API_PAGES}
    for module, name in re.findall(r"^from \.(\S+) import (\w+) as \w+$", stub, re.MULTILINE):
        fits = [
            (len(start), page)
            for page, (_, starts) in API_PAGES.items()
            for start in starts
            if f"{module}.".startswith(f"{start}.")
        ]
        if not fits:
            raise ValueError(f"kdcore.{module} has no page in API_PAGES")
        found[max(fits)[1]].append(name)
    return found


def _api_page(title: str, module: str, names: list[str]) -> str:
    lines = [f"# {title}", "", f"Public names of `{module}`.", "", "```{eval-rst}", f".. currentmodule:: {module}", ""]
    for name in sorted(names):
        value = getattr(importlib.import_module(module), name)
        kind = "data"
        if isinstance(value, type):
            kind = "exception" if issubclass(value, BaseException) else "class"
        elif inspect.isroutine(value):
            kind = "function"
        lines += [f".. auto{kind}:: {name}", ""]
    return "\n".join([*lines, "```", ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _component(registry: Registry, entry: Entry) -> list[str]:
    """Describe a component, with a table of its keys if its kind has keys."""
    cls = registry.get(f"{entry.distribution}:{entry.name}")
    lines = [f"Package {entry.distribution}, class `{entry.value}`.", "", inspect.cleandoc(cls.__doc__ or ""), ""]
    if not registry.needs_config:
        return lines
    rows = key_table(cls.Config, without=("name", "label") if registry.group == "kdcore.losses" else ())
    if not rows:
        return [*lines, "It has no keys.", ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{key}` | {_cell(kind)} | {f'`{_cell(default)}`' if default else ''} | {_cell(meaning)} |"
        for key, kind, default, meaning in rows
    ]
    return [*lines, ""]


def _component_page(registry: Registry) -> str:
    lines = [f"# {registry.kind.capitalize()} components", ""]
    lines += [f"Entry point group `{registry.group}`. Keys are those of the section in a recipe.", ""]
    for entry in registry.entries():
        lines += [f"## {entry.name}", "", *_component(registry, entry)]
    return "\n".join(lines)


def component_packages() -> dict[str, list[tuple[Registry, Entry]]]:
    """Return the components of each package without public Python names, by the name of its module."""
    found: dict[str, list[tuple[Registry, Entry]]] = {}
    for registry in ALL.values():
        for entry in registry.entries():
            module = entry.value.partition(":")[0].partition(".")[0]
            if module not in ("kdcore", *PUBLIC_PACKAGES):
                found.setdefault(module, []).append((registry, entry))
    return dict(sorted(found.items()))


def _package_page(module: str, components: list[tuple[Registry, Entry]]) -> str:
    """Describe the components of a package, the functions of its losses, and its commands."""
    lines = [f"# {module}", "", inspect.cleandoc(importlib.import_module(module).__doc__ or ""), ""]
    functions = []
    for registry, entry in components:
        lines += [f"## {registry.kind} {entry.name}", ""]
        if registry is commands:
            lines += ["```text", _help(entry.name), "```", ""]
            continue
        lines += _component(registry, entry)
        functions += [entry.name] if registry is losses and losses.get(entry.name).function else []
    if functions:
        lines += ["## Losses as functions", "", "```{eval-rst}", ".. currentmodule:: kdcore.functional", ""]
        lines += [line for name in functions for line in (f".. autofunction:: {name}", "")]
        lines += ["```", ""]
    return "\n".join(lines)


def _keys_page() -> str:
    lines = ["# Keys of the core", "", "Every key of a recipe that belongs to no component.", ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, kind, default, meaning in key_table(RecipeSettings):
        lines.append(f"| `{key}` | {_cell(kind)} | `{_cell(default)}` | {_cell(meaning)} |")
    return "\n".join([*lines, ""])


def _command_page() -> str:
    lines = ["# Options of all commands", "", "The output of `--help`.", ""]
    for name in commands.names():
        lines += [f"## kdcore {name}", "", "```text", _help(name), "```", ""]
    return "\n".join(lines)


def _help(command: str) -> str:
    os.environ["COLUMNS"] = "100"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        run_kdcore([*command.split(), "--help"])
    return text.getvalue().rstrip()


def _slug(text: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _recipes_page() -> str:
    lines = ["# Shipped recipes", ""]
    lines += ["A recipe extends a shipped one by `extends: kdcore:NAME`, and `kdcore-train kdcore:NAME` trains it.", ""]
    for file in sorted((ROOT / "recipes").rglob("*.yaml")):
        name = file.relative_to(ROOT / "recipes").as_posix()
        lines += [f"## {name}", "", "```yaml", file.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def generated() -> Iterator[tuple[str, str]]:
    """Yield the generated pages, as path in the site and text."""
    for page, names in api_pages().items():
        yield f"reference/python/{page}.md", _api_page(API_PAGES[page][0], "kdcore", names)
    for module in PUBLIC_PACKAGES:
        package: Any = importlib.import_module(module)
        yield f"reference/python/{module}.md", _api_page(module, module, list(package.__all__))
    for module, components in component_packages().items():
        yield f"reference/packages/{module}.md", _package_page(module, components)
    for registry in ALL.values():
        if registry.needs_config and registry.entries():
            yield f"reference/components/{registry.kind}.md", _component_page(registry)
    kinds = [registry.kind for registry in ALL.values() if registry.needs_config and registry.entries()]
    folders = {
        "reference/python": ("Python", [*API_PAGES, *PUBLIC_PACKAGES]),
        "reference/components": ("Components", kinds),
        "reference/packages": ("Components by package", list(component_packages())),
        "packages": ("Packages", list(PACKAGES)),
    }
    for folder, (title, names) in folders.items():
        yield f"{folder}/index.md", "\n".join([f"# {title}", "", "```{toctree}", ":maxdepth: 2", *names, "```", ""])
    yield from benchmark_files(json.loads((DOCS / "benchmarks" / "history.json").read_text(encoding="utf-8"))).items()
    yield "reference/keys.md", _keys_page()
    yield "reference/commands.md", _command_page()
    yield "reference/shipped-recipes.md", _recipes_page()


def stage(folder: Path) -> None:
    """Write all sources of the site into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for page, place in pages():
        text = translated((ROOT / page).read_text(encoding="utf-8"), page, place)
        _write(folder / place, text)
        for target in re.findall(r"\]\((?:\.\./)*files/([^)#]+)\)", text):
            (folder / "files" / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / target, folder / "files" / target)
    for place, text in generated():
        _write(folder / place, text)
    for file in sorted(DOCS.glob("*.svg")):
        shutil.copy(file, folder)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    sys.exit(stage(parser.parse_args().folder))
