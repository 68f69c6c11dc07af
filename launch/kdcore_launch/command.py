"""`kdcore launch`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcore import Command, InputError, is_override

if TYPE_CHECKING:
    from kdcore_launch.profile import Profile
    from kdcore_launch.submission import Submission


class LaunchCommand(Command):
    """Send a recipe to SLURM, where it is trained to its end, however often it is interrupted.

    kdcore launch RECIPE --profile FILE [key=value ...]         train a recipe as a job
    kdcore launch A.yaml B.yaml --profile FILE --sweep seed=1,2,3   every combination, as an array
    kdcore launch RECIPE --local                                 train on this machine, in the background
    kdcore launch --resume SWEEP                                 send again what has not finished
    kdcore launch --prepare DATA.yaml FOLDER --tasks 16 --profile FILE   prepare data in 16 jobs

    `profile.key=value` changes the profile, every other `key=value` the recipe. A job that is preempted, runs out of
    time, crashes or loses a node goes on from its newest checkpoint; one whose input is wrong does not.
    docs/cluster.md tells the rest.
    """

    help = "send a recipe to SLURM"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare everything."""
        parser.add_argument(
            "words",
            metavar="RECIPE | key=value",
            nargs="*",
            default=[],
            help="recipes (several are an axis of a sweep), and values to use instead of theirs",
        )
        parser.add_argument("--profile", metavar="FILE", help="what the job asks for: a file, or a profile that ships")
        parser.add_argument(
            "--sweep",
            metavar="AXIS",
            action="append",
            default=[],
            help="key=value,value,... or a file with `axes:`; may be given several times",
        )
        parser.add_argument("--name", help="name of the sweep; default: the run's name and a number")
        parser.add_argument("--parallel", metavar="N", type=int, default=256, help="how many jobs run at once")
        parser.add_argument("--resume", metavar="SWEEP", help="folder of a sweep or a run, or a job's id")
        parser.add_argument("--prepare", metavar="DATA.yaml", help="prepare data instead of training")
        parser.add_argument("--tasks", metavar="N", type=int, help="how many jobs share the preparation")
        parser.add_argument("--local", action="store_true", help="run on this machine, without SLURM")
        parser.add_argument("--wait", action="store_true", help="wait for the end, and end with the run's exit code")
        parser.add_argument("--dry-run", action="store_true", help="print the sbatch script and send nothing")

    def run(self, arguments: argparse.Namespace) -> int:
        """Send it."""
        from kdcore_launch.sending import prepare_submission, resume_submission, run_submission, send
        from kdcore_launch.slurm import require_slurm

        _check_options(arguments)
        words: list[str] = arguments.words
        overrides = [word for word in words if is_override(word)]
        recipes = [word for word in words if word not in overrides]
        own = [word.removeprefix("profile.") for word in overrides if word.startswith("profile.")]
        overrides = [word for word in overrides if not word.startswith("profile.")]
        dry = arguments.dry_run
        if not dry and not arguments.local:
            require_slurm()
        submission: Submission | None
        if arguments.resume is not None:
            if overrides or recipes:
                raise InputError("`--resume` sends again what was sent: it takes no recipe and no key=value of one")
            profile = _profile(arguments, own) if arguments.profile is not None else None
            submission = resume_submission(arguments.resume, profile)
            if submission is None:
                return 0
        elif arguments.prepare is not None:
            profile = _profile(arguments, own)
            submission = prepare_submission(
                arguments.prepare, recipes, overrides, arguments.tasks, profile, arguments.parallel, dry=dry
            )
        else:
            profile = _profile(arguments, own)
            submission = run_submission(
                recipes, overrides, arguments.sweep, arguments.name, arguments.parallel, profile, dry=dry
            )
        return send(submission, local=arguments.local, wait=arguments.wait, dry=dry)


def _check_options(arguments: argparse.Namespace) -> None:
    """Options that make no sense together."""
    if arguments.parallel < 1:
        raise InputError("at least one job has to run at once", where="--parallel")
    if (arguments.prepare is None) != (arguments.tasks is None):
        raise InputError("`--prepare DATA.yaml` and `--tasks N` go together", where="--prepare")
    if arguments.tasks is not None and arguments.tasks < 1:
        raise InputError("the number of tasks must be at least 1", where="--tasks")
    several = [name for name in ("sweep", "prepare", "resume") if getattr(arguments, name)]
    if len(several) > 1:
        raise InputError(f"--{several[0]} and --{several[1]} cannot be given together")
    if arguments.local and several:
        hint = "start the runs one after the other: kdcore launch RECIPE --local --wait"
        raise InputError(f"--{several[0]} needs SLURM: it sends many jobs", where="--local", hint=hint)
    if arguments.local and arguments.dry_run:
        raise InputError("without SLURM there is no script to show", where="--dry-run")


def _profile(arguments: argparse.Namespace, overrides: Sequence[str]) -> Profile:
    from kdcore_launch.profile import load_profile, shipped_profiles

    name = arguments.profile or ("laptop" if arguments.local else None)
    if name is None:
        shipped = [path.stem for path in sorted(shipped_profiles().glob("*.yaml"))]
        raise InputError(
            "a profile says what the job asks for",
            where="--profile",
            allowed=[*shipped, "FILE"],
            hint="`--local` trains on this machine",
        )
    profile = load_profile(name, overrides)
    if arguments.local and profile.nodes > 1:
        raise InputError(f"the profile asks for {profile.nodes} nodes, this machine is one", where="--local")
    return profile
