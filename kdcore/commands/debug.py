"""`kdcore debug`: look at what a run has stumbled over."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcore.commands.base import Command


class DebugCommand(Command):
    """Look at what a run has stumbled over.

    batch RUN STEP   the samples of a training step, decoded, and what each loss is for each of them
    """

    help = "show the samples of a training step and their losses"
    subcommands = ("batch",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action, RUN, STEP, --processes."""
        parser.add_argument("action", choices=self.subcommands)
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")
        parser.add_argument("step", metavar="STEP", type=int, help="the step, as it stands in messages and metrics")
        parser.add_argument(
            "--processes", type=int, metavar="N", help="how many the run had; default: as its checkpoint says"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the report."""
        from kdcore.training.batch_report import batch_report

        for line in batch_report(arguments.run, arguments.step, arguments.processes):
            print(line)
        return 0
