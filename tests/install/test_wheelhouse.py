"""A machine without a package index installs from a wheelhouse and trains."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PRESENT = ("torch", "pyarrow", "numpy", "scipy", "scikit-learn", "transformers", "sentencepiece")
"""With what these require, the packages of the machine."""


def closure(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """The installed distributions of these names and of everything that they require."""
    found: dict[str, metadata.Distribution] = {}
    queue = list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name not in found:
            found[name] = metadata.distribution(name)
            required = map(Requirement, found[name].requires or [])
            queue += [one.name for one in required if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def machine(new_environment: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A virtual environment with the packages of PRESENT, and their `pip freeze` beside it."""
    folder = tmp_path_factory.mktemp("machine")
    made = new_environment(folder)
    present = folder / "present"
    present.mkdir()
    distributions = closure(PRESENT)
    for distribution in distributions.values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (present / top).exists():
                (present / top).symlink_to(Path(str(distribution.locate_file(top))))
    (site,) = made.folder.glob("lib/python*/site-packages")
    (site / "present.pth").write_text(str(present), encoding="utf-8")
    lines = [f"{name}=={distribution.version}\n" for name, distribution in distributions.items()]
    (folder / "installed.txt").write_text("".join(lines), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def wheelhouse(machine: Any, package_index: None) -> Path:
    folder = machine.folder.parent
    command = [
        sys.executable,
        str(ROOT / "launch" / "offline" / "wheelhouse.py"),
        "--platform",
        "manylinux_2_28_x86_64",
    ]
    command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    command += ["--installed", str(folder / "installed.txt"), "--output", str(folder / "wheelhouse")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert "left out" not in done.stdout
    return folder / "wheelhouse"


def test_it_is_small_and_every_wheel_has_its_hash(wheelhouse: Path) -> None:
    wheels = list(wheelhouse.glob("*.whl"))
    assert sum(wheel.stat().st_size for wheel in wheels) <= 60e6
    lines = (wheelhouse / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = {line.split(" --hash=sha256:")[1] for line in lines}
    assert found == {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}
    names = {line.split("==")[0] for line in lines}
    assert not names & set(map(canonicalize_name, closure(PRESENT)))
    projects = [file.parent.name for file in ROOT.glob("plugins/*/pyproject.toml")]
    assert {"kdcore", "kdcore-launch", "deepspeed", *(f"kdcore-{name}" for name in projects)} <= names


def test_it_installs_without_an_index_and_trains_without_a_network(
    machine: Any,
    wheelhouse: Path,
    run_pip: Callable[..., subprocess.CompletedProcess[str]],
    small_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # refuses every connection
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    options = ("--no-index", "--no-deps", "--require-hashes", "--no-compile", "--find-links", wheelhouse)
    python = machine.folder / "bin" / "python"
    done = run_pip("--python", python, "install", "--quiet", *options, "--requirement", wheelhouse / "requirements.txt")
    assert done.returncode == 0, done.stderr
    done = run_pip("--python", python, "check")
    assert done.returncode == 0, done.stdout
    done = machine.run("kdcore", "plugins", "check", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.rstrip().endswith(" 0 broken")
    done = machine.run("kdcore-train", small_recipe, "--smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    used = machine.run("python", "-c", "import kdcore, torch; print(kdcore.__file__, torch.__file__)", cwd=tmp_path)
    ours, torch = used.stdout.split()
    assert ours.startswith(str(machine.folder))
    assert torch.startswith(str(machine.folder.parent / "present"))
