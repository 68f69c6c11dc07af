"""Implement `kdcore` and `kdcore-train`: find and run the command, and turn errors into messages and exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata

from kdcore.commands.base import Command
from kdcore.commands.subcommands import added_subcommands, split_arguments
from kdcore.errors import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_MACHINE, InputError, KdcoreError, PluginError
from kdcore.faults import DISK_ERRORS, TRACEBACK, plugin_faults
from kdcore.registry import Entry, commands, describe_error, known_package
from kdcore.training.runtime.shutdown import ending_on_request

EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdcore ARGV` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _dispatch(arguments))


def main_train(argv: Sequence[str] | None = None) -> int:
    """Run `kdcore-train ARGV`, which is `kdcore train ARGV`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _run("train", arguments, "kdcore-train"))


def _guarded(run: Callable[[], int]) -> int:
    try:
        with ending_on_request():
            code = run()
        sys.stdout.flush()
        return code
    except KdcoreError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        problems = error.problems if isinstance(error, InputError) else [error]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        print(f"interrupted{f' by {interruption}' if str(interruption) else ''}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. Python must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(f"error: {error.filename}: the path is too long", file=sys.stderr)
            return EXIT_INPUT
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error.filename or 'the disk'}: {error.strerror}", file=sys.stderr)
        return EXIT_MACHINE


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else EXIT_INPUT
    if first == "--version":
        print(f"kdcore {metadata.version('kdcore')}")
        return 0
    name, rest = split_arguments(first, arguments[1:])
    return _run(name, rest, f"kdcore {name}")


def _run(name: str, arguments: list[str], program: str) -> int:
    cls = commands.get(name)
    with plugin_faults(cls):
        return _run_command(cls(), name, arguments, program)


def _run_command(command: Command, name: str, arguments: list[str], program: str) -> int:
    parser = argparse.ArgumentParser(
        program, description=type(command).__doc__, epilog=_added(name), formatter_class=_Formatter
    )
    command.add_arguments(parser)
    try:
        parsed = _parse(parser, arguments)
    except SystemExit as stop:  # argparse has printed an error or the help
        return stop.code if isinstance(stop.code, int) else EXIT_INPUT
    try:
        return command.run(parsed)
    except ImportError as error:
        found = commands.find(name)
        if not isinstance(found, Entry) or found.distribution == "kdcore":
            raise
        raise PluginError(
            f"command `{name}` of {found.package} cannot import its dependencies: {describe_error(error)}",
            hint="Find a broken package with `kdcore plugins check`, or a missing one with `pip check`.",
        ) from error


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_intermixed_args(arguments)  # `RECIPE --smoke key=value` in any order
    except TypeError:  # a parser with subcommands requires a fixed order
        return parser.parse_args(arguments)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Show docstrings as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        first, _, rest = text.partition("\n")
        return first + "\n" + textwrap.dedent(rest) if rest else first


def _overview() -> str:
    """Compose the text of `kdcore --help`. To keep it fast, only commands of our own packages are imported."""
    entries = [entry for entry in commands.entries() if " " not in entry.name]
    lines = ["usage: kdcore COMMAND ...", "", "Distil BERT-like encoders.", "", "commands:"]
    for entry in entries:
        alone = commands.providers(entry.name) == [entry]
        name = entry.name if alone else f"{entry.distribution}:{entry.name}"
        lines.append(f"  {name:<10} {_help(entry, name)}")
    lines += ["", "`kdcore COMMAND --help` describes a command; `kdcore --version` prints the version."]
    return "\n".join(lines)


def _added(group: str) -> str | None:
    """Compose the part of `kdcore GROUP --help` that lists subcommands of packages, without importing them."""
    entries = added_subcommands(group)
    if not entries:
        return None
    lines = [f"  {entry.name.partition(' ')[2]:<10} from the package {entry.package}" for entry in entries]
    return "\n".join(["subcommands from packages:", *lines, f"`kdcore {group} SUBCOMMAND --help` describes one."])


def _help(entry: Entry, name: str) -> str:
    if entry.distribution not in ("kdcore", known_package(entry.group, entry.name)):
        return f"from the package {entry.package}"
    try:
        cls: type[Command] = commands.get(name)
    except KdcoreError:
        return "broken; `kdcore plugins check` shows the error"
    return cls.help


if __name__ == "__main__":
    sys.exit(main())
