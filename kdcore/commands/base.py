"""Define the interfaces of commands, options of `kdcore export`, and job queues."""

from __future__ import annotations

import argparse
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn, Protocol

from kdcore.errors import PluginError
from kdcore.registry import ALL, Entry, describe_error

_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")


class Command(ABC):
    """The command `kdcore NAME`, where NAME is the name of its entry point in the group `kdcore.commands`.

    An entry point named `GROUP SUBCOMMAND` adds a subcommand to the command GROUP: `"recipe import"` is
    `kdcore recipe import`, and its `run` receives only the arguments after `import`.

    The module of a command is imported for every `kdcore NAME`, including `kdcore NAME --help`. Import slow modules,
    such as torch, inside `run`.

    Attributes:
        help: one line that describes the command.
        subcommands: names of the command's own subcommands. A command with subcommands is a group: its first argument
            selects one of them, and packages can add further subcommands. A package cannot replace the command's own
            subcommands.
    """

    help: ClassVar[str]
    subcommands: ClassVar[Sequence[str]] = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 - not every command has any
        """Declare the command's arguments. Optional."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return the exit code.

        Raises:
            KdcoreError: shown without a traceback; its exit code is used.
        """


class ExportOption(ABC):
    """Options of `kdcore export` that a package adds (registry `kdcore.export_options`).

    The module is imported for every `kdcore export`, including `kdcore export --help`. Import slow modules, such as
    torch, inside `apply`.
    """

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare options, such as `--int8`. `kdcore export RUN FOLDER` must remain valid without them."""

    @abstractmethod
    def apply(self, folder: Path, arguments: argparse.Namespace) -> None:
        """Change the exported folder before it is published. Called for every export, with or without options.

        Args:
            folder: a complete export under a temporary name: config, weights in float32, tokenizer, model card. After
                the last option has been applied, the folder is renamed to its final name. If any option raises an
                exception, the folder is removed.
            arguments: the parsed arguments of `kdcore export`; `arguments.run` is the run folder.

        Raises:
            KdcoreError: shown without a traceback; its exit code is used.
        """


class JobQueue(ABC):
    """A scheduler's queue of jobs, such as SLURM's (registry `kdcore.job_queues`).

    `kdcore runs list` queries every installed queue to distinguish queued runs from lost ones.
    """

    @abstractmethod
    def states(self) -> Mapping[str, str] | None:
        """Return the state of each of the user's jobs by job id: `PENDING` until it starts, any other text afterwards.

        Return None if the scheduler is not available here.
        """


class _HasOptions(Protocol):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...


class _Probe(argparse.ArgumentParser):
    """A copy of a parser for trying out new arguments. Raises ValueError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def add_options(option: _HasOptions, entry: Entry, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add a package's options to a command, unless they would change how the command parses `words`.

    Raises:
        PluginError: the options cannot be used; the parser is unchanged.
    """
    probe = _Probe(parents=[parser], add_help=False)
    before = vars(probe.parse_args(words))
    try:
        option.add_arguments(probe)
        after = vars(probe.parse_args(words))
        changed = [key for key, value in before.items() if after[key] != value]
        if changed:
            raise ValueError(f"it changes the default of {', '.join(changed)}")
    except Exception as error:
        which = f"{ALL[entry.group].kind} `{entry.name}` of {entry.package} ({entry.value})"
        raise PluginError(f"{which} cannot be used: {describe_error(error)}") from error
    option.add_arguments(parser)


def add_recipe_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the arguments `RECIPE [key=value ...]`."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?" if optional else None,
        help="recipe file, or kdcore:NAME for a recipe shipped with kdcore",
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `[key=value ...]`."""
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],  # without a default, argparse reports them as required
        help="values that override those of the file, such as training.batch_size=64; key=null removes a key",
    )


def add_allow_imports(parser: argparse.ArgumentParser) -> None:
    """Add the option `--allow-imports`, for commands that read the recipe of a run folder."""
    parser.add_argument(
        "--allow-imports",
        action="store_true",
        help="run the Python files under `imports:` of a run folder's recipe (docs/trust.md)",
    )


def is_override(word: str) -> bool:
    """Return whether an argument is `key=value`; folders of sweeps also have such names."""
    return _OVERRIDE.match(word) is not None and not os.path.exists(word)  # Path.exists raises on long values
