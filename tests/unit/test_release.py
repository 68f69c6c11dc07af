"""`.ci/release.py`: the version of all packages, and what stops a release."""

from __future__ import annotations

import datetime
import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TODAY = datetime.date(2026, 12, 1)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["release"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the files that state the version."""
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), ROOT / "launch" / "pyproject.toml"]:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased (9.8.0)\n\n- new\n\n## 0.1.0\n", encoding="utf-8"
    )
    return tmp_path


def test_a_version_is_written_everywhere(release: ModuleType, repository: Path) -> None:
    release.set_version(repository, "9.8.7", TODAY)
    files = sorted(repository.rglob("pyproject.toml"))
    found = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files]
    assert len(found) == len(list(ROOT.glob("plugins/*/pyproject.toml"))) + 2
    assert {project["version"] for project in found} == {"9.8.7"}
    (core,) = [project for project in found if project["name"] == "kdcore"]
    every = [Requirement(line) for line in core["optional-dependencies"]["all"]]
    assert len(every) == len(found) - 1
    assert all(one.specifier.contains("9.8.7") and not one.specifier.contains("9.9.0") for one in every)
    assert all(not one.specifier.contains("9.7.9") for one in every)
    assert yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))["version"] == "9.8.7"
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog == "# Changelog\n\n## 9.8.7 (2026-12-01)\n\n- new\n\n## 0.1.0\n"


def test_only_versions_of_packages_change(release: ModuleType, repository: Path) -> None:
    before = (repository / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    release.set_version(repository, "9.8.7", TODAY)
    after = (repository / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert all(line.startswith(("version = ", '    "kdcore-')) for line in changed)


@pytest.mark.parametrize("version", ["9.8", "v9.8.7", "9.8.7rc1"])
def test_another_form_of_version_is_refused(release: ModuleType, repository: Path, version: str) -> None:
    with pytest.raises(SystemExit, match=r"expected MAJOR\.MINOR\.PATCH"):
        release.set_version(repository, version, TODAY)


def test_a_version_without_changes_is_refused(release: ModuleType, repository: Path) -> None:
    release.set_version(repository, "9.8.7", TODAY)
    with pytest.raises(SystemExit, match="no changes to release"):
        release.set_version(repository, "9.8.8", TODAY)


def test_nothing_is_built_of_different_versions_or_without_a_section(release: ModuleType, repository: Path) -> None:
    dist = repository / "dist"
    dist.mkdir()
    (dist / "kept").touch()
    file = repository / "launch" / "pyproject.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('version = "', 'version = "8.'), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"versions differ \(expected .* of launch\)"):
        release.build(repository, dist)
    release.set_version(repository, "9.8.7", TODAY)
    (repository / "CHANGELOG.md").write_text("# Changelog\n\n## 9.8.70\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="no section for this version"):
        release.build(repository, dist)
    assert (dist / "kept").exists()


def test_a_package_that_cannot_be_built_is_named(release: ModuleType, repository: Path) -> None:
    release.set_version(repository, "9.8.7", TODAY)
    with pytest.raises(SystemExit, match="cannot be built"):  # the copy has no sources
        release.build(repository, repository / "dist")
