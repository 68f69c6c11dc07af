"""`.ci/run`: a second try for what fails, and a closing section about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = ("test", "test-processes", "test-browser", "test-docs", "test-faults", "test-resume", "test-slurm")
FLAKY = """
import pathlib

import pytest

def test_good():
    pass

@pytest.mark.parametrize("value", ["a b", "c"])
def test_flaky(value):
    seen = pathlib.Path(__file__).with_name(f"seen {value}")
    if not seen.exists():
        seen.touch()
        assert value == "c"
"""
BAD = "def test_bad():\n    assert False\n"
UNBALANCED = "def test_bad(:\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and a Makefile whose suites are one folder of tests each, empty if it is missing."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    pytest = f"{sys.executable} -m pytest -q"
    targets = [f"{name}:\n\t! test -d of-{name} || {pytest} of-{name} $(PYTEST_ARGUMENTS)\n" for name in SUITES]
    (tmp_path / "Makefile").write_text("\n".join(targets), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n", encoding="utf-8")
    return tmp_path


def write(project: Path, file: str, text: str) -> None:
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text(text, encoding="utf-8")


def run(project: Path) -> tuple[int, list[str]]:
    """Exit code and closing section, from the minutes on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE"))}
    done = subprocess.run([project / ".ci" / "run"], capture_output=True, text=True, env=environment, check=False)
    _, heading, closing = done.stdout.partition("== minutes\n")
    assert heading, done.stdout + done.stderr
    return done.returncode, closing.splitlines()


def test_without_failures_only_minutes_are_printed(project: Path) -> None:
    write(project, "of-test/test_good.py", "def test_good():\n    pass\n")
    code, closing = run(project)
    assert code == 0
    assert [line.split()[1:] for line in closing[: len(SUITES)]] == [["make", name] for name in SUITES]
    assert all(0 <= float(line.split()[0]) < 5 for line in closing[: len(SUITES)])
    assert closing[len(SUITES) :] == ["== passed only at the second try: 0"]


def test_what_passes_only_at_the_second_try_is_named(project: Path) -> None:
    write(project, "of-test/test_flaky.py", FLAKY)
    code, closing = run(project)
    assert code == 0
    name = "of-test/test_flaky.py::test_flaky[a b]"
    assert closing[len(SUITES) :] == ["== passed only at the second try: 1", f"  {name}"]


def test_a_failure_of_the_second_try_fails_the_run_and_others_are_still_named(project: Path) -> None:
    write(project, "of-test-faults/test_flaky.py", FLAKY)
    write(project, "of-test-faults/test_bad.py", BAD)
    code, closing = run(project)
    assert code == 1
    name = "of-test-faults/test_flaky.py::test_flaky[a b]"
    assert closing[len(SUITES) :] == ["== passed only at the second try: 1", f"  {name}"]


def test_a_suite_that_cannot_be_collected_fails_the_run(project: Path) -> None:
    write(project, "of-test/test_bad.py", UNBALANCED)
    code, closing = run(project)
    assert code == 1
    assert closing[len(SUITES) :] == ["== passed only at the second try: 0"]
