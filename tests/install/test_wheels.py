"""What the wheels hold and declare."""

from __future__ import annotations

import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
FOLDERS = {
    tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]: file.parent
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), ROOT / "launch" / "pyproject.toml"]
}
# Folders outside of the package of modules that its wheel holds.
ADDED = {"kdcore": "recipes", "kdcore-launch": "profiles"}


@dataclass(frozen=True)
class Wheel:
    """A wheel's files, without those of its metadata, and its metadata."""

    files: set[str]
    others: set[str]
    metadata: Message

    @property
    def requirements(self) -> list[Requirement]:
        return [Requirement(line) for line in self.metadata.get_all("Requires-Dist", [])]


@pytest.fixture(scope="session")
def opened(wheels: Path) -> dict[str, Wheel]:
    """Every wheel by the name of its package."""
    found = {}
    for path in wheels.glob("*.whl"):
        with zipfile.ZipFile(path) as file:
            names = {name for name in file.namelist() if not name.endswith("/")}
            info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
            (metadata,) = [name for name in info if name.endswith("/METADATA")]
            parsed = BytesParser().parsebytes(file.read(metadata))
        others = {name.partition("/")[2] for name in info}
        found[parsed["Name"]] = Wheel(names - info, others, parsed)
    return found


def test_every_package_has_a_wheel(opened: dict[str, Wheel]) -> None:
    assert set(opened) == set(FOLDERS)
    assert len(opened) >= 13


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_wheel_holds_the_package_and_nothing_else(name: str, opened: dict[str, Wheel]) -> None:
    package = name.replace("-", "_")

    def below(folder: Path) -> set[str]:
        paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        return {f"{package}/{path.as_posix()}" for path in paths if "__pycache__" not in path.parts}

    expected = below(FOLDERS[name] / package)
    if name in ADDED:
        added = FOLDERS[name] / ADDED[name]
        expected |= {file.replace(package, f"{package}/{added.name}", 1) for file in below(added)}
    assert opened[name].files == expected
    assert f"{package}/py.typed" in expected
    assert "licenses/LICENSE" in opened[name].others
    project = tomllib.loads((FOLDERS[name] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ("entry_points.txt" in opened[name].others) == ("entry-points" in project)


def test_wheels_hold_what_code_reads_at_run_time(opened: dict[str, Wheel]) -> None:
    core = opened["kdcore"].files
    assert {"kdcore/known_packages.json", "kdcore/recipes/quickstart.yaml", "kdcore/recipes/suites/quick.yaml"} <= core
    templates = {
        f"kdcore_testing/scaffold/templates/{name}.txt" for name in ("pyproject.toml", "loss.py", "test_loss.py")
    }
    assert templates <= opened["kdcore-testing"].files
    assert {f"kdcore_evaluation/report/page.{kind}" for kind in ("html", "css", "js")} <= set(
        opened["kdcore-evaluation"].files
    )
    assert "kdcore_launch/profiles/slurm-8xa100.yaml" in opened["kdcore-launch"].files


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_metadata_of_all_packages_agree(name: str, opened: dict[str, Wheel]) -> None:
    metadata, core = opened[name].metadata, opened["kdcore"].metadata
    for key in ("Version", "Requires-Python", "License-Expression", "Author"):
        assert metadata[key] == core[key], key
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = metadata.get_payload(decode=True)
    assert isinstance(readme, bytes)
    assert readme.strip() == (FOLDERS[name] / "README.md").read_bytes().strip()
    ours = [one for one in opened[name].requirements if one.name.startswith("kdcore")]
    assert all(one.name in FOLDERS and core["Version"] in one.specifier for one in ours)
    needed = {one.name for one in ours if one.marker is None}
    other = {
        "kdcore-supervised": {"kdcore-preparation"},
        "kdcore-evaluation": {"kdcore-embeddings", "kdcore-supervised"},
    }
    other["kdcore-embeddings"] = {"kdcore-preparation"}
    assert needed == (set() if name == "kdcore" else {"kdcore"} | other.get(name, set()))


def test_the_extra_all_brings_every_package(opened: dict[str, Wheel]) -> None:
    assert extra(opened["kdcore"], "all") == set(FOLDERS) - {"kdcore"}


def test_optional_readers_are_extras_of_preparation(opened: dict[str, Wheel]) -> None:
    assert extra(opened["kdcore-preparation"], "datasets") == {"datasets"}
    assert extra(opened["kdcore-preparation"], "hdf5") == {"h5py"}


def test_constraints_lie_within_the_declared_ranges(opened: dict[str, Wheel]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {
        one.name.lower().replace("_", "-"): one for line in lines if line[0] != "#" for one in [Requirement(line)]
    }
    outside: list[str] = []
    for wheel in opened.values():
        for one in wheel.requirements:
            version = tested.get(one.name.lower().replace("_", "-"))
            if version is not None and not compatible(one.specifier, version.specifier):
                outside.append(f"{wheel.metadata['Name']}: {one} (tested: {version})")
    assert outside == []


def extra(wheel: Wheel, name: str) -> set[str]:
    assert name in wheel.metadata.get_all("Provides-Extra")
    return {one.name for one in wheel.requirements if one.marker is not None and one.marker.evaluate({"extra": name})}


def compatible(declared: SpecifierSet, pinned: SpecifierSet) -> bool:
    (one,) = pinned
    return one.version in declared
