"""`pip install "kdcore[all]"` brings every package of this repository."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(install: Callable[..., Any]) -> Any:
    return install("kdcore[all]", data=True)


def declared() -> dict[str, set[str]]:
    """Names of components in the pyproject.toml files, by group."""
    found: dict[str, set[str]] = {}
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), ROOT / "launch" / "pyproject.toml"]:
        groups = tomllib.loads(file.read_text(encoding="utf-8"))["project"].get("entry-points", {})
        for group, names in groups.items():
            if group == "kdcore.plugin_api":  # the version that a package was built for is not a component
                continue
            found.setdefault(group, set()).update(names)
    return found


def test_every_component_can_be_imported(installed: Any, tmp_path: Path) -> None:
    done = installed.run("kdcore", "plugins", "check", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    number = sum(map(len, declared().values()))
    assert done.stdout.splitlines()[-1] == f"{number} components, 0 broken"


def test_every_command_has_its_help(installed: Any, tmp_path: Path) -> None:
    overview = installed.run("kdcore", "--help", cwd=tmp_path).stdout
    assert "broken" not in overview
    for name in sorted(declared()["kdcore.commands"]):
        done = installed.run("kdcore", *name.split(), "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: kdcore {name} ")
        if " " not in name:
            assert f"\n  {name} " in overview


def test_shipped_recipes_are_checked(installed: Any, tmp_path: Path) -> None:
    done = installed.run("kdcore", "recipe", "check", "kdcore:quickstart.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("how-to-distill-your-bert/att_kl.yaml", "minilm_v2/6x384.yaml", "pkd/6x768.yaml"):
        done = installed.run("kdcore", "recipe", "check", f"kdcore:{name}", cwd=tmp_path)
        assert "unknown" not in done.stderr
        assert "Traceback" not in done.stderr
    schema = json.loads(installed.run("kdcore", "recipe", "schema", cwd=tmp_path).stdout)
    for group, names in declared().items():
        for name in names if group in ("kdcore.losses", "kdcore.tasks", "kdcore.corpora") else ():
            assert any(key.startswith(f"{group}:") and key.endswith(f":{name}") for key in schema["$defs"]), name


def test_a_new_package_is_written_from_the_templates(installed: Any, tmp_path: Path) -> None:
    done = installed.run("kdcore", "plugins", "new", "kdcore-mine", "--kind", "loss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kdcore-mine" / "pyproject.toml").is_file()
