"""Convert a command of the source system to a recipe with comments.

The source is the code of "How to Distill your BERT" (ACL 2023), built on academic-budget-bert. Its flags are listed in
`flags`; this module assembles the sections of the recipe and writes its first comment lines.
"""

from __future__ import annotations

from dataclasses import replace

from kdcore import InputError, recipe_problems
from kdcore_budget_bert.importing.draft import Draft
from kdcore_budget_bert.importing.sections import (
    leave_out_the_rest,
    put_logging,
    put_losses,
    put_models,
    put_run,
    put_task,
)
from kdcore_budget_bert.importing.source_command import parse_command
from kdcore_budget_bert.importing.training import (
    count_shards,
    put_occasions,
    put_optimizer,
    put_scheduler,
    put_training,
)


def import_command(text: str, source: str, shards: int | None = None) -> str:
    """Convert a command of the source to a recipe in YAML with comments.

    Args:
        text: the command, as entered in a shell or as printed.
        source: name of the command's origin, for messages.
        shards: number of training shards in the command's data folder. If None, the shards in that folder are counted;
            if the folder does not exist, the source's usual number is used.

    Raises:
        InputError: flags are unknown, wrong or cannot be converted; all of them are listed.
    """
    command = parse_command(text, source)
    draft = Draft(command)
    counted = count_shards(draft, shards)
    put_run(draft)
    put_models(draft)
    put_task(draft)
    put_losses(draft)
    put_optimizer(draft)
    put_scheduler(draft)
    put_training(draft, counted)
    put_occasions(draft, counted)
    put_logging(draft)
    leave_out_the_rest(draft)
    draft.approximate(
        "shares of the budget (validation, exports, losses) refer to the steps or the hours, whichever are used up "
        "most; in the source, they refer to the hours only"
    )
    draft.finish()
    _check(draft)
    return draft.text(_header(draft))


def _check(draft: Draft) -> None:
    """Raise an error for core keys that `kdcore recipe check` would reject, naming the flags that set them."""
    problems = []
    for problem in recipe_problems(draft.data):
        names = draft.flags_of(problem.key or "")
        places = [place for place in map(draft.where, names) if place is not None]
        flags = ", ".join(f"--{name}" for name in names)
        problems.append(replace(problem, where=places[0] if places else None, key=f"{flags} ({problem.key})"))
    if problems:
        raise InputError(problems)


def _header(draft: Draft) -> list[str]:
    command = draft.command
    start = command.start or "run_pretraining.py"
    processes = command.processes or 1
    train = f"kdcore-train RECIPE --processes {processes}" if processes > 1 else "kdcore-train RECIPE"
    lines = [
        "What `kdcore recipe import` made of a command of How to Distill your BERT (ACL 2023) or academic-budget-bert:",
        f"{start} ...",
        "The comment after each value names its flags; `by default` marks the source's defaults. Relative paths are "
        "relative to this file.",
        "",
        "  kdcore recipe check RECIPE",
        f"  {train}",
    ]
    if command.processes is None:
        lines[-1] += " --processes N"
    if command.environment:
        lines += ["", f"Variables that the command sets are not part of a recipe: {', '.join(command.environment)}"]
    if command.repeated:
        flags = ", ".join(f"--{name}" for name in command.repeated)
        lines += ["", f"Given more than once; the last one counts: {flags}"]
    return lines
