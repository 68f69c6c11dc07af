"""Objectives as functions of tensors, for training loops without recipes: `kdcore.functional.NAME`.

NAME is that of a loss of an installed package, whose `function` it is. `dir(kdcore.functional)` lists all losses.
"""

from __future__ import annotations

from typing import Any

from kdcore.errors import PluginError
from kdcore.registry import losses


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        function = losses.get(name).function
    except PluginError as error:
        raise AttributeError(str(error)) from error
    if function is None:
        raise AttributeError(f"the loss `{name}` has no function of tensors")
    return function


def __dir__() -> list[str]:
    return losses.names()
