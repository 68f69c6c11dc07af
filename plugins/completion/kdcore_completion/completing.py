"""Complete a command line: the program that the shell's code calls, `kdcore-complete`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter

import kdcore
from kdcore_completion.recipe_words import recipe_words

_KINDS = ("models", "tasks", "losses", "optimizers", "schedulers", "corpora", "trackers", "transforms", "commands")


def main() -> None:
    """Print the completions of the command line in argcomplete's environment variables, and exit."""
    argcomplete.autocomplete(command_parser(os.environ.get("COMP_LINE", "")), always_complete_options=False)


def command_parser(line: str) -> argparse.ArgumentParser:
    """Build the parser of a command line, with all commands or, for `kdcore-train`, the arguments of that command.

    Args:
        line: the command line as typed so far.
    """
    program = os.path.basename(line.split(" ")[0])
    parser = argparse.ArgumentParser(program)
    if program == "kdcore-train":
        _declare(parser, "train", [])
        return parser
    names = kdcore.component_names("kdcore.commands")
    commands = parser.add_subparsers()
    for name in names:
        if " " not in name:
            added = [other.partition(" ")[2] for other in names if other.startswith(f"{name} ")]
            _declare(commands.add_parser(name), name, added)
    return parser


def _declare(parser: argparse.ArgumentParser, name: str, added: list[str]) -> None:
    """Declare the arguments of a command, including subcommands that packages add, and attach completers."""
    try:
        command: kdcore.Command = kdcore.get_command(name)()
        command.add_arguments(parser)
    except kdcore.KdcoreError:
        return  # a broken package has no arguments; `kdcore plugins check` names it
    for action in parser._actions:
        if action.dest == "action" and action.choices is not None:
            action.choices = [*action.choices, *added]
        completer = _COMPLETERS.get(action.dest)
        if completer and action.choices is None and not action.option_strings:
            action.completer = completer  # type: ignore[attr-defined]


def complete_overrides(prefix: str, **_: Any) -> list[str]:
    """Return keys as `key=`; after the equals sign, return the values of a key with a fixed set of values."""
    key, equals, _value = prefix.partition("=")
    words = recipe_words()
    if equals:
        return [f"{key}={value}" for value in words.get(key, ())]
    return [f"{one}=" for one in words if one]


def complete_recipes(prefix: str, **arguments: Any) -> Iterable[str]:
    """Return YAML files, and shipped recipes as `kdcore:NAME`."""
    shipped = (
        recipe_words()[""] if prefix.startswith("kdcore:") else ["kdcore:"] if "kdcore:".startswith(prefix) else []
    )
    return [*shipped, *FilesCompleter(("yaml", "yml"))(prefix, **arguments)]


def complete_components(prefix: str, **_: Any) -> list[str]:
    """Return the names of all components."""
    return sorted({name for kind in _KINDS for name in kdcore.component_names(f"kdcore.{kind}")})


_COMPLETERS: dict[str, Callable[..., Iterable[str]]] = {
    "overrides": complete_overrides,
    "recipe": complete_recipes,
    "name": complete_components,
}
