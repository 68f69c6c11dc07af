"""`kdcore launch`."""

from __future__ import annotations

import argparse

from kdcore import Command, InputError


class LaunchCommand(Command):
    """Send a recipe to SLURM. Not implemented yet."""

    help = "send a recipe to SLURM (not implemented yet)"

    def run(self, arguments: argparse.Namespace) -> int:
        """Say so."""
        raise InputError("`kdcore launch` is not implemented yet", hint="kdcore-train RECIPE --processes N runs here")
