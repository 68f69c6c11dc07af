"""Profiles: what a job asks of a machine or a cluster, checked like recipes."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from kdcore import ComponentConfig, InputError, PathString, load_config

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?")
_OWN_ARGUMENTS = {
    "array": "--sweep",
    "error": "the run folder",
    "job-name": "the recipe's run.name",
    "no-requeue": "restarts",
    "open-mode": "the run folder",
    "output": "the run folder",
    "requeue": "restarts",
    "signal": "stop_before_end",
    "wait": "--wait",
}


def _minutes(value: object) -> object:
    """Minutes of a time as SLURM writes it: `90`, `24:00:00`, `2-12:00`."""
    if not isinstance(value, str):
        return value
    match = _TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no time: write HH:MM:SS, D-HH:MM or a number of minutes")
    days, hours, minutes, seconds = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    if match["days"] is None and match["seconds"] is None:
        raise ValueError(f"{value!r} may be hours or minutes: write HH:MM:SS, D-HH:MM or a number of minutes")
    return ((days * 24 + hours) * 60) + minutes + (seconds > 0)


def _arguments(values: list[str]) -> list[str]:
    for value in values:
        if not value.startswith("--") or " " in value.split("=", 1)[0]:
            raise ValueError(f"{value!r} is no argument: write `--name=value` or `--name`")
    return values


def _sbatch_arguments(values: list[str]) -> list[str]:
    for value in values:
        name = value.removeprefix("--").split("=", 1)[0]
        if name in _OWN_ARGUMENTS:
            raise ValueError(f"`--{name}` cannot be given here, it follows from {_OWN_ARGUMENTS[name]}")
    return values


Minutes = Annotated[int, BeforeValidator(_minutes), Field(gt=0)]
Arguments = Annotated[list[str], AfterValidator(_arguments)]


class Restarts(ComponentConfig):
    """When a job that ended too early goes back into the queue, where its run continues from the newest checkpoint.

    A preempted, timed out or crashed job does, or one whose node was lost. One that was cancelled, or whose input is
    wrong (exit code 2), never does.
    """

    without_progress: int = Field(
        3, ge=0, description="Restarts in a row that may come to no newer checkpoint; then the job is given up."
    )
    after_training_failed: bool = Field(
        False, description="Whether exit code 3 (training itself failed) is tried again, too."
    )


class Container(ComponentConfig):
    """A container image in which the processes of a run live; kdcore has to be installed in it."""

    image: str = Field(min_length=1, description="File or URL of the image.")
    runtime: Literal["apptainer", "pyxis"] = Field(
        "apptainer", description="What starts it: apptainer, or srun itself."
    )
    mounts: list[str] = Field(default_factory=list, description="OUTSIDE:INSIDE or OUTSIDE each.")
    python: str = Field("python3", description="Python inside of the container.")


class Profile(ComponentConfig):
    """What a job asks for. Whatever is left out is the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = Field(1, gt=0)
    gpus_per_node: int = Field(0, ge=0)
    processes_per_node: int | None = Field(
        None, gt=0, description="Default: one a GPU; one process on a node without GPUs."
    )
    cpus_per_process: int = Field(1, gt=0)
    memory: str | None = Field(
        None, pattern=r"^\d+[KMGT]?$", description="Of each node, such as 64G; 0 is all of it.", examples=["64G"]
    )
    time: Minutes | None = Field(None, description="HH:MM:SS, D-HH:MM or minutes.")
    constraint: str | None = Field(None, description="Features that nodes need to have.")
    sbatch: Annotated[Arguments, AfterValidator(_sbatch_arguments)] = Field(
        default_factory=list, description="Further arguments of sbatch."
    )
    srun: Arguments = Field(default_factory=list, description="Further arguments of srun.")
    setup: list[str] = Field(default_factory=list, description="Shell lines that run first on the job's first node.")
    container: Container | None = None
    python: PathString | None = Field(None, description="Python on the nodes; default: the one that submits.")
    snapshot: bool = Field(True, description="Whether code and recipe are copied when the job is submitted.")
    stop_before_end: int = Field(
        300, gt=0, description="Seconds before the time limit at which the run saves and goes back into the queue."
    )
    restarts: Restarts = Restarts()

    @property
    def processes(self) -> int:
        """Processes on one node."""
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """Processes of a run."""
        return self.nodes * self.processes

    @property
    def batch_python(self) -> str:
        """The Python of the batch script."""
        return self.python or sys.executable


def shipped_profiles() -> Path:
    """The folder of the profiles that come with kdcore-launch."""
    package = Path(__file__).resolve().parent
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"  # beside the package in an editable checkout


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """Read a profile.

    Args:
        name: a file, or the name of one that kdcore-launch ships, with or without `.yaml`.
        overrides: `key=value` each, without the `profile.` of the command line.

    Raises:
        InputError: there is no such profile, or it is wrong; with all problems.
    """
    file = Path(name).expanduser()
    if not file.is_file():
        shipped = {path.stem: path for path in sorted(shipped_profiles().glob("*.yaml"))}
        found = shipped.get(name.removesuffix(".yaml"))
        if found is None:
            near = difflib.get_close_matches(name.removesuffix(".yaml"), shipped, n=1)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            raise InputError(
                f"there is no profile `{name}`, neither as a file nor among those that kdcore-launch ships",
                where="--profile",
                allowed=list(shipped),
                hint=f"{hint}Write your own: copy one of {shipped_profiles()}.",
            )
        file = found
    profile = load_config(file, Profile, overrides)
    if profile.time is not None and profile.stop_before_end >= profile.time * 60:
        raise InputError(
            f"a run that ends {profile.stop_before_end} s before a time limit of {profile.time} minutes never starts",
            where=str(file),
            key="stop_before_end",
            hint="lower it, or give the job more time",
        )
    return profile
