"""`check_command` passes commands of kdcore and its packages, and names the fault of a wrong one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kdcore_testing import check_command

from kdcore import Command

COMMANDS = {
    "recipe": ([["check", "recipe.yaml"]], [[], ["check", "no-such-recipe.yaml"], ["no-such-action"]]),
    "runs": ([["list"], ["list", "runs"]], [["list", "no-such-folder"]]),
    "export": ([["runs/one", "exported"]], [["no-such-run", "exported"]]),
    "summary": ([["runs/one"]], [["no-such-run"]]),
    "plugins new": ([["mine", "--kind", "loss"]], [[], ["mine"], ["json", "--kind", "loss"], ["mine", "--kind", "x"]]),
    "prepare": ([["prepare.yaml", "data"]], [["no-such-file.yaml", "data"], ["prepare.yaml"]]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_kdcore_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    valid, mistakes = COMMANDS[name]
    check_command(name, valid=valid, mistakes=mistakes)


RIGHT = '''\
import argparse
from pathlib import Path

from kdcore import Command, InfrastructureError, InputError


class Count(Command):
    """Count the lines of a file."""

    help = "count lines"

    def add_arguments(self, parser):
        parser.add_argument("file", type=Path, help="the file")
        parser.add_argument("--every", type=int, default=1)

    def run(self, arguments):
        if not arguments.file.is_file():
            raise InputError("the file does not exist", where=str(arguments.file))
        return 0
'''
REFUSAL = 'raise InputError("the file does not exist", where=str(arguments.file))'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported; those of the test are forgotten after it."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def written(folder: Path, code: str) -> type[Command]:
    (folder / "written_command.py").write_text(code, encoding="utf-8")
    importlib.invalidate_caches()
    found: type[Command] = importlib.import_module("written_command").Count
    return found


def check(command: type[Command]) -> None:
    check_command(command, valid=[["file", "--every", "3"]], mistakes=[["no-such-file"], ["file", "--every", "x"]])


def test_a_right_command_passes(folder: Path) -> None:
    check(written(folder, RIGHT))


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('"count lines"', '"count lines\\nof a file"', "`help` has more than one line"),
        ('    help = "count lines"\n', "", "`help` is not a line that describes the command"),
        ('    """Count the lines of a file."""\n', "", "the class has no docstring, which `--help` shows"),
        ("import argparse\n", "import torch\n", "imports torch: import it inside `run`"),
        ('"the file"', '"100% of it"', r"the help of the arguments cannot be printed: \w+: .*`%` has to be `%%`"),
        ('"--every", ', '"--every", "-h", ', "`add_arguments` fails: ArgumentError"),
        (", type=int, default=1", ', action="store_true"', r"\['file', '--every', '3'\] do not parse: .*arguments: 3"),
        (REFUSAL, "arguments.file.read_text()", r"mistake \['no-such-file'\], `run` raises FileNotFoundError, not an"),
        (REFUSAL, "raise SystemExit('no file')", r"\['no-such-file'\], `run` raises SystemExit, not an InputError"),
        (REFUSAL, "raise InfrastructureError('x')", "raises InfrastructureError with exit code 1, not an InputError"),
        (REFUSAL, "raise InputError('')", r"\['no-such-file'\], the InputError has no message"),
        (REFUSAL, "return 2", "`run` returns 2 and raises no InputError"),
    ],
)
def test_the_fault_of_a_wrong_command_is_named(folder: Path, right: str, wrong: str, words: str) -> None:
    assert right in RIGHT
    with pytest.raises(AssertionError, match=words):
        check(written(folder, RIGHT.replace(right, wrong, 1)))


def test_an_exit_code_other_than_2_of_a_wrong_argument_is_named(folder: Path) -> None:
    code = RIGHT.replace(
        "    def run(",
        "        parser.error = lambda message: parser.exit(1, message)\n\n    def run(",
    )
    with pytest.raises(AssertionError, match=r"parsing the arguments .* ends with exit code 1, not 2"):
        check(written(folder, code))
