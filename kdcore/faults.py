"""Report the package and the line of an exception raised by a plugin's code."""

from __future__ import annotations

import errno
import inspect
import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from kdcore.errors import InfrastructureError, KdcoreError, PluginError
from kdcore.registry import ALL, Entry

TRACEBACK = "KDCORE_TRACEBACK"
"""Environment variable with which commands print the traceback of every error."""
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_PATH_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_MACHINE_ERRORS = {"MemoryError", "OutOfMemoryError", "AcceleratorError", "DistError"}
_MACHINE_WORDS = ("CUDA error", "CUDA out of memory", "CUBLAS_STATUS", "cuDNN error", "NCCL", "gloo")
_IMPORTED = "kdcore_import_"


@contextmanager
def plugin_faults(component: object = None, key: str | None = None) -> Iterator[None]:
    """Convert an exception raised by a component's code into an error that names the component, package and line.

    Without a component, or with a component of kdcore itself, an exception is converted only if its traceback contains
    a plugin's code and it is not an OSError. Errors of kdcore, closed pipes, full disks, overlong paths, exhausted
    memory, and device and process group failures are passed on unchanged.

    Args:
        component: an instance or the class of the component whose code runs in the context.
        key: its key path in the recipe, such as `losses.hidden_mse`.

    Raises:
        PluginError: the code failed.
        InfrastructureError: the code raised an OSError that is not about a path, such as a lost connection.
    """
    try:
        yield
    except (KdcoreError, BrokenPipeError):
        raise
    except Exception as error:
        if _is_of_the_machine(error):
            raise
        cls = component if isinstance(component, type) else type(component)
        given = component is not None and cls.__module__.partition(".")[0] != "kdcore"
        frames = list(traceback.walk_tb(error.__traceback__))
        own = [
            (frame, line)
            for frame, line in frames
            if _is_of_a_plugin(name := frame.f_globals.get("__name__", "")) or (given and name == cls.__module__)
        ]
        if not given:
            if not own or isinstance(error, OSError):
                raise
            cls = type(own[-1][0].f_locals.get("self"))
        module = cls.__module__ if given else own[-1][0].f_globals["__name__"]
        place = _place(own[-1][0].f_code.co_filename, own[-1][1]) if own else _definition(cls)
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        what = f"{_described(cls, module, given=given)} failed: {cause} ({place})"
        if isinstance(error, OSError) and not isinstance(error, _PATH_ERRORS):
            raise InfrastructureError(what) from error
        hint = f"Set {TRACEBACK}=1 for the traceback."
        if frames[-1][0].f_globals.get("__name__") == "kdcore.signals":
            hint = f"`requests` has to name every signal that `forward` reads. {hint}"
        raise PluginError(what, key=key, hint=hint) from error


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in {*DISK_ERRORS, errno.ENAMETOOLONG}  # commands report these
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & _MACHINE_ERRORS) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _MACHINE_WORDS)
    )


def _is_of_a_plugin(module: str) -> bool:
    return module.startswith(_IMPORTED) or _package_of(module) is not None


def _package_of(module: str) -> str | None:
    """Return the name and version of a module's component package; None for kdcore and other packages."""
    top = module.partition(".")[0]
    for registry in ALL.values():
        for entry in registry.entries():
            if entry.precedence and entry.value.partition(":")[0].partition(".")[0] == top:
                return entry.package
    return None


def _described(cls: type, module: str, *, given: bool) -> str:
    """Describe a component as ``loss `mine` of kdcore-mine 1.0``, or a module's code by its package."""
    for registry in ALL.values():
        for entry in registry.entries():
            if entry.precedence and _loaded(entry) is cls:
                return f"{registry.kind} `{entry.name}` of {entry.package}"
        for name, classes in registry.registered().items():
            if cls in classes:
                return f"{registry.kind} `{name}` of {_file_of(cls.__module__)}"
    package = _package_of(module) or _file_of(module)
    return f"{cls.__name__} of {package}" if given else f"code of {package}"


def _loaded(entry: Entry) -> object:
    """Return the object that an entry point refers to if its module has been imported; None otherwise."""
    module, _, attribute = entry.value.partition(":")
    found: object = sys.modules.get(module)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part, None)
    return found


def _place(file: str, line: int) -> str:
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}: `{code}`" if code else f"{file}:{line}"


def _definition(cls: type) -> str:
    """Return the location of a class's definition, for exceptions raised by the code that calls it."""
    try:
        return _place(inspect.getfile(cls), inspect.getsourcelines(cls)[1])
    except (OSError, TypeError):
        return _file_of(cls.__module__)


def _file_of(module: str) -> str:
    return str(getattr(sys.modules.get(module), "__file__", None) or module)
