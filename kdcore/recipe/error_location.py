"""Add locations in the recipe to the problems that a component reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from kdcore.errors import InputError
from kdcore.faults import plugin_faults
from kdcore.recipe.loading import Recipe
from kdcore.recipe.schema import TEACHER


@contextmanager
def error_location(recipe: Recipe, key: str) -> Iterator[None]:
    """Add the file, line and full key to all exceptions of a component, including errors about its keys.

    Args:
        recipe: the recipe.
        key: the component's key path in it, such as `losses.hidden_mse`.

    Raises:
        InputError: the component's error, of the same class.
        PluginError: any other exception of a plugin's component.
    """
    component = recipe.component_class(key)
    try:
        with plugin_faults(component, key) if component is not None else nullcontext():
            yield
    except InputError as error:
        problems = []
        for problem in error.problems:
            inner = problem.key or ""
            if key.startswith("teachers.") and inner.split(".")[0] == TEACHER:  # models name their section by role
                inner = inner.removeprefix(TEACHER).removeprefix(".")
            whole = inner.split(".")[0] == key.split(".")[0] or recipe.component_class(inner) is not None
            full = inner if whole else ".".join(part for part in (key, inner) if part)
            what = problem.what if problem.where is None else f"{problem.where}: {problem.what}"
            problems.append(replace(problem, what=what, where=str(recipe.origin(full)), key=full))
        raise type(error)(problems) from error.__cause__ or error
