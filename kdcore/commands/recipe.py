"""`kdcore recipe`: check a recipe, show what it comes to, print the schema for editors, import a command."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kdcore.commands.base import Command, add_recipe_arguments
from kdcore.data.staging import whole_file
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe


class RecipeCommand(Command):
    """Look at recipes without training.

    check RECIPE [key=value ...]   say all that is wrong with a recipe
    show RECIPE [key=value ...]    print the resolved recipe with the origin of each value
    schema                         print a JSON Schema of recipes with everything that is installed, for editors
    import [FILE]                  write a recipe for a command of How to Distill your BERT or academic-budget-bert

    import reads the command from FILE, from --command, or from what is piped in:

        pbpaste | kdcore recipe import > recipe.yaml

    docs/source-command.md says what becomes of each of its flags.
    """

    help = "check a recipe, show it resolved, print the schema for editors, import a command of the source system"
    subcommands = ("check", "show", "schema", "import")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action, RECIPE, overrides, and the options of `import`."""
        parser.add_argument("action", choices=self.subcommands)
        add_recipe_arguments(parser, optional=True)
        parser.add_argument("--command", help="import: the command itself")
        parser.add_argument("--output", metavar="FILE", help="import: where to write the recipe, if not to stdout")
        parser.add_argument(
            "--shards",
            type=int,
            metavar="N",
            help="import: shards of training data that the command has; by default they are counted in its folder",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        if arguments.action == "import":
            return _import(arguments)
        for option in ("command", "output", "shards"):
            if getattr(arguments, option) is not None:
                raise InputError(f"`kdcore recipe {arguments.action}` takes no --{option}")
        if arguments.action == "schema":
            if arguments.recipe is not None:
                raise InputError("`kdcore recipe schema` takes no recipe: the schema is that of all recipes")
            return _schema()
        if arguments.recipe is None:
            raise InputError(f"`kdcore recipe {arguments.action}` needs the recipe's file")
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        if arguments.action == "show":
            print(recipe.annotated_yaml(), end="")
            return 0
        components = recipe.components()
        print(f"{recipe.path}: nothing is wrong with this recipe (losses: {', '.join(components.losses)})")
        return 0


def _schema() -> int:
    from kdcore.recipe.json_schema import recipe_json_schema

    schema, skipped = recipe_json_schema()
    for problem in skipped:
        print(f"warning: left out: {problem}", file=sys.stderr)
    print(json.dumps(schema, indent=2))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from kdcore.recipe.importing import import_command

    if arguments.overrides:
        raise InputError("`kdcore recipe import` takes no overrides: change the recipe that it writes")
    if arguments.command is not None and arguments.recipe is not None:
        raise InputError("`kdcore recipe import` takes a file or a --command, not both")
    if arguments.shards is not None and arguments.shards < 1:
        raise InputError("--shards must be at least 1", key="--shards")
    if arguments.command is not None:
        text, source = arguments.command, "command"
    else:
        text, source = _read_command(arguments.recipe)
    recipe = import_command(text, source, arguments.shards)
    if arguments.output is None:
        print(recipe, end="")
    else:
        _write_new(Path(arguments.output), recipe)
        print(f"{arguments.output}: written; its first lines say what it does otherwise than the command")
    return 0


def _read_command(file: str | None) -> tuple[str, str]:
    """The command's text, and what messages call its place."""
    if file in (None, "-"):
        if sys.stdin.isatty():
            print("reading the command from the keyboard; Ctrl-D ends it", file=sys.stderr)
        data, source = sys.stdin.buffer.read(), "stdin"
    else:
        assert file is not None
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
    """Write a file that does not exist yet, whole or not at all."""
    if file.exists():
        raise InputError("the file exists already", where=str(file), hint="Remove it, or choose another --output.")
    try:
        with whole_file(file) as whole:
            whole.write(text.encode())
    except OSError as error:
        raise InputError(f"the file cannot be written: {error.strerror}", where=str(file)) from error
