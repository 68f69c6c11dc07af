"""Implement `kdcore train`: train the student of a recipe and export it."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.commands.base import Command, add_recipe_arguments
from kdcore.errors import InputError
from kdcore.recipe.loading import Recipe, load_recipe

if TYPE_CHECKING:
    from kdcore.training.loop.events import Event, RunResult


class TrainCommand(Command):
    """Train the student of a recipe and export it.

    The run folder is runs/NAME/ID, as set by the recipe's `run`. The same command resumes a run; `run.id=2` starts
    another run.

    Exit codes: 0 finished, 1 machine failure, 2 wrong input, 3 training failed, 130 interrupted.
    """

    help = "train the student of a recipe and export it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RECIPE, overrides, --processes, --smoke."""
        add_recipe_arguments(parser)
        parser.add_argument(
            "--processes", type=int, metavar="N", help="start N processes on this machine, one per device"
        )
        parser.add_argument(
            "--smoke", action="store_true", help="test every phase of the run with a few steps, in about a minute"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Train in this process or in several processes."""
        # Report mistakes before torch is imported.
        recipe = load_recipe(arguments.recipe, arguments.overrides, allow_imports=True)
        if arguments.processes is None:
            return _train(recipe, smoke=arguments.smoke).exit_code
        if arguments.processes < 1:
            raise InputError(f"must be at least 1 (found {arguments.processes})", where="--processes")
        from kdcore.training.runtime.processes import run_processes

        smoke = ["--smoke"] if arguments.smoke else []
        return run_processes(["train", arguments.recipe, *arguments.overrides, *smoke], arguments.processes)


def train(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = (), *, smoke: bool = False
) -> RunResult:
    """Train the student of a recipe in this process, like `kdcore-train RECIPE OVERRIDES`.

    Args:
        recipe: path of a recipe file, or `kdcore:quickstart.yaml` for a recipe shipped with kdcore; or the content of a
            recipe as a map, with paths relative to the working directory.
        overrides: values by dotted key, such as `{"training.batch_size": 64}`, where None removes a key; or strings
            such as `training.batch_size=64`.
        smoke: test every phase of the run with a few steps, to check that a long run would work.

    Returns:
        The run folder, the exported student and the last held-out losses.

    Raises:
        InputError: the recipe, its data or its models cannot be used.
        TrainingError: training failed.
    """
    return _train(load_recipe(recipe, overrides, allow_imports=True), smoke=smoke)


def steps(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Generator[Event]:
    """Train like `train`, and yield the events of the run; the last one is a FinishedEvent or a StoppedEvent.

    The run advances only while the loop requests events. Leaving the loop ends the run without writing another
    checkpoint; the next start resumes from the last one.

    Args:
        recipe: as for `train`.
        overrides: as for `train`.

    Raises:
        InputError: raised immediately if the recipe is invalid, and at the first event if its data or its models cannot
            be used.
        TrainingError: training failed.
    """
    loaded = load_recipe(recipe, overrides, allow_imports=True)
    from kdcore.training.run.run import run_events

    return run_events(loaded)


def _train(recipe: Recipe, *, smoke: bool) -> RunResult:
    if smoke:
        from kdcore.training.run.smoke import smoke_test

        return smoke_test(recipe)
    from kdcore.training.run.run import train_recipe

    return train_recipe(recipe)
