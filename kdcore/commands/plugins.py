"""`kdcore plugins`: what is installed, what it takes, and whether it works."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcore.commands.base import Command
from kdcore.commands.plugins_new import KINDS, new_package
from kdcore.errors import EXIT_INPUT, InputError, PluginError
from kdcore.registry import ALL, Entry, near_names


class PluginsCommand(Command):
    """Look at the components that recipes can name, and start a package with new ones.

    list        all components with their packages; imports nothing
    show NAME   what a component is and the keys that it takes
    check       import every component, each package in a process of its own, and say which are broken
    new NAME    write the package NAME with a small working component of each --kind, its tests and a README

    `kdcore plugins new kdcore-my-method --kind loss` writes the folder kdcore-my-method, whose loss recipes call
    `my_method` once it is installed (`pip install -e kdcore-my-method`). Its tests pass as they are: change the code
    and let them tell what does not hold any more. docs/writing-a-plugin.md goes on from there.
    """

    help = "list components, show one, check that all of them work, start a new package"
    subcommands = ("list", "show", "check", "new")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action and NAME."""
        parser.add_argument("action", choices=self.subcommands)
        parser.add_argument("name", metavar="NAME", nargs="?", help="a component (or package:name); new: the package")
        parser.add_argument(
            "--kind",
            action="append",
            choices=list(KINDS),
            default=[],
            help="new: what the package adds; may be given several times",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        if arguments.action == "new":
            return _new(arguments.name, arguments.kind)
        if arguments.kind:
            raise InputError(f"`kdcore plugins {arguments.action}` takes no --kind")
        if arguments.action == "show":
            if arguments.name is None:
                raise InputError("`kdcore plugins show` needs the name of a component")
            return _show(arguments.name)
        if arguments.name is not None:
            raise InputError(f"`kdcore plugins {arguments.action}` takes no name")
        return _list() if arguments.action == "list" else _check()


# What the loader fills in from where a loss stands.
_FROM_PLACE = ("name", "label")


def _entries() -> Iterator[Entry]:
    for registry in ALL.values():
        yield from registry.entries()


def _new(package: str | None, kinds: Sequence[str]) -> int:
    example = "for example: kdcore plugins new kdcore-my-method --kind loss"
    if package is None:
        raise InputError("`kdcore plugins new` needs the name of the package", hint=example)
    if not kinds:
        raise InputError("`kdcore plugins new` needs a --kind", allowed=list(KINDS), hint=example)
    files = new_package(package, kinds, Path.cwd())
    for file in files:
        print(file)
    print(
        f"\n  cd {package}\n"
        "  python -m pytest      # its tests pass as they are\n"
        "  pip install -e .      # recipes can name it from then on\n"
    )
    return 0


def _list() -> int:
    rows = [("KIND", "NAME", "PACKAGE", "VERSION", "NOTES")]
    entries = list(_entries())
    for entry in entries:
        notes = [] if entry.fits else [f"built for kdcore{entry.kdcore}"]
        others = [one.distribution for one in entries if (one.group, one.name) == (entry.group, entry.name)]
        if len(others) > 1:
            notes.append(f"in {len(others)} packages, write {entry.distribution}:{entry.name}")
        rows.append((ALL[entry.group].kind, entry.name, entry.distribution, entry.version, "; ".join(notes)))
    _table(rows)
    return 0


def _show(asked: str) -> int:
    package, _, name = asked.rpartition(":")
    entries = [one for one in _entries() if one.name == name and package in ("", one.distribution)]
    if not entries:
        raise PluginError(f"no component is called `{asked}`", hint=near_names(name))
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
            _table(rows if len(rows) > 1 else [("It takes no keys.",)])
    return 0


def _docstring(cls: type) -> str:
    # A class without one must not be shown with that of its base: it would describe something else.
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
    print(f"{len(entries)} components, {broken} broken")
    return EXIT_INPUT if broken else 0


def _faults(entries: Sequence[Entry]) -> list[str | None]:
    """What is wrong with each component of a package; one that ends its process does not keep the rest unchecked."""
    found: list[str | None] = []
    while len(found) < len(entries):
        rest = [f"{entry.group}={entry.distribution}:{entry.name}" for entry in entries[len(found) :]]
        # -P: the working folder must not take part in what can be imported.
        command = [sys.executable, "-P", "-m", "kdcore.commands.plugin_process", *rest]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        found += [json.loads(line)["fault"] for line in done.stdout.splitlines()]
        if len(found) < len(entries):
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            found.append(f"it ended the process that imported it with code {done.returncode}: {last[0]}")
    return found


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
