"""Find subcommands that packages add to commands, as entry points of `kdcore.commands` named `GROUP SUBCOMMAND`."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.utils import canonicalize_name

from kdcore.commands.base import Command
from kdcore.errors import KdcoreError
from kdcore.registry import Entry, commands


def split_arguments(name: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Split `kdcore NAME ARGUMENTS` into the command's full name and the arguments of that command.

    Subcommands of the group itself take precedence over subcommands of packages; `package:GROUP SUBCOMMAND` selects the
    subcommand of a particular package.

    Args:
        name: the first word after `kdcore`.
        arguments: the words after it.

    Returns:
        The name to look up in the registry, such as `recipe` or `recipe import`, and the remaining arguments.

    Raises:
        PluginError: the command is unknown or broken, or it is a group without a subcommand of that name.
    """
    if not arguments or arguments[0].startswith("-"):
        return name, list(arguments)
    package, _, group = name.rpartition(":")
    word, *rest = arguments
    provided_by = {canonicalize_name(entry.distribution) for entry in added_subcommands(group, word)}
    if package and canonicalize_name(package) in provided_by:
        return f"{name} {word}", rest
    own = _command(name).subcommands
    if not own or word in own:
        return name, list(arguments)
    if f"{name} {word}" in commands.names():
        return f"{name} {word}", rest
    names = {f"{group} {one}" for one in own} | {one for one in commands.names() if one.startswith(f"{group} ")}
    raise commands.unknown(f"{name} {word}", names=sorted(names))


def added_subcommands(group: str, word: str | None = None) -> list[Entry]:
    """List the subcommands that packages add to a group, or only those named `word`, without importing them."""
    return [
        entry
        for entry in commands.entries()
        if (entry.name.startswith(f"{group} ") if word is None else entry.name == f"{group} {word}")
    ]


def placement_fault(name: str) -> str | None:
    """Return the reason why `kdcore NAME` cannot run a command of that name, or None if it can."""
    if " " not in name:
        return None
    group, _, word = name.partition(" ")
    if not word or " " in word:
        return f"its name has to be `GROUP SUBCOMMAND` (found `{name}`)"
    try:
        own = _command(group).subcommands
    except KdcoreError as error:
        return f"its group cannot be used: {error}"
    if not own:
        return f"`kdcore {group}` has no subcommands that a package could add to"
    return f"`kdcore {name}` is a subcommand of `{group}` itself, not replaceable by packages" if word in own else None


def _command(name: str) -> type[Command]:
    cls: type[Command] = commands.get(name)
    return cls
