"""`kdcore plugins new`: create a package with small working components."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcore import Command, InputError
from kdcore_testing.scaffold.new_package import KINDS, new_package


class PluginsNewCommand(Command):
    """Create the package NAME with a small working component of each --kind, tests and a README.

    `kdcore plugins new kdcore-my-method --kind loss` creates the folder kdcore-my-method. After
    `pip install -e 'kdcore-my-method[test]'`, recipes can use its loss as `my_method`. The generated tests pass; rerun
    them after each change. See docs/writing-a-plugin.md.
    """

    help = "create a package with new components"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments NAME and --kind."""
        parser.add_argument("name", metavar="NAME", nargs="?", help="the new package")
        parser.add_argument(
            "--kind", action="append", choices=list(KINDS), default=[], help="kind of component to add; repeatable"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Write the package and print its files."""
        example = "for example: kdcore plugins new kdcore-my-method --kind loss"
        if arguments.name is None:
            raise InputError("`kdcore plugins new` requires the name of the package", hint=example)
        if not arguments.kind:
            raise InputError("`kdcore plugins new` requires a --kind", allowed=list(KINDS), hint=example)
        for file in new_package(arguments.name, arguments.kind, Path.cwd()):
            print(file)
        print(
            f"\n  cd {arguments.name}\n"
            "  pip install -e '.[test]'   # makes its components available to recipes\n"
            "  python -m pytest           # the generated tests pass\n"
        )
        return 0
