"""`kdcore teacher`: compute the signals of a teacher once."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore import (
    Command,
    InputError,
    Recipe,
    Supervisor,
    add_overrides,
    load_recipe,
    make_sweep,
    read_axes,
    shell_code,
)

if TYPE_CHECKING:
    from kdcore import RecipeTeacher, Task
    from kdcore_teacher_cache.caching import SignalRecorder

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0


class TeacherCommand(Command):
    """Store the signals of a teacher, so that training does not have to compute them.

    cache RECIPE FOLDER   run the teacher over the recipe's data, and store the signals that the recipe's losses read
    verify FOLDER         compare the checksums of all files

    `teacher: {cache: FOLDER}` in the recipe, or `teacher.cache=FOLDER` as an override, then trains without the
    teacher's weights. An interrupted `cache` continues if it is started again, even after SIGKILL; the result does not
    depend on interruptions or on the number of processes.

    On several machines with access to the same FOLDER, start one task on each:

        kdcore teacher cache RECIPE FOLDER --task I/N        I = 1 ... N

    or submit these tasks to SLURM with `kdcore launch --cache RECIPE FOLDER --tasks N --profile FILE`. The task that
    finishes last also writes the manifest. If a task failed, start it again.
    """

    help = "compute the signals of a teacher once"
    subcommands = ("cache", "verify")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the subcommands and their arguments."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="cache | verify")
        cache = actions.add_parser("cache", help="run the teacher over the recipe's data, and store its signals")
        cache.add_argument(
            "recipe", metavar="RECIPE", help="recipe file, or kdcore:NAME for a recipe shipped with kdcore"
        )
        cache.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the cache")
        add_overrides(cache)
        cache.add_argument("--teacher", metavar="LABEL", help="teacher to run, if the recipe has several")
        kinds = ["fp32", "bf16", "fp16", "int8"]
        cache.add_argument("--values", choices=kinds, default="fp32", help="how values are stored (fp32)")
        forms = ["full", "top_k", "random_sampling"]
        about = "how predictions over the vocabulary are stored: all of them, the largest, or samples (full)"
        cache.add_argument("--predictions", choices=forms, default="full", help=about)
        about = "tokens that top_k and random_sampling store of each prediction (64)"
        cache.add_argument("--kept", type=int, default=64, metavar="K", help=about)
        about = "number of processes on this machine, one per device"
        cache.add_argument("--processes", type=int, metavar="N", help=about)
        cache.add_argument("--task", type=_task, metavar="I/N", help="write the I-th of N parts")
        about = "axis key=value,value or file of a sweep whose runs share the cache; can be repeated"
        cache.add_argument("--sweep", action="append", default=[], metavar="AXIS", help=about)
        verify = actions.add_parser("verify", help="compare the checksums of all files of a cache")
        verify.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the cache")

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the subcommand."""
        if arguments.action == "verify":
            return _verify(arguments.folder)
        return _cache(arguments)


def _verify(folder: Path) -> int:
    from kdcore_teacher_cache.cache_reader import CacheReader

    reader = CacheReader(folder)
    reader.verify()
    print(f"{folder}: {len(reader.manifest.files)} files are intact")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    if arguments.processes is not None:
        if arguments.processes < 1:
            raise InputError(f"must be at least 1 (found {arguments.processes})", where="--processes")
        if arguments.task is not None:
            raise InputError("cannot be combined with `--processes`", where="--task")
        return _in_processes(arguments)
    from kdcore import numerics, own_device
    from kdcore_teacher_cache.caching import SignalRecorder, cache_signals, check_folder

    check_folder(arguments.folder)
    recipe, task, teacher = _union(arguments)
    settings, training = recipe.settings, recipe.settings.training
    with numerics(training, own_device()):
        recorder = SignalRecorder(
            task,
            teacher,
            batch_size=settings.validation.batch_size or training.micro_batch_size or training.batch_size,
            precision=training.precision,
            values=arguments.values,
            form=arguments.predictions,
            kept=arguments.kept,
        )
        part = arguments.task or (1, 1)
        if part[0] == 1:
            _print_estimate(recorder, arguments.kept, part[1])
        complete = cache_signals(recorder, arguments.folder, task=part, progress=_show)
    if complete:
        print(f"cache in {arguments.folder}; train with teacher.cache={arguments.folder}")
    return 0


def _print_estimate(recorder: SignalRecorder, kept: int, processes: int) -> None:
    from kdcore_teacher_cache.caching import in_bytes, in_time

    for line in recorder.estimate.rows:
        print(line)
    for form, error in recorder.calibration_errors(kept).items():
        print(f"calibration error of {form} with {kept} tokens: {error:.2e} of the probability mass")
    size, seconds = recorder.estimate.bytes, recorder.estimate.seconds
    shared = f", {in_time(seconds / processes)} in {processes}" if processes > 1 else ""
    print(f"about {in_bytes(size)}, {in_time(seconds)} in one process{shared}", flush=True)


