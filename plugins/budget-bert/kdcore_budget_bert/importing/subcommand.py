"""`kdcore recipe import`: write a recipe for a command of the source system."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdcore import Command, InputError, atomic_write


class RecipeImportCommand(Command):
    """Write a recipe for a command of How to Distill your BERT or academic-budget-bert.

    The command is read from FILE, from --command, or from a pipe:

        pbpaste | kdcore recipe import > recipe.yaml

    docs/source-command.md describes how each flag is converted.
    """

    help = "write a recipe for a command of How to Distill your BERT or academic-budget-bert"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare FILE, --command, --output, --shards."""
        parser.add_argument("file", metavar="FILE", nargs="?", help="file with the command; default: stdin")
        parser.add_argument("--command", help="the command itself")
        parser.add_argument("--output", metavar="FILE", help="where to write the recipe; default: stdout")
        parser.add_argument(
            "--shards",
            type=int,
            metavar="N",
            help="number of the command's training shards; by default, the shards in its data folder are counted",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Read the command and write the recipe."""
        from kdcore_budget_bert.importing.conversion import import_command

        if arguments.command is not None and arguments.file is not None:
            raise InputError("`kdcore recipe import` takes a file or a --command, not both")
        if arguments.shards is not None and arguments.shards < 1:
            raise InputError("--shards must be at least 1", key="--shards")
        if arguments.command is not None:
            text, source = arguments.command, "command"
        else:
            text, source = _read_command(arguments.file)
        recipe = import_command(text, source, arguments.shards)
        if arguments.output is None:
            print(recipe, end="")
        else:
            _write_new(Path(arguments.output), recipe)
            print(f"{arguments.output}: written; its first lines list the differences from the command")
        return 0


def _read_command(file: str | None) -> tuple[str, str]:
    """Read the command's text; return it with the name of its source for messages."""
    if file is None or file == "-":
        if sys.stdin.isatty():
            print("reading the command from the keyboard; press Ctrl-D when finished", file=sys.stderr)
        data, source = sys.stdin.buffer.read(), "stdin"
    else:
        source = file
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise InputError(f"the file cannot be read: {error.strerror}", where=file) from error
    try:
        return data.decode("utf-8-sig"), source
    except UnicodeDecodeError:
        raise InputError("this is not text in UTF-8", where=source) from None


def _write_new(file: Path, text: str) -> None:
    """Write a file that does not exist yet, atomically."""
    if file.exists():
        raise InputError("the file exists already", where=str(file), hint="Remove it, or choose another --output.")
    try:
        with atomic_write(file) as whole:
            whole.write(text.encode())
    except OSError as error:
        raise InputError(f"the file cannot be written: {error.strerror}", where=str(file)) from error
