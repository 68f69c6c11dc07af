"""`kdcore teacher`: compute the signals of a teacher once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdcore import Command, InputError, Recipe, add_overrides, load_recipe


class TeacherCommand(Command):
    """Store the signals of a teacher, so that training does not compute them.

    cache RECIPE FOLDER   run only the teacher, for the signals that the recipe's losses read, over the recipe's data
    verify FOLDER         compare the checksums of all files

    `teacher: {cache: FOLDER}` in the recipe, or `teacher.cache=FOLDER` as an override, then trains without the
    teacher's weights. Start an interrupted `cache` again, even after SIGKILL, and it continues there; the result does
    not depend on interruptions.
    """

    help = "compute the signals of a teacher once"
    subcommands = ("cache", "verify")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the subcommands and their arguments."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="cache | verify")
        cache = actions.add_parser("cache", help="run the teacher over the recipe's data, and store its signals")
        cache.add_argument("recipe", metavar="RECIPE", help="recipe file, or kdcore:NAME for one that kdcore ships")
        cache.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the cache")
        add_overrides(cache)
        cache.add_argument("--teacher", metavar="LABEL", help="which of several teachers")
        kinds = ["fp32", "bf16", "fp16", "int8"]
        cache.add_argument("--values", choices=kinds, default="fp32", help="how values are stored (fp32)")
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
    recipe = _live_recipe(load_recipe(arguments.recipe, arguments.overrides, allow_imports=True))
    from kdcore import recipe_teachers
    from kdcore_teacher_cache.caching import SignalRecorder, cache_signals, in_bytes, in_time

    task, teachers = recipe_teachers(recipe)
    teacher = teachers[_label(list(teachers), arguments.teacher, recipe)]
    recorder = SignalRecorder(recipe, task, teacher, arguments.values)
    for line in recorder.estimate.rows:
        print(line)
    size, seconds = recorder.estimate.bytes, recorder.estimate.seconds
    print(f"about {in_bytes(size)} as {arguments.values}, {in_time(seconds)} in one process", flush=True)
    cache_signals(recorder, arguments.folder, progress=_show)
    print(f"cache in {arguments.folder}; train with teacher.cache={arguments.folder}")
    return 0


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} files", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _live_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe without the caches that its teachers are read from."""
    stated = _cached(recipe)
    if not stated:
        return recipe
    overrides = [one for one in recipe.overrides if one.partition("=")[0] not in stated]
    in_file = _cached(load_recipe(recipe.path, overrides, allow_imports=True))
    return load_recipe(recipe.path, [*overrides, *(f"{key}=null" for key in in_file)], allow_imports=True)


def _cached(recipe: Recipe) -> list[str]:
    """Return the keys at which the recipe states that a teacher is read from a cache."""
    one = recipe.settings.teachers is None
    sections = recipe.settings.models_of_teachers.items()
    return ["teacher.cache" if one else f"teachers.{label}.cache" for label, own in sections if "cache" in own]


def _label(labels: list[str], stated: str | None, recipe: Recipe) -> str:
    """Return the label of the teacher to run."""
    if not labels:
        raise InputError("no loss of the recipe reads a teacher", where=str(recipe.path), key="losses")
    if stated is None and len(labels) > 1:
        what = "the recipe has several teachers"
        raise InputError(what, where="--teacher", allowed=labels, hint="name one, and give each its own folder")
    if stated is not None and stated not in labels:
        raise InputError(f"`{stated}` is not a teacher that losses read", where="--teacher", allowed=labels)
    return stated or labels[0]
