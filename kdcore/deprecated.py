"""Resolve public names that have another name now, or that another package has taken over."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def moved_name(old: str, module: str, package: str) -> Any:
    """Resolve a deprecated name, with a warning in the module that uses it.

    Called by a module's `__getattr__`.

    Args:
        old: the deprecated name with its module, such as `kdcore.DataRecipe`.
        module: the module that defines it now, under the same last part.
        package: the package of that module, as given to pip.

    Raises:
        AttributeError: the package is not installed, or its module has no such name.
    """
    name = old.rpartition(".")[2]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise AttributeError(f"`{old}` is now `{module}.{name}`: pip install {package}") from error
    value = getattr(found, name)
    warnings.warn(f"`{old}` is deprecated: use `{module}.{name}`", DeprecationWarning, stacklevel=3)
    return value


def renamed(old: str, new: str, value: Any) -> Any:
    """Return the value of a renamed public name, with a warning in the module that uses the old one.

    Called by a module's `__getattr__`.

    Args:
        old: the deprecated name with its module, such as `kdcore.MachineError`.
        new: its name now.
        value: what it names.
    """
    warnings.warn(f"`{old}` is deprecated: use `{new}`", DeprecationWarning, stacklevel=3)
    return value
