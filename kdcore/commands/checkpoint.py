"""Implement `kdcore checkpoint`: list, verify and show the checkpoints of a run."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from kdcore.commands.base import Command
from kdcore.errors import EXIT_INPUT, EXIT_MACHINE, InputError
from kdcore.training.checkpoint import format as files


class CheckpointCommand(Command):
    """Inspect the checkpoints of a run. The run may be active.

    list RUN            list all checkpoints
    verify RUN [STEP]   verify the checksums of all checkpoints, or of one; exit code 1 if one is damaged, 2 if it
                        contains files that were not written by kdcore
    show RUN [STEP]     show the state and the files of the newest checkpoint, or of one
    """

    help = "list, verify or show the checkpoints of a run"
    subcommands = ("list", "verify", "show")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments ACTION, RUN and STEP."""
        parser.add_argument("action", choices=self.subcommands)
        parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME/ID")
        parser.add_argument("step", metavar="STEP", type=int, nargs="?", help="step of the checkpoint")

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the action."""
        found = files.all_checkpoints(arguments.run)
        if not found:
            raise InputError(
                "the folder contains no checkpoints", where=str(arguments.run), hint="pass a run folder runs/NAME/ID"
            )
        if arguments.step is not None:
            if arguments.action == "list":
                raise InputError("`kdcore checkpoint list` does not accept a step")
            names = [path.name for path in found]
            found = [path for path in found if files.step_of(path) == arguments.step]
            if not found:
                raise InputError(
                    f"the run has no checkpoint of step {arguments.step}", where=str(arguments.run), allowed=names
                )
        if arguments.action == "list":
            return _list(arguments.run, found)
        return _verify(found) if arguments.action == "verify" else _show(arguments.run, found)


def _list(run: Path, found: list[Path]) -> int:
    newest = files.pointed_to(run)
    code = 0
    for folder in found:
        try:
            state, entries = files.read_intact_state(folder), files.read_manifest(folder)
            foreign = files.foreign_files(folder)
        except InputError as error:
            problem = error.problems[0]
            print(f"{folder.name}  damaged: {': '.join(filter(None, (problem.key, problem.what)))}")
            continue
        if foreign:
            print(f"{folder.name}  refused: {'; '.join(foreign)}")
            code = EXIT_INPUT
            continue
        written = datetime.fromtimestamp((folder / files.STATE).stat().st_mtime).isoformat(" ", "seconds")
        size = sum(entry.size for entry in entries.values())
        notes = ["newest"] if folder.name == newest else []
        notes += ["milestone"] if state.milestone else []
        print(
            f"{folder.name}  {written}  {size / 1e6:,.1f} MB  {state.seconds / 3600:.2f} h of training  "
            f"{state.world_size} {'process' if state.world_size == 1 else 'processes'}, ZeRO stage {state.zero_stage}  "
            f"{', '.join(notes)}".rstrip()
        )
    return code


def _verify(found: list[Path]) -> int:
    codes = {0}
    for folder in found:
        problems = files.problems_of(folder)
        foreign = [] if problems else files.foreign_files(folder)
        codes.add(EXIT_MACHINE if problems else EXIT_INPUT if foreign else 0)
        print(f"{folder.name}  {'; '.join(problems or foreign) or 'valid'}")
    return max(codes)


def _show(run: Path, found: list[Path]) -> int:
    newest = files.pointed_to(run)
    folder = next((path for path in found if path.name == newest), found[-1])
    files.refuse_foreign(folder)
    for name, value in asdict(files.read_intact_state(folder)).items():
        print(f"{name}: {json.dumps(value)}")
    print("files:")
    for name, entry in files.read_manifest(folder).items():
        print(f"  {name}  {entry.size:,} bytes  sha256 {entry.sha256}")
    return 0
