"""Define and load profiles, which describe the resources of a job and are checked like recipes."""

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
    """Convert a time in SLURM's format to minutes: `90`, `24:00:00`, `2-12:00`."""
    if not isinstance(value, str):
        return value
    match = _TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a valid time: write HH:MM:SS, D-HH:MM or a number of minutes")
    days, hours, minutes, seconds = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    if match["days"] is None and match["seconds"] is None:
        raise ValueError(f"{value!r} is ambiguous: write HH:MM:SS, D-HH:MM or a number of minutes")
    return ((days * 24 + hours) * 60) + minutes + (seconds > 0)


def _line(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"{value[:80]!r} contains a line break or another control character")
    return value


def _arguments(values: list[str]) -> list[str]:
    for value in values:
        _line(value)
        if not value.startswith("--") or " " in value.split("=", 1)[0]:
            raise ValueError(f"{value!r} is not a valid argument: write `--name=value` or `--name`")
    return values


def _sbatch_arguments(values: list[str]) -> list[str]:
    for value in values:
        name = value.removeprefix("--").split("=", 1)[0]
        if name in _OWN_ARGUMENTS:
            raise ValueError(f"`--{name}` is not allowed here, because it is set by {_OWN_ARGUMENTS[name]}")
    return values


ScriptText = Annotated[str, AfterValidator(_line)]
Minutes = Annotated[int, BeforeValidator(_minutes), Field(gt=0)]
Arguments = Annotated[list[str], AfterValidator(_arguments)]


class Restarts(ComponentConfig):
    """When to requeue a job and resume its run from the newest checkpoint.

    A job that was preempted, timed out, crashed or lost a node is requeued. A job that was cancelled or has invalid
    input (exit code 2) is not.
    """

    without_progress: int = Field(
        3, ge=0, description="Maximum number of consecutive restarts without a newer checkpoint."
    )
    after_training_failed: bool = Field(False, description="Also requeue after exit code 3 (training itself failed).")


class Container(ComponentConfig):
    """A container image for the processes of a run; kdcore must be installed in it."""

    image: ScriptText = Field(min_length=1, description="File or URL of the image.")
    runtime: Literal["apptainer", "pyxis"] = Field(
        "apptainer", description="Container runtime: apptainer, or pyxis (a plugin of srun)."
    )
    mounts: list[ScriptText] = Field(default_factory=list, description="Mounts, each OUTSIDE:INSIDE or OUTSIDE.")
    python: ScriptText = Field("python3", description="Python interpreter inside the container.")


class Profile(ComponentConfig):
    """The resources of a job. Missing keys take the cluster's defaults."""

    partition: ScriptText | None = None
    account: ScriptText | None = None
    qos: ScriptText | None = None
    nodes: int = Field(1, gt=0)
    gpus_per_node: int = Field(0, ge=0)
    processes_per_node: int | None = Field(
        None, gt=0, description="Default: one per GPU, or one on a node without GPUs."
    )
    cpus_per_process: int = Field(1, gt=0)
    memory: str | None = Field(
        None, pattern=r"^\d+[KMGT]?$", description="Memory per node, such as 64G; 0 means all memory.", examples=["64G"]
    )
    time: Minutes | None = Field(None, description="Time limit: HH:MM:SS, D-HH:MM or minutes.")
    constraint: ScriptText | None = Field(None, description="Required node features.")
    sbatch: Annotated[Arguments, AfterValidator(_sbatch_arguments)] = Field(
        default_factory=list, description="Further arguments of sbatch."
    )
    srun: Arguments = Field(default_factory=list, description="Further arguments of srun.")
    setup: list[str] = Field(default_factory=list, description="Shell commands to run first on the job's first node.")
    container: Container | None = None
    python: Annotated[PathString, AfterValidator(_line)] | None = Field(
        None, description="Python interpreter on the nodes; default: the one that runs `kdcore launch`."
    )
    snapshot: bool = Field(True, description="Copy the code and the recipe when the job is submitted.")
    stop_before_end: int = Field(
        300, gt=0, description="Seconds before the time limit at which the run saves a checkpoint and is requeued."
    )
    restarts: Restarts = Restarts()

    @property
    def processes(self) -> int:
        """Return the number of processes on one node."""
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """Return the number of processes of a run."""
        return self.nodes * self.processes

    @property
    def batch_python(self) -> str:
        """Return the Python interpreter of the batch script."""
        return self.python or sys.executable


def shipped_profiles() -> Path:
    """Return the folder of the profiles shipped with kdcore-launch."""
    package = Path(__file__).resolve().parent
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"  # next to the package in an editable checkout


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """Read a profile.

    Args:
        name: a file, or the name of a profile shipped with kdcore-launch, with or without `.yaml`.
        overrides: strings of the form `key=value`, without the `profile.` of the command line.

    Raises:
        InputError: the profile does not exist or is invalid; the error lists all problems.
    """
    file = Path(name).expanduser()
    if not file.is_file():
        shipped = {path.stem: path for path in sorted(shipped_profiles().glob("*.yaml"))}
        found = shipped.get(name.removesuffix(".yaml"))
        if found is None:
            near = difflib.get_close_matches(name.removesuffix(".yaml"), shipped, n=1)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            raise InputError(
                f"profile `{name}` is neither an existing file nor shipped with kdcore-launch",
                where="--profile",
                allowed=list(shipped),
                hint=f"{hint}To write a profile, copy one from {shipped_profiles()}.",
            )
        file = found
    profile = load_config(file, Profile, overrides)
    if profile.time is not None and profile.stop_before_end >= profile.time * 60:
        raise InputError(
            f"must be less than the time limit (found {profile.stop_before_end} s, limit {profile.time * 60} s)",
            where=str(file),
            key="stop_before_end",
            hint="lower it, or increase `time`",
        )
    return profile
