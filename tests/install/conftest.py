"""Wheels of every package, and virtual environments into which pip installs them from nothing but an index."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT, *sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml")), ROOT / "launch"]


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the pip of the running environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds what pip has installed into it and nothing else."""

    folder: Path

    def run(self, program: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment without what this process adds to Python's path."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KDCORE"))}
        environment |= {"KDCORE_CACHE": str(self.folder.parent / "cache")}
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600, check=False
        )


@pytest.fixture(scope="session")
def new_environment() -> Callable[[Path], Installation]:
    """Create a virtual environment without any package in a folder."""

    def make(folder: Path) -> Installation:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        return Installation(folder / "venv")

    return make


@pytest.fixture(scope="session")
def run_pip() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the pip of the running environment."""
    return pip


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one wheel of each package: that of a release in KDCORE_WHEELS, else built here."""
    if built := os.environ.get("KDCORE_WHEELS"):
        return Path(built)
    folder = tmp_path_factory.mktemp("wheels")
    done = pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, *PROJECTS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def package_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip without a package index."""
    probe = pip("download", "--quiet", "--no-deps", "--retries", "0", "--dest", tmp_path_factory.mktemp("p"), "tqdm")
    if probe.returncode:
        pytest.skip(f"pip finds no package index: {(probe.stderr.strip() or 'no message').splitlines()[-1]}")


@pytest.fixture(scope="session")
def install(
    wheels: Path,
    package_index: None,
    new_environment: Callable[[Path], Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Installation]:
    """Install into a new virtual environment what `pip install` accepts. Skips without a package index."""

    def make(*packages: str, data: bool = False) -> Installation:
        made = new_environment(tmp_path_factory.mktemp("installed"))
        into = ("--python", made.folder / "bin" / "python", "install", "--quiet", "--no-compile")
        found = ("--find-links", wheels, "--constraint", ROOT / "constraints.txt")
        demo = ("--no-deps", "--requirement", ROOT / "requirements-data.txt")
        for what in [(*found, *packages), *([demo] if data else [])]:
            done = pip(*into, *what)
            assert done.returncode == 0, done.stderr
        return made

    return make
