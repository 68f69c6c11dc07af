"""`kdcore profile`: where the time of a step goes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kdcore.commands.base import Command, add_recipe_arguments
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe

if TYPE_CHECKING:
    from kdcore.training.profiling import StepProfile


class ProfileCommand(Command):
    """Take a few steps of a recipe, and say where their time went and what could be done about it.

    No run is started: nothing is written but prepared data.
    """

    help = "where the time of a recipe's training step goes"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare RECIPE, overrides, --steps."""
        add_recipe_arguments(parser)
        parser.add_argument("--steps", type=int, default=5, metavar="N", help="how many steps to measure (default: 5)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        if arguments.steps < 1:
            raise InputError("there must be at least 1 step to measure", where="--steps")
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        from kdcore.training.monitor import console
        from kdcore.training.profiling import profile_recipe

        with console():
            profile = profile_recipe(recipe, arguments.steps)
        print(report(profile))
        return 0


def report(profile: StepProfile) -> str:
    """The profile in words."""
    total = profile.step_seconds
    lines = [
        f"a step takes {1000 * total:.1f} ms (median of {profile.steps}; {profile.micro_batches} x "
        f"{profile.micro_batch_size} sequences on this process)",
        "",
    ]
    for part, seconds in profile.seconds.items():
        aside = "  beside the step before" if part == "data" else ""
        lines.append(f"  {part:<16} {1000 * seconds:10.1f} ms {seconds / total:6.1%}{aside}")
    lines += [
        "",
        f"  tokens           {profile.tokens / total:10,.0f} a second on this process; padding {profile.padding:.1%}"
        + ("" if profile.computes_padding or not profile.padding else ", not computed"),
        f"  MFU              {profile.utilization:10.2f} of {profile.limit / 1e9:,.0f} GFLOP/s, what large matrix "
        "products reach here",
        f"  memory           {profile.memory / 2**20:10,.0f} MiB at the peak",
    ]
    hints = profile.hints()
    if hints:
        lines += ["", *(f"hint: {hint}" for hint in hints)]
    return "\n".join(lines)
