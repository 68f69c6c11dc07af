"""kdcore distils BERT-like encoders: a large teacher, raw text and a recipe in, a small student out.

Other packages use the names of this module only; `__init__.pyi` lists them with the modules that define them. Each is
imported at its first use, so that `import kdcore` is fast and imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import lazy_loader

# Names that another package has taken over: old name -> that package, as imported and as installed.
_MOVED = {
    "SequenceClassification": ("kdcore_supervised", "kdcore-supervised"),
    "DataRecipe": ("kdcore_preparation", "kdcore-preparation"),
    "input_files": ("kdcore_preparation", "kdcore-preparation"),
    "open_input": ("kdcore_preparation", "kdcore-preparation"),
}

_public_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kdcore")
    if name in _MOVED:
        return _moved(name)
    return _public_name(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _moved(name: str) -> Any:
    """Resolve a deprecated name, with a warning at each use.

    Raises:
        AttributeError: the package that defines it is not installed.
    """
    module, package = _MOVED[name]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"`kdcore.{name}` is now `{module}.{name}`: pip install {package}") from error
    warnings.warn(f"`kdcore.{name}` is deprecated: use `{module}.{name}`", DeprecationWarning, stacklevel=3)
    return getattr(found, name)
