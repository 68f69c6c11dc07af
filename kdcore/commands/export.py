"""`kdcore export`: the student of a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcore.commands.base import Command


class ExportCommand(Command):
    """Write the student of a run's checkpoint as a Hugging Face folder in float32."""

    help = "write the student of a checkpoint as a Hugging Face folder"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RUN, FOLDER, --checkpoint."""
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")
        parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write")
        parser.add_argument("--checkpoint", type=int, metavar="STEP", help="the checkpoint's step; default: the newest")

    def run(self, arguments: argparse.Namespace) -> int:
        """Export and print where to."""
        from kdcore.training.export import export_run

        print(f"exported to {export_run(arguments.run, arguments.folder, arguments.checkpoint)}")
        return 0
