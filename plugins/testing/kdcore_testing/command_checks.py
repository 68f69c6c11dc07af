"""Check the requirements on commands."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from kdcore import EXIT_INPUT, Command, InputError, KdcoreError, find_component
from kdcore_testing.failures import failing_as

_SLOW = ("torch", "transformers", "deepspeed", "datasets")
_DECLARE = """\
import argparse, importlib, json, sys
module, name, slow = sys.argv[1:]
command = getattr(importlib.import_module(module), name)()
parser = argparse.ArgumentParser()
command.add_arguments(parser)
parser.format_help()
print(json.dumps([one for one in json.loads(slow) if one in sys.modules]))
"""


def check_command(
    name: str | type[Command],
    *,
    valid: Sequence[Sequence[str]] = (),
    mistakes: Sequence[Sequence[str]] = (),
) -> None:
    """Check the requirements on every command.

    1. `help` is one line, and the class has a docstring, which `--help` shows. The help of all arguments can be
       printed.
    2. Neither importing the command's module nor calling `add_arguments` imports torch or another slow module. This
       runs in a new process, which imports the module by its name.
    3. Valid arguments parse.
    4. A user's mistake is rejected when arguments are parsed, or `run` raises an `InputError` with a message; its exit
       code is 2.

    Args:
        name: registered name, or class.
        valid: lists of valid arguments, without the command's name. They are parsed, but not run.
        mistakes: lists of arguments with a user's mistake, such as a file that does not exist. They are run.

    Raises:
        AssertionError: a requirement is violated; the message names it.
    """
    cls: type[Command] = find_component("kdcore.commands", name).cls if isinstance(name, str) else name
    one_line: Any = getattr(cls, "help", None)
    assert isinstance(one_line, str), "`help` is not a line that describes the command"
    assert one_line.strip(), "`help` is not a line that describes the command"
    assert "\n" not in one_line, "`help` has more than one line"
    assert (cls.__doc__ or "").strip(), "the class has no docstring, which `--help` shows"
    _check_help(cls)
    _check_imports(cls)
    for arguments in valid:
        errors = StringIO()
        parsed = _parse(cls, arguments, errors)
        assert parsed is not None, f"the arguments {list(arguments)} do not parse: {_last_line(errors)}"
    for arguments in mistakes:
        _check_mistake(cls, arguments)


def _check_help(cls: type[Command]) -> None:
    parser = argparse.ArgumentParser()
    with failing_as("`add_arguments` fails"):
        cls().add_arguments(parser)
    try:
        parser.format_help()
    except Exception as error:
        raise AssertionError(
            f"the help of the arguments cannot be printed: {type(error).__name__}: {error} (a `%` has to be `%%`)"
        ) from error


def _check_imports(cls: type[Command]) -> None:
    command = [sys.executable, "-c", _DECLARE, cls.__module__, cls.__qualname__, json.dumps(_SLOW)]
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, (
        f"a new process cannot declare the arguments of {cls.__module__}.{cls.__qualname__}: "
        f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found, f"the command's module or `add_arguments` imports {found[0]}: import it inside `run`"


def _parse(cls: type[Command], arguments: Sequence[str], errors: StringIO) -> argparse.Namespace | None:
    """Parse arguments as `kdcore` does; None if they are rejected."""
    parser = argparse.ArgumentParser(cls.__name__)
    cls().add_arguments(parser)
    with redirect_stderr(errors):
        try:
            try:
                return parser.parse_intermixed_args(list(arguments))
            except TypeError:  # a parser with subcommands
                return parser.parse_args(list(arguments))
        except SystemExit as stop:
            code = stop.code
    assert code == EXIT_INPUT, f"parsing the arguments {list(arguments)} ends with exit code {code}, not {EXIT_INPUT}"
    return None


def _check_mistake(cls: type[Command], arguments: Sequence[str]) -> None:
    where = f"with the mistake {list(arguments)}"
    parsed = _parse(cls, arguments, StringIO())
    if parsed is None:
        return
    ending, found = "", None
    try:
        ending = f"returns {cls().run(parsed)} and raises no InputError"
    except InputError as error:
        found = error
    except KdcoreError as error:
        ending = f"raises {type(error).__name__} with exit code {error.exit_code}, not an InputError"
    except (Exception, SystemExit) as error:
        ending = f"raises {type(error).__name__}, not an InputError: {error}"
    assert found is not None, f"{where}, `run` {ending}"
    assert found.exit_code == EXIT_INPUT, f"{where}, the exit code is {found.exit_code}, not {EXIT_INPUT}"
    assert str(found).strip(), f"{where}, the InputError has no message"


def _last_line(errors: StringIO) -> str:
    return (errors.getvalue().strip().splitlines() or ["no message"])[-1]
