"""Provide objectives as functions of tensors, for training loops without recipes.

`kdcore.functional.NAME` is the `function` of the installed loss NAME. `dir(kdcore.functional)` imports all losses and
lists these names.
"""

from collections.abc import Callable as _Callable
from contextlib import suppress as _suppress
from typing import Any as _Any

from kdcore.errors import PluginError as _PluginError
from kdcore.registry import losses as _losses


def __getattr__(name: str) -> _Callable[..., _Any]:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        function: _Callable[..., _Any] | None = _losses.get(name).function
    except _PluginError as error:
        raise AttributeError(str(error)) from error
    if function is None:
        raise AttributeError(f"the loss `{name}` is not available as a function of tensors")
    return function


def __dir__() -> list[str]:
    names = []
    for name in _losses.names():
        with _suppress(AttributeError):
            __getattr__(name)
            names.append(name)
    return names
