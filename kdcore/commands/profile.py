"""Implement `kdcore profile`: measure the phases of a training step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kdcore.commands.base import Command, add_allow_imports, add_recipe_arguments
from kdcore.errors import InputError
from kdcore.recipe.loading import load_recipe

if TYPE_CHECKING:
    from kdcore.training.run.profiling import StepProfile


class ProfileCommand(Command):
    """Run a few training steps of a recipe and report the time spent in each phase, with hints for improvement.

    No run folder is created; only prepared data is written. If the recipe has stages, only the first one is measured.
    """

    help = "profile the training step of a recipe"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments RECIPE, overrides and --steps."""
        add_recipe_arguments(parser)
        add_allow_imports(parser)
        parser.add_argument("--steps", type=int, default=5, metavar="N", help="number of steps to measure (default: 5)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        if arguments.steps < 1:
            raise InputError(f"must be at least 1, found {arguments.steps}", where="--steps")
        recipe = load_recipe(arguments.recipe, arguments.overrides, allow_imports=arguments.allow_imports or None)
        from kdcore.training.loop.monitor import console
        from kdcore.training.run.profiling import profile_recipe

        with console():
            profile = profile_recipe(recipe, arguments.steps)
        print(report(profile))
        if recipe.settings.stages:
            print(f"\nmeasured in the first of {1 + len(recipe.settings.stages)} stages")
        return 0


def report(profile: StepProfile) -> str:
    """Format a profile as text."""
    total, parts = profile.step_seconds, sum(profile.seconds.values()) - profile.seconds["data"]
    lines = [
        f"step time: {1000 * total:.1f} ms (mean of {profile.steps}; {profile.micro_batches} x "
        f"{profile.micro_batch_size} sequences on this process). Medians of its parts, measured one by one:",
        "",
    ]
    for part, seconds in profile.seconds.items():
        aside = "  overlaps with the previous step" if part == "data" else ""
        lines.append(f"  {part:<16} {1000 * seconds:10.1f} ms {seconds / parts:6.1%}{aside}")
    lines += [
        "",
        f"  tokens           {profile.tokens / total:10,.0f} per second on this process; padding {profile.padding:.1%}"
        + ("" if profile.computes_padding or not profile.padding else ", not computed"),
        f"  MFU              {profile.utilization:10.2f} of {(profile.peak or profile.limit) / 1e9:,.0f} GFLOP/s, "
        + (f"the data sheet's peak of {profile.device}; " if profile.peak else "")
        + (f"{profile.limit / 1e9:,.0f} GFLOP/s " if profile.peak else "")
        + "measured with large matrix products",
        f"  peak memory      {profile.memory / 2**20:10,.0f} MiB",
    ]
    hints = profile.hints()
    if hints:
        lines += ["", *(f"Hint: {hint}" for hint in hints)]
    return "\n".join(lines)
