"""`kdcore train`: from a recipe to an exported student."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.commands.base import Command, add_recipe_arguments
from kdcore.errors import InputError
from kdcore.recipe.loading import Recipe, load_recipe

if TYPE_CHECKING:
    from kdcore.training.loop.events import RunResult


class TrainCommand(Command):
    """Train a student as a recipe says, and export it.

    The run lives in the folder runs/NAME/ID of the recipe's `run`. Started again, it continues where it was; `run.id=2`
    starts another.

    Exit codes: 0 finished, 2 the input is wrong, 3 training failed, 1 the machine failed, 130 interrupted.
    """

    help = "train a student as a recipe says, and export it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RECIPE, overrides, --processes, --smoke."""
        add_recipe_arguments(parser)
        parser.add_argument("--processes", type=int, metavar="N", help="run N processes on this machine, one a device")
        parser.add_argument("--smoke", action="store_true", help="walk through every phase of the run in a minute")

    def run(self, arguments: argparse.Namespace) -> int:
        """Train here or in several processes."""
        recipe = load_recipe(arguments.recipe, arguments.overrides)  # reports mistakes before torch is imported
        if arguments.processes is None:
            return _train(recipe, smoke=arguments.smoke).exit_code
        if arguments.processes < 1:
            raise InputError("the number of processes must be at least 1", where="--processes")
        from kdcore.training.runtime.processes import run_processes

        smoke = ["--smoke"] if arguments.smoke else []
        return run_processes(["train", arguments.recipe, *arguments.overrides, *smoke], arguments.processes)


def train(recipe: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> RunResult:
    """Do what `kdcore-train RECIPE OVERRIDES` does, in this process.

    Args:
        recipe: the recipe's file, or `kdcore:quickstart.yaml` for one that kdcore ships.
        overrides: `key=value` each, such as `training.batch_size=64`.
        smoke: walk through every phase of the run in a minute, to see that a long run would work.

    Returns:
        Where the run, its exported student and its last held-out losses are.

    Raises:
        InputError: the recipe, its data or its models cannot be used.
        TrainingError: training failed.
    """
    return _train(load_recipe(recipe, overrides), smoke=smoke)


def _train(recipe: Recipe, *, smoke: bool) -> RunResult:
    if smoke:
        from kdcore.training.run.smoke import smoke_test

        return smoke_test(recipe)
    from kdcore.training.run.run import train_recipe

    return train_recipe(recipe)
