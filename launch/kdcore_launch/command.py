"""Implement `kdcore launch`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcore import Command, InputError, add_allow_imports, is_override

if TYPE_CHECKING:
    from kdcore_launch.profile import Profile
    from kdcore_launch.sbatch import Submission


class LaunchCommand(Command):
    """Submit a recipe to SLURM, and requeue the job after each interruption until training is finished.

    kdcore launch RECIPE --profile FILE [key=value ...]         train a recipe as a job
    kdcore launch A.yaml B.yaml --profile FILE --sweep seed=1,2,3   train every combination as a job array
    kdcore launch RECIPE --local                                 train on this machine in the background
    kdcore launch --resume SWEEP                                 resubmit unfinished runs
    kdcore launch --prepare DATA.yaml FOLDER --tasks 16 --profile FILE   prepare data in 16 jobs
    kdcore launch --cache RECIPE FOLDER --tasks 16 --profile FILE   cache the teacher's signals in 16 jobs

    `profile.key=value` overrides the profile, any other `key=value` the recipe. A job that is preempted, times out,
    crashes or loses a node is requeued and resumes from its newest checkpoint. A job with invalid input is not
    requeued. See docs/cluster.md.
    """

    help = "submit a recipe to SLURM"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add all arguments."""
        parser.add_argument(
            "words",
            metavar="RECIPE | key=value",
            nargs="*",
            default=[],
            help="recipes (several recipes form an axis of a sweep) and overrides",
        )
        parser.add_argument(
            "--profile", metavar="FILE", help="resources of the job: a file, or the name of a shipped profile"
        )
        parser.add_argument(
            "--sweep",
            metavar="AXIS",
            action="append",
            default=[],
            help="key=value,value,... or a file with `axes:`; repeatable",
        )
        parser.add_argument("--name", help="name of the sweep; default: the run's name and a number")
        parser.add_argument(
            "--parallel", metavar="N", type=int, default=256, help="maximum number of concurrent jobs (default: 256)"
        )
        parser.add_argument(
            "--resume", metavar="SWEEP", help="resubmit the unfinished runs of a sweep or run (its folder or a job id)"
        )
        parser.add_argument("--prepare", metavar="DATA.yaml", help="prepare data instead of training")
        parser.add_argument("--cache", metavar="RECIPE", help="cache the signals of the teacher instead of training")
        parser.add_argument(
            "--cache-options",
            metavar="OPTIONS",
            type=shlex.split,
            default=[],
            help='options of `kdcore teacher cache` for --cache, in quotes: "--values bf16 --kept 32"',
        )
        parser.add_argument("--tasks", metavar="N", type=int, help="number of jobs for --prepare and --cache")
        add_allow_imports(parser)
        parser.add_argument("--local", action="store_true", help="run on this machine, without SLURM")
        parser.add_argument(
            "--wait", action="store_true", help="wait until all jobs have ended and return the exit code of the run"
        )
        parser.add_argument("--dry-run", action="store_true", help="print the sbatch script without submitting it")

    def run(self, arguments: argparse.Namespace) -> int:
        """Prepare and submit the jobs."""
        from kdcore_launch.sending import (
            cache_submission,
            prepare_submission,
            resume_submission,
            run_submission,
            send,
        )
        from kdcore_launch.slurm_queries import require_slurm

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
                raise InputError("`--resume` uses the stored recipe and does not accept a recipe or recipe overrides")
            profile = _profile(arguments, own) if arguments.profile is not None else None
            submission = resume_submission(arguments.resume, profile)
            if submission is None:
                return 0
        elif arguments.prepare is not None:
            profile = _profile(arguments, own)
            submission = prepare_submission(
                arguments.prepare, recipes, overrides, arguments.tasks, profile, arguments.parallel, dry=dry
            )
        elif arguments.cache is not None:
            submission = cache_submission(
                arguments.cache,
                recipes,
                overrides,
                arguments.cache_options,
                arguments.tasks,
                _profile(arguments, own),
                arguments.parallel,
                dry=dry,
                allow_imports=arguments.allow_imports or None,
            )
        else:
            profile = _profile(arguments, own)
            submission = run_submission(
                recipes,
                overrides,
                arguments.sweep,
                arguments.name,
                arguments.parallel,
                profile,
                dry=dry,
                allow_imports=arguments.allow_imports or None,
            )
        return send(submission, local=arguments.local, wait=arguments.wait, dry=dry)


def _check_options(arguments: argparse.Namespace) -> None:
    """Reject invalid combinations of options."""
    if arguments.parallel < 1:
        raise InputError(f"must be at least 1, found {arguments.parallel}", where="--parallel")
    for option, value in (("--prepare DATA.yaml", arguments.prepare), ("--cache RECIPE", arguments.cache)):
        if value is not None and arguments.tasks is None:
            raise InputError(f"`{option}` and `--tasks N` must be used together", where=option.partition(" ")[0])
    if arguments.tasks is not None and arguments.prepare is None and arguments.cache is None:
        raise InputError("requires `--prepare DATA.yaml` or `--cache RECIPE`", where="--tasks")
    if arguments.cache_options and arguments.cache is None:
        raise InputError("requires `--cache RECIPE`", where="--cache-options")
    if arguments.tasks is not None and arguments.tasks < 1:
        raise InputError(f"must be at least 1, found {arguments.tasks}", where="--tasks")
    several = [name for name in ("sweep", "prepare", "cache", "resume") if getattr(arguments, name)]
    if len(several) > 1:
        raise InputError(f"--{several[0]} and --{several[1]} are mutually exclusive")
    if arguments.local and several:
        hint = "start the runs one after another: kdcore launch RECIPE --local --wait"
        raise InputError(f"--{several[0]} requires SLURM, because it submits several jobs", where="--local", hint=hint)
    if arguments.local and arguments.dry_run:
        raise InputError("--dry-run prints an sbatch script and requires SLURM", where="--local")


def _profile(arguments: argparse.Namespace, overrides: Sequence[str]) -> Profile:
    from kdcore_launch.profile import load_profile, shipped_profiles

    name = arguments.profile or ("laptop" if arguments.local else None)
    if name is None:
        shipped = [path.stem for path in sorted(shipped_profiles().glob("*.yaml"))]
        raise InputError(
            "a profile with the resources of the job is required",
            where="--profile",
            allowed=[*shipped, "FILE"],
            hint="use `--local` to train on this machine without a profile",
        )
    profile = load_profile(name, overrides)
    if arguments.local and profile.nodes > 1:
        raise InputError(f"the profile has {profile.nodes} nodes, but --local runs on one", where="--local")
    return profile
