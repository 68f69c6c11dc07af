"""Implement `kdcore plugins`: list, show and check installed components."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from kdcore.commands.base import Command
from kdcore.errors import EXIT_INPUT, InputError, PluginError
from kdcore.registry import ALL, Entry, near_names, unknown_groups


class PluginsCommand(Command):
    """Inspect the installed components.

    list        list all components with their packages, without importing them
    show NAME   show the description and the keys of a component
    check       import all components, each package in a separate process, and report broken ones
    """

    help = "list, show and check components"
    subcommands = ("list", "show", "check")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments ACTION and NAME."""
        parser.add_argument("action", choices=self.subcommands)
        parser.add_argument("name", metavar="NAME", nargs="?", help="show: a component, or package:name")

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the action."""
        if arguments.action == "show":
            if arguments.name is None:
                raise InputError("`kdcore plugins show` requires the name of a component")
            return _show(arguments.name)
        if arguments.name is not None:
            raise InputError(f"`kdcore plugins {arguments.action}` does not accept a name")
        return _list() if arguments.action == "list" else _check()


# Set by the loader from the loss's key in the recipe.
_FROM_PLACE = ("name", "label")


def _entries() -> Iterator[Entry]:
    for registry in ALL.values():
        yield from registry.entries()


def _list() -> int:
    rows = [("KIND", "NAME", "PACKAGE", "VERSION", "NOTES")]
    for entry in _entries():
        misfit = entry.misfit
        notes = [f"built for {misfit.what}"] if misfit else [f"needs {entry.unmet.what}"] if entry.unmet else []
        notes += filter(None, [_shadowed(entry)])
        rows.append((ALL[entry.group].kind, entry.name, entry.distribution, entry.version, "; ".join(notes)))
    _table(rows)
    return 0


def _shadowed(entry: Entry) -> str | None:
    """Return a note if the name alone does not select this component, or None if it does."""
    first = ALL[entry.group].providers(entry.name)
    if first == [entry]:
        return None
    full = f"{entry.distribution}:{entry.name}"
    if entry in first:
        return f"in {len(first)} packages, use {full}"
    return f"shadowed by {' and '.join(one.distribution for one in first)}, use {full}"


def _show(asked: str) -> int:
    package, _, name = asked.rpartition(":")
    entries = [one for one in _entries() if one.name == name and package in ("", one.distribution)]
    if not entries:
        raise PluginError(f"unknown component `{asked}`", hint=near_names(name) or "`imports:` files are not read")
    for index, entry in enumerate(entries):
        registry = ALL[entry.group]
        cls: type[Any] = registry.get(f"{entry.distribution}:{entry.name}")
        print("\n" * (index > 0) + f"{registry.kind} {entry.name} ({entry.package}, {entry.value})")
        print(f"\n{_docstring(cls)}")
        if registry.needs_config:
            from kdcore.recipe.fields import key_table

            rows = [
                ("KEY", "TYPE", "DEFAULT", ""),
                *key_table(cls.Config, without=_FROM_PLACE if entry.group == "kdcore.losses" else ()),
            ]
            print()
            _table(rows if len(rows) > 1 else [("It has no keys.",)])
    return 0


def _docstring(cls: type) -> str:
    # Not inspect.getdoc(), which would return the description of a base class.
    return inspect.cleandoc(cls.__doc__) if cls.__doc__ else "(It has no description.)"


def _check() -> int:
    entries = list(_entries())
    broken = 0
    for package in sorted({entry.distribution for entry in entries}):
        own = [entry for entry in entries if entry.distribution == package]
        for entry, fault in zip(own, _faults(own), strict=True):
            broken += fault is not None
            what = f"{ALL[entry.group].kind} {entry.name} of {entry.package}"
            print(f"{what}: ok" if fault is None else f"{what}: BROKEN\n  {fault.replace(chr(10), chr(10) + '  ')}")
    groups = unknown_groups()
    for group, package, near in groups:
        hint = f"\n  Hint: Did you mean `{near}`?" if near else ""
        print(f"entry point group {group} of {package}: BROKEN\n  kdcore has no group of this name{hint}")
    print(f"{len(entries)} components, {broken} broken" + (f", {len(groups)} unknown groups" if groups else ""))
    return EXIT_INPUT if broken or groups else 0


def _faults(entries: Sequence[Entry]) -> list[str | None]:
    """Return the fault of each component of a package, even if importing one of them terminates the process."""
    found: list[str | None] = []
    while len(found) < len(entries):
        rest = [f"{entry.group}={entry.distribution}:{entry.name}" for entry in entries[len(found) :]]
        # -P: do not import from the working directory.
        command = [sys.executable, "-P", "-m", "kdcore.commands.plugin_process", *rest]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        found += [json.loads(line)["fault"] for line in done.stdout.splitlines()]
        if len(found) < len(entries):
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            found.append(f"its import ended the process with exit code {done.returncode}: {last[0]}")
    return found


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
