"""Implement `kdcore debug`: inspect the data and losses of a training step."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcore.commands.base import Command, add_allow_imports


class DebugCommand(Command):
    """Inspect the data and losses of a training step, for example after a loss spike.

    batch RUN STEP   show the decoded samples of a training step and the value of each loss for each sample
    """

    help = "show the samples of a training step and their losses"
    subcommands = ("batch",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments ACTION, RUN, STEP and --processes."""
        parser.add_argument("action", choices=self.subcommands)
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")
        parser.add_argument("step", metavar="STEP", type=int, help="training step, as in messages and metrics")
        parser.add_argument(
            "--processes", type=int, metavar="N", help="number of processes; default: read from the checkpoint"
        )

        add_allow_imports(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the report."""
        from kdcore.training.run.batch_report import batch_report

        for line in batch_report(
            arguments.run, arguments.step, arguments.processes, allow_imports=arguments.allow_imports
        ):
            print(line)
        return 0
