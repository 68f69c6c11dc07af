"""Warn about deprecated names, and resolve names that were renamed or moved to another package."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def moved_name(old: str, module: str, package: str) -> Any:
    """Resolve a deprecated name, and issue a warning that points to the module using it.

    Called by a module's `__getattr__`.

    Args:
        old: the deprecated name with its module, such as `kdcore.DataRecipe`.
        module: the module that now defines it, under the same attribute name.
        package: the name of that module's package, as passed to pip.

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
    warn_deprecated(old, f"{module}.{name}", level=4)
    return value


def renamed(old: str, new: str, value: Any) -> Any:
    """Return the value of a renamed public name, and issue a warning that points to the module using the old name.

    Called by a module's `__getattr__`.

    Args:
        old: the deprecated name with its module, such as `kdcore.MachineError`.
        new: its new name.
        value: the object that it refers to.
    """
    warn_deprecated(old, new, level=4)
    return value


def warn_deprecated(old: str, new: str, level: int = 3) -> None:
    """Warn that a name is deprecated, by default at the line that calls the function or property that uses it.

    Args:
        old: the deprecated name, as written in user code.
        new: its replacement.
        level: stack level that the warning refers to; 2 is the caller.
    """
    warnings.warn(f"`{old}` is deprecated: use `{new}`", DeprecationWarning, stacklevel=level)
