"""Build submissions from recipes or stored submissions, and submit them."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kdcore import (
    InputError,
    KdcoreError,
    SweepCell,
    find_component,
    load_recipe,
    make_sweep,
    read_axes,
    run_status,
)
from kdcore_launch import history, slurm_queries
from kdcore_launch.job import Job
from kdcore_launch.profile import Profile
from kdcore_launch.sbatch import (
    COMMENT,
    Submission,
    log_of,
    names_of,
    read_submission,
    sbatch_script,
    stored_in,
    submit,
    submit_here,
)
from kdcore_launch.snapshot import copy_code, copy_data_recipe, copy_recipe
from kdcore_launch.waiting import wait_for

_JOB_ID = re.compile(r"\d+(_\d+)?")
_SWEEPS = "sweeps"
_FOLDERS_OF_A_RUN = 3  # folder, name and id


def run_submission(
    recipes: Sequence[str],
    overrides: Sequence[str],
    axes: Sequence[str],
    name: str | None,
    parallel: int,
    profile: Profile,
    *,
    dry: bool,
    allow_imports: bool | None = None,
) -> Submission:
    """Build the submission of a run or a sweep, and write its files to the run folders unless `dry` is set.

    Raises:
        InputError: a recipe, an axis or a folder is invalid.
    """
    if not recipes:
        raise InputError("a recipe is required", hint="use kdcore launch RECIPE --profile FILE")
    cells = make_sweep(recipes, overrides, read_axes(axes))
    for cell in cells:
        # Report errors now, not after hours in the queue.
        load_recipe(cell.recipe, cell.overrides, allow_imports=allow_imports).components()
    sweep = len(cells) > 1 or bool(axes)
    if name is not None and not sweep:
        raise InputError("valid for a sweep only; the name of a run is `run.name` in its recipe", where="--name")
    run_name = load_recipe(cells[0].recipe, cells[0].overrides).settings.run.name
    folder = _sweep_folder(cells, run_name, name) if sweep else history.launch_folder(cells[0].folder)
    if not dry:
        _refuse_queued([cell.folder for cell in cells])
        _make(folder)
    code = folder / "code" if profile.snapshot else None
    if code is not None and not dry:
        copy_code(code)
    jobs = [
        Job(cell.folder, _arguments(cell, profile, dry=dry, allow_imports=allow_imports), profile) for cell in cells
    ]
    submission = Submission(folder, folder.name if sweep else run_name, jobs, code, parallel, Path.cwd())
    if not dry:
        submission.store(folder)
        for job in jobs if sweep else ():  # each can be resubmitted separately
            own = history.launch_folder(job.folder)
            replace(submission, folder=own, jobs=[job], name=job.folder.parent.name).store(own)
    return submission


def prepare_submission(
    data: str,
    folders: Sequence[str],
    overrides: Sequence[str],
    tasks: int,
    profile: Profile,
    parallel: int,
    *,
    dry: bool,
) -> Submission:
    """Build the submission of a data preparation, with one process per task; its records are stored next to the data.

    Raises:
        InputError: the data recipe or the folder is invalid.
    """
    target = _target(folders, "--prepare DATA.yaml")
    workers = ("--workers", str(profile.cpus_per_process))

    def command(copies: Path | None) -> tuple[str, ...]:
        if copies is None:
            return ("prepare", os.path.abspath(data), str(target), *overrides, *workers)
        return ("prepare", str(copy_data_recipe(data, overrides, copies)), str(target), *workers)

    profile = profile.model_copy(update={"nodes": 1, "processes_per_node": 1})
    return _parts_submission("prepare", target, command, tasks, profile, parallel, dry=dry)


def cache_submission(
    recipe: str,
    folders: Sequence[str],
    overrides: Sequence[str],
    options: Sequence[str],
    tasks: int,
    profile: Profile,
    parallel: int,
    *,
    dry: bool,
    allow_imports: bool | None = None,
) -> Submission:
    """Build the submission of `kdcore teacher cache`, with one process on at most one GPU per task.

    Its records are stored next to the cache.

    Args:
        recipe: the recipe that contains the teacher.
        folders: the folder of the cache.
        overrides: overrides of the recipe, in the form `key=value`.
        options: further options of `kdcore teacher cache`.
        tasks: number of parts.
        profile: resources for each part; if the profile has several nodes or GPUs, only one of each is used.
        parallel: maximum number of concurrent jobs.
        dry: whether to skip writing files.
        allow_imports: whether to run files that the recipe of a run folder imports.

    Raises:
        InputError: the recipe, the folder or an option is invalid, or kdcore-teacher-cache is not installed.
    """
    target = _target(folders, "--cache RECIPE")
    words = _parsed("teacher", ["cache", recipe, str(target), *options], "--cache-options")
    if words.task is not None or words.processes is not None:
        raise InputError("`--task` and `--processes` are set by `--tasks N`", where="--cache-options")
    load_recipe(recipe, overrides, allow_imports=allow_imports).components()

    def command(copies: Path | None) -> tuple[str, ...]:
        if copies is not None:
            copy = copy_recipe(recipe, overrides, copies, allow_imports=allow_imports)
            return ("teacher", "cache", str(copy), str(target), *options)
        found = recipe if recipe.startswith("kdcore:") else os.path.abspath(recipe)
        return ("teacher", "cache", found, str(target), *overrides, *options)

    one = {"nodes": 1, "processes_per_node": 1, "gpus_per_node": min(1, profile.gpus_per_node)}
    profile = profile.model_copy(update=one)
    return _parts_submission("cache", target, command, tasks, profile, parallel, dry=dry, counted=True)


def _target(folders: Sequence[str], option: str) -> Path:
    if len(folders) != 1:
        name = option.partition(" ")[0]
        hint = f"use kdcore launch {option} FOLDER --tasks N --profile FILE"
        raise InputError(f"requires exactly one output folder, found {len(folders)}", where=name, hint=hint)
    return Path(folders[0]).absolute()


def _parts_submission(
    name: str,
    target: Path,
    command: Callable[[Path | None], tuple[str, ...]],
    tasks: int,
    profile: Profile,
    parallel: int,
    *,
    dry: bool,
    counted: bool = False,
) -> Submission:
    """Build a job array whose elements run a command with `--task I/N`.

    Args:
        name: first part of the job's name.
        target: folder that all elements write to.
        command: function that returns the arguments of `kdcore`; if given a folder, it copies the recipe there.
        tasks: number of elements.
        profile: profile of one element.
        parallel: maximum number of concurrent elements.
        dry: whether to skip writing files.
        counted: whether new files in the folder count as progress of an element.
    """
    folder = target.with_name(f"{target.name}-jobs")
    records = [folder / f"task-{number}-of-{tasks}" for number in range(1, tasks + 1)]
    code = folder / "code" if profile.snapshot else None
    if not dry:
        _refuse_queued(records)
        _make(folder)
        if code is not None:
            copy_code(code)
    common = command(None if dry or code is None else folder)
    parts = [(*common, "--task", f"{number}/{tasks}") for number in range(1, tasks + 1)]
    output = target if counted else None
    jobs = [Job(record, part, profile, output) for record, part in zip(records, parts, strict=True)]
    submission = Submission(folder, f"{name}-{target.name}", jobs, code, parallel, Path.cwd())
    if not dry:
        submission.store(folder)
    return submission


def _parsed(command: str, words: Sequence[str], where: str) -> argparse.Namespace:
    """Parse the arguments of a command with its own parser, to report mistakes before jobs are submitted.

    Raises:
        InputError: the command rejects the arguments, or its package is not installed.
    """
    parser = argparse.ArgumentParser(f"kdcore {command}")
    find_component("kdcore.commands", command).cls().add_arguments(parser)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            return parser.parse_args(words)
    except SystemExit as stop:
        what = errors.getvalue().strip().rpartition("error: ")[2] or "cannot be used here"
        hint = f"`kdcore {command} {words[0]} --help` lists the options"
        raise InputError(what, where=where, hint=hint) from stop


def resume_submission(target: str, profile: Profile | None) -> Submission | None:
    """Build the submission of the unfinished runs of a sweep or run; None if all are finished, queued or running.

    Args:
        target: its folder, or its job id.
        profile: profile that replaces the stored one.

    Raises:
        InputError: the folder contains no submission, or the job was not submitted by kdcore-launch.
    """
    folder = stored_in(Path(target).absolute())
    if folder is None:
        if not _JOB_ID.fullmatch(target):
            hint = "pass the folder of a sweep or run submitted with `kdcore launch`, or its job id"
            raise InputError("the folder has no submission", where=target, hint=hint)
        folder = _folder_of_job(target)
    submission = read_submission(folder)
    queue = slurm_queries.slurm_queue()
    left = []
    for job in submission.jobs:
        status = run_status(job.folder, queue)
        if status.state in ("finished", "queued", "running"):
            print(f"{job.folder}: {status.state}, not resubmitted")
        else:
            left.append(job if profile is None else replace(job, profile=profile))
    return replace(submission, jobs=left) if left else None


def send(submission: Submission, *, local: bool, wait: bool, dry: bool) -> int:
    """Submit the jobs, print how to follow them, and optionally wait; return the exit code.

    Raises:
        InputError: SLURM rejects the job.
        InfrastructureError: SLURM does not respond, or a job ended without recording an exit code.
    """
    if dry:
        print(sbatch_script(submission))
        return 0
    try:
        ids = [submit_here(submission)] if local else submit(submission)
    except KdcoreError:
        _discard(submission)
        raise
    folders = [job.folder for job in submission.jobs]
    if len(ids) == 1:
        print(f"{'process' if local else 'job'} {ids[0]}: {submission.name}")
        print(f"  run      {folders[0]}")
        print(f"  follow   tail -F {log_of(submission, ids[0])}")
        print(f"  state    kdcore runs list {folders[0]}")
    else:
        print(f"job {names_of(ids)}: {submission.name}, {len(ids)} jobs")
        for name, folder in zip(ids, folders, strict=True):
            print(f"  {name:<8} {folder}")
        print(f"  follow   tail -F {log_of(submission, ids[0])}")
        print(f"  state    kdcore runs list {os.path.commonpath(folders)}")
        print(f"  resume   kdcore launch --resume {submission.folder}")
    print(f"  cancel   {f'kill {ids[0]}' if local else f'scancel {names_of(ids)}'}", flush=True)
    return wait_for(list(zip(ids, folders, strict=True)), local=local) if wait else 0


def _arguments(cell: SweepCell, profile: Profile, *, dry: bool, allow_imports: bool | None) -> tuple[str, ...]:
    if not profile.snapshot:
        recipe = cell.recipe if cell.recipe.startswith("kdcore:") else os.path.abspath(cell.recipe)
        return ("train", recipe, *cell.overrides)
    own = history.launch_folder(cell.folder)
    if not dry:
        _make(own)
        copy_recipe(cell.recipe, cell.overrides, own, allow_imports=allow_imports)
    return ("train", str(own / "recipe.yaml"))


def _sweep_folder(cells: Sequence[SweepCell], run_name: str, name: str | None) -> Path:
    sweeps = cells[0].folder.parent.parent / _SWEEPS
    if name is not None:
        if not name.isprintable() or set(name) & set("/\\%") or name.startswith("."):
            raise InputError(f"{name!r} is not a valid folder name", where="--name")
        if stored_in(sweeps / name) is not None:
            hint = f"`kdcore launch --resume {sweeps / name}` resubmits its unfinished runs"
            raise InputError("a sweep with this name already exists", where=str(sweeps / name), hint=hint)
        return sweeps / name
    number = 1
    while (sweeps / f"{run_name}-{number}").exists():
        number += 1
    return sweeps / f"{run_name}-{number}"


def _refuse_queued(folders: Sequence[Path]) -> None:
    """Reject run folders with a queued job, because two jobs cannot write to one run folder."""
    queue = slurm_queries.slurm_queue() or {}
    for folder in folders:
        job = history.latest_job(folder)
        if job in queue:
            raise InputError(
                f"the run is already queued as job {job} ({queue[job]})",
                where=str(folder),
                hint=f"cancel it with `scancel {job}`, or use `run.id=NEW` for another run",
            )


def _make(folder: Path) -> None:
    """Create a folder.

    Raises:
        InputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set another folder with `run.folder=`"
        raise InputError(f"the folder cannot be created: {error.strerror}", where=str(folder), hint=hint) from error


def _discard(submission: Submission) -> None:
    """Remove the files of a failed submission, unless one of its runs was submitted earlier."""
    if any(history.latest_job(job.folder) for job in submission.jobs):
        return
    for folder in {submission.folder, *(history.launch_folder(job.folder) for job in submission.jobs)}:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in list(folder.parents)[:_FOLDERS_OF_A_RUN]:
            if parent == submission.working_folder or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()


def _folder_of_job(job: str) -> Path:
    info = slurm_queries.job_info(job)
    if info is None:
        hint = "SLURM removes jobs some minutes after their end; pass the folder of the sweep or run instead"
        raise InputError(f"job {job} does not exist in SLURM", where="--resume", hint=hint)
    folder = stored_in(Path(info.comment.removeprefix(COMMENT)))
    if not info.comment.startswith(COMMENT) or info.user != getpass.getuser() or folder is None:
        other = info.user != getpass.getuser()
        reason = f"it belongs to {info.user}" if other else "it was submitted by another program"
        hint = "pass the folder of a sweep or run submitted with `kdcore launch`"
        raise InputError(f"job {job} is not one of your `kdcore launch` jobs: {reason}", where="--resume", hint=hint)
    return folder
