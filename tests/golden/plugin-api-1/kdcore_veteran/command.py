"""The command `veteran`."""

from __future__ import annotations

import argparse

from kdcore import Command, MachineError, is_override, load_recipe


class VeteranCommand(Command):
    """Print the losses of a recipe."""

    help = "print the losses of a recipe"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """RECIPE and overrides."""
        parser.add_argument("recipe")
        parser.add_argument("rest", nargs="*")

    def run(self, arguments: argparse.Namespace) -> int:
        """Load and print."""
        if "fail" in arguments.rest:
            raise MachineError("asked to fail")
        overrides = [word for word in arguments.rest if is_override(word)]
        print(" ".join(load_recipe(arguments.recipe, overrides).settings.losses))
        return 0
