"""Distil large BERT-like encoders into small ones, from raw text and a recipe.

Other packages may use only the names in this module. `__init__.pyi` lists these names and the modules that define them.
Each name is imported on first use, so `import kdcore` is fast and imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

# Names that have moved to another package: old name -> its import name and its pip name.
_MOVED = {
    "SequenceClassification": ("kdcore_supervised", "kdcore-supervised"),
    "DataRecipe": ("kdcore_preparation", "kdcore-preparation"),
    "input_files": ("kdcore_preparation", "kdcore-preparation"),
    "open_input": ("kdcore_preparation", "kdcore-preparation"),
    "slurm_queue": ("kdcore_launch.slurm_queries", "kdcore-launch"),
}
# Names that have changed: old name -> new name.
_RENAMED = {"MachineError": "InfrastructureError"}

_public_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kdcore")
    if name in _MOVED:
        from kdcore.deprecated import moved_name

        return moved_name(f"kdcore.{name}", *_MOVED[name])
    if name in _RENAMED:
        from kdcore.deprecated import renamed

        return renamed(f"kdcore.{name}", f"kdcore.{_RENAMED[name]}", _public_name(_RENAMED[name]))
    return _public_name(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