def _union(arguments: argparse.Namespace) -> tuple[Recipe, Task, RecipeTeacher]:
    """Return the first recipe of the sweep, its task, and its teacher with the signals that all recipes' losses read.

    Raises:
        InputError: the recipes differ in the teacher or in the inputs of the models; the message names the differences.
    """
    from kdcore import recipe_teachers

    cells = [(arguments.recipe, arguments.overrides)]
    if arguments.sweep:
        sweep = make_sweep([arguments.recipe], arguments.overrides, read_axes(arguments.sweep))
        cells = [(cell.recipe, cell.overrides) for cell in sweep]
    found: tuple[Recipe, Task, RecipeTeacher] | None = None
    for path, overrides in cells:
        recipe = _live_recipe(load_recipe(path, overrides, allow_imports=True))
        task, teachers = recipe_teachers(recipe)
        label = _label(list(teachers), arguments.teacher, recipe)
        teacher = teachers[label]
        if arguments.predictions == "random_sampling" and teacher.requests["train"].prediction_positions:
            _refuse_temperatures(recipe, label)
        if found is None:
            found = recipe, task, teacher
            continue
        before = {**found[1].batch_identity, **found[2].model.file_hashes(), "epochs": str(found[1].distinct_epochs)}
        now = {**task.batch_identity, **teacher.model.file_hashes(), "epochs": str(task.distinct_epochs)}
        differing = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if differing:
            what = f"the runs of the sweep cannot share a cache: they differ in {', '.join(differing)}"
            raise InputError(what, where="--sweep", hint="compute a cache for each of them")
        requests = {split: one | found[2].requests[split] for split, one in teacher.requests.items()}
        found = found[0], found[1], replace(found[2], requests=requests)
    assert found is not None
    return found


def _refuse_temperatures(recipe: Recipe, label: str) -> None:
    """Reject losses with a temperature other than 1, for which sampled predictions are biased.

    Raises:
        InputError: a loss has a different temperature.
    """
    for component in recipe.components().losses.values():
        temperature = getattr(component.config, "temperature", 1.0)
        if getattr(component.config, "teacher", None) in (None, label) and temperature != 1:
            raise InputError(
                f"sampled predictions are unbiased only at temperature 1 (found {temperature})",
                where="--predictions random_sampling",
                key=f"{component.key}.temperature",
                hint="use --predictions top_k or full, or set the temperature to 1",
            )


def _in_processes(arguments: argparse.Namespace) -> int:
    """Start one process for each part, and wait for all; if one fails, the others are stopped."""
    count = arguments.processes
    options = ["--values", arguments.values, "--predictions", arguments.predictions, "--kept", str(arguments.kept)]
    options += [] if arguments.teacher is None else ["--teacher", arguments.teacher]
    options += [word for axis in arguments.sweep for word in ("--sweep", axis)]
    words = ["-m", "kdcore", "teacher", "cache", arguments.recipe, str(arguments.folder), *arguments.overrides]
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with Supervisor() as supervisor:
        for rank in range(count):
            command = [sys.executable, *words, *options, "--task", f"{rank + 1}/{count}"]
            environment = {**os.environ, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            supervisor.start(command, environment=environment, end_with_parent=True)
        while supervisor.wait(_POLL_SECONDS):
            if any(one.returncode for one in supervisor.processes):
                supervisor.stop(_GRACE_SECONDS)
        codes = [shell_code(supervisor.code_of(one)) for one in supervisor.processes]
    failed = [code for code in codes if code]
    return min(failed, default=0)  # the cause, rather than 128 + SIGTERM of the processes that were ended


def _task(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text!r}")
    return int(number), int(total)


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} files", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _live_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe without the caches of its teachers."""
    stated = _cached(recipe)
    if not stated:
        return recipe
    overrides = [one for one in recipe.overrides if one.partition("=")[0] not in stated]
    in_file = _cached(load_recipe(recipe.path, overrides, allow_imports=True))
    return load_recipe(recipe.path, [*overrides, *(f"{key}=null" for key in in_file)], allow_imports=True)


def _cached(recipe: Recipe) -> list[str]:
    """Return the keys of the recipe that set a teacher's cache."""
    one = recipe.settings.teachers is None
    sections = recipe.settings.models_of_teachers.items()
    return ["teacher.cache" if one else f"teachers.{label}.cache" for label, own in sections if "cache" in own]


def _label(labels: list[str], stated: str | None, recipe: Recipe) -> str:
    """Return the label of the teacher to run."""
    if not labels:
        raise InputError("no loss in the recipe uses a teacher", where=str(recipe.path), key="losses")
    if stated is None and len(labels) > 1:
        what = "the recipe has several teachers"
        raise InputError(what, where="--teacher", allowed=labels, hint="select one, with a separate folder for each")
    if stated is not None and stated not in labels:
        raise InputError(f"`{stated}` is not a teacher that losses use", where="--teacher", allowed=labels)
    return stated or labels[0]
