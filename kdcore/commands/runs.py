"""Implement `kdcore runs`: print the status of runs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kdcore.commands.base import Command, JobQueue
from kdcore.errors import InputError, first_line
from kdcore.registry import job_queues
from kdcore.training.run.run_status import RunStatus, run_folders, run_status


class RunsCommand(Command):
    """Show the status of runs: state, step, loss, throughput and restarts, read from their folders.

    list [FOLDER]   list all runs in FOLDER (default: runs), such as the folder of a sweep

    queued     waiting in SLURM's queue, before the first start or after an interruption
    running    starting or training
    finished   the budget is used up and the student is exported
    stopped    interrupted; the same command resumes the run
    failed     ended with an error and was not restarted; exit codes: 2 input, 3 training, 1 infrastructure
    lost       submitted to SLURM, but no longer in its queue and without a recorded exit code
    """

    help = "show the status of all runs: state, step, loss, throughput, restarts"
    subcommands = ("list",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments ACTION and FOLDER."""
        parser.add_argument("action", choices=self.subcommands)
        default = Path("runs")
        parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=default, help="default: runs")

    def run(self, arguments: argparse.Namespace) -> int:
        """Read and print the status of all runs."""
        folder: Path = arguments.folder
        found = list(run_folders(folder))
        if not found:
            hint = "pass the folder set as `run.folder` in the recipes"
            raise InputError("the folder contains no runs", where=str(folder), hint=hint)
        queue = _queued_jobs()
        rows: list[tuple[str, ...]] = [
            ("RUN", "STATE", "STEP", "LOSS", "HELD-OUT", "TOKENS/S", "RESTARTS", "UPDATED", "")
        ]
        rows += [_row(run, folder, run_status(run, queue)) for run in found]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
        return 0


def _queued_jobs() -> dict[str, str] | None:
    """Return the states of the jobs in all queues; None if no scheduler is available."""
    found: dict[str, str] | None = None
    for entry in job_queues.entries():
        try:
            queue: JobQueue = job_queues.get(f"{entry.distribution}:{entry.name}")()
            states = queue.states()
        except Exception as error:
            print(f"warning: the queue `{entry.name}` is left out: {first_line(error)}", file=sys.stderr)
        else:
            found = found if states is None else {**(found or {}), **states}
    return found


def _row(run: Path, folder: Path, status: RunStatus) -> tuple[str, ...]:
    name = str(run.relative_to(folder)) if run.is_relative_to(folder) and run != folder else str(run)
    step = "-" if status.step is None else f"{status.step}"
    return (
        name,
        status.state,
        step if status.max_steps is None else f"{step} of {status.max_steps}",
        _number(status.loss, ".4g"),
        _number(status.held_out, ".4g"),
        _number(status.tokens_per_second, ",.0f"),
        str(status.restarts),
        "-" if status.updated is None else _age(time.time() - status.updated),
        status.note,
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
