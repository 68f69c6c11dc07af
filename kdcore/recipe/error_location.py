"""Where in a recipe a component's own mistakes are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kdcore.errors import InputError
from kdcore.recipe.loading import Recipe
from kdcore.recipe.schema import TEACHER


@contextmanager
def error_location(recipe: Recipe, key: str) -> Iterator[None]:
    """Add file, line and full key to the problems that a component raises about its own keys.

    Args:
        recipe: the recipe.
        key: the component's place in it, such as `losses.hidden_mse`.

    Raises:
        InputError: the component's error, of the same class.
    """
    try:
        yield
    except InputError as error:
        problems = []
        for problem in error.problems:
            inner = problem.key or ""
            if key.startswith("teachers.") and inner.split(".")[0] == TEACHER:  # models name their section by role
                inner = inner.removeprefix(TEACHER).removeprefix(".")
            full = (
                inner if inner.split(".")[0] == key.split(".")[0] else ".".join(part for part in (key, inner) if part)
            )
            what = problem.what if problem.where is None else f"{problem.where}: {problem.what}"
            problems.append(replace(problem, what=what, where=str(recipe.origin(full)), key=full))
        raise type(error)(problems) from error
