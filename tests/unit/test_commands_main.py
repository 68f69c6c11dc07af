"""The command line: finding commands, exit codes, messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdcore import registry
from kdcore.commands.main import main, main_train
from kdcore.errors import InfrastructureError, Problem, RecipeError, TrainingError

COMMAND = """
from kdcore.commands.base import Command
class Greet(Command):
    '''Greets.'''
    help = "greet somebody"
    def add_arguments(self, parser):
        parser.add_argument("who")
        parser.add_argument("more", nargs="*")
        parser.add_argument("--loud", action="store_true")
    def run(self, arguments):
        print(arguments.who, *arguments.more, arguments.loud)
        return 7
"""


def raising(error: BaseException) -> type:
    from kdcore.commands.base import Command

    class Raising(Command):
        help = "raise"

        def run(self, arguments):
            raise error

    return Raising


@pytest.fixture
def run_raising(monkeypatch):
    def run(error: BaseException) -> int:
        monkeypatch.setattr(registry.commands, "_registered", {})
        registry.register_command("raising")(raising(error))
        return main(["raising"])

    return run


def test_help_lists_every_command_with_what_it_does(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("train", "prepare", "plugins", "recipe", "export"):
        assert f"  {name} " in text
    assert "train the student" in text


def test_no_command_at_all_is_a_mistake_that_is_answered_with_help(capsys):
    assert main([]) == 2
    assert "usage: kdcore COMMAND" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdcore {version('kdcore')}\n"


def test_a_package_adds_a_command_that_help_lists_without_importing_it(packages, capsys):
    packages.install("kdcore-greet", {"kdcore.commands:greet": "greet_a:Greet"}, {"greet_a.py": COMMAND})
    assert main(["--help"]) == 0
    assert "greet      from the package kdcore-greet 1.0" in capsys.readouterr().out
    assert "greet_a" not in sys.modules
    assert main(["greet", "world", "--loud", "again"]) == 7
    assert capsys.readouterr().out == "world again True\n"


def test_a_broken_command_breaks_no_other(packages, capsys):
    packages.install("kdcore-greet", {"kdcore.commands:greet": "greet_b:Greet"}, {"greet_b.py": "1 / 0"})
    assert main(["--help"]) == 0
    assert main(["greet"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_a_near_one(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean `train`?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["recipe"], ["train", "r.yaml", "--processes", "x"]])
def test_wrong_arguments_are_input_errors(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: kdcore" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "--help"], ["recipe", "--help"], ["plugins", "-h"]])
def test_every_command_explains_itself(arguments, capsys):
    assert main(arguments) == 0
    assert f"usage: kdcore {arguments[0]}" in capsys.readouterr().out


def test_kdcore_train_is_kdcore_train(capsys):
    assert main_train(["--help"]) == 0
    assert "usage: kdcore-train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RecipeError([Problem("first", "r.yaml:1"), Problem("second")]), 2, "error: r.yaml:1: first\nerror: second\n"),
        (InfrastructureError("a process died"), 1, "error: a process died\n"),
        (TrainingError("the loss is not finite"), 3, "error: the loss is not finite\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_messages_and_exit_codes(run_raising, capsys, error, code, message):
    assert run_raising(error) == code
    assert capsys.readouterr().err == message


def test_an_unexpected_error_in_the_core_keeps_its_traceback(monkeypatch):
    def fail(path, overrides, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("kdcore.commands.recipe.load_recipe", fail)
    with pytest.raises(ZeroDivisionError):
        main(["recipe", "check", "recipe.yaml"])


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m kdcore.commands.main recipe schema | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("{")
    assert done.stderr == ""
    assert done.returncode in (0, 141)


@pytest.mark.parametrize("arguments", [["summary"], ["compare"], ["runs", "show"]])
def test_a_too_long_path_is_a_users_mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "x" * 300]) == 2
    assert "Traceback" not in capsys.readouterr().err
