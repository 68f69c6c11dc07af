"""Test every phase of a run in about a minute, before the long run is started."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from kdcore.recipe.loading import Recipe, load_recipe
from kdcore.training.loop.events import RunResult
from kdcore.training.run.run import train_recipe
from kdcore.training.runtime.distributed import start_processes

_STEPS = 2


def smoke_test(recipe: Recipe) -> RunResult:
    """Prepare data, train a few steps, validate, write a checkpoint, resume from it in a new engine, and export.

    Everything is written below `.smoke` in the recipe's parent folder of runs. It is removed after success, or by the
    next smoke test.

    Raises:
        KdcoreError: the error that the long run would raise.
    """
    run = recipe.settings.run
    parent = Path(run.folder).absolute() / ".smoke"
    processes = start_processes()
    if processes.is_main:
        shutil.rmtree(parent / run.name / run.id, ignore_errors=True)
    processes.barrier()
    changes = [f"run.folder={parent}", "logging.every=1", f"checkpoints.every={_STEPS}"]
    if recipe.settings.validation.every != "never":
        changes.append(f"validation.every={_STEPS}")
    for steps in (_STEPS, 2 * _STEPS):
        small = load_recipe(recipe.source, [*recipe.overrides, *changes], allow_imports=recipe.allow_imports)
        result = train_recipe(small, exit_steps=steps)
        if not result.finished:
            break
    processes.barrier()
    if processes.is_main:
        shutil.rmtree(parent / run.name / run.id, ignore_errors=True)
        for folder in (parent / run.name, parent):
            with suppress(OSError):  # another smoke test may be using it
                folder.rmdir()
    return result
