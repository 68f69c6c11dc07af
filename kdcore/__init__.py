"""kdcore distils BERT-like encoders: a large teacher, raw text and a recipe in, a small student out.

Everything that other packages may use is a name of this module. Each is imported when it is first asked for, so that
`import kdcore` costs nothing and brings in neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore.commands.base import Command, ExportOption, is_override
    from kdcore.commands.runs import RunStatus, read_history, run_status, slurm_queue
    from kdcore.commands.train import train
    from kdcore.data.base import Corpus, CorpusConfig, Document, Part, TokenizedSequences
    from kdcore.data.files import input_files, open_input
    from kdcore.data.prepare import DataRecipe
    from kdcore.data.staging import whole_file
    from kdcore.errors import (
        DataError,
        InputError,
        KdcoreError,
        MachineError,
        PluginError,
        Problem,
        RecipeError,
        TrainingError,
    )
    from kdcore.layers import (
        LayerPairs,
        Pairs,
        ProjectionMode,
        Projections,
        at_least_float32,
        resolve_block_pairs,
        resolve_pairs,
    )
    from kdcore.losses.base import (
        Loss,
        LossConfig,
        require_classes,
        require_equal_classes,
        require_equal_heads,
        require_teacher,
    )
    from kdcore.models.architectures import Architecture
    from kdcore.models.base import Encoder, Model
    from kdcore.models.transformers import TransformersModel
    from kdcore.optimizers.base import Optimizer, OptimizerConfig
    from kdcore.progress import Progress
    from kdcore.recipe.loading import Recipe, load_config, load_recipe, recipe_problems
    from kdcore.recipe.schema import ComponentConfig, ComponentSection, PathOrHubName, PathString
    from kdcore.recipe.showing import flow_yaml
    from kdcore.recipe.sweep import SweepCell, make_sweep, read_axes
    from kdcore.recipe.yaml import plain_scalar
    from kdcore.registry import (
        component_names,
        register_command,
        register_corpus,
        register_loss,
        register_model,
        register_optimizer,
        register_scheduler,
        register_task,
        register_tracker,
        register_transform,
    )
    from kdcore.relations import ScoreMaps
    from kdcore.schedulers.base import Scheduler
    from kdcore.signals import Batch, ClassHead, ModelInfo, Requests, SignalRequest, Signals
    from kdcore.tasks.base import StoredData, Task
    from kdcore.tasks.masked_lm import MaskedLM
    from kdcore.tasks.sequence_classification import SequenceClassification
    from kdcore.trackers.base import Tracker
    from kdcore.transforms.base import ParameterSource, Transform, TransformConfig

    __version__: str

# The public names and where they live; tests hold this table against tests/unit/public_names.txt.
_HOMES = {
    "Architecture": "kdcore.models.architectures",
    "Batch": "kdcore.signals",
    "ClassHead": "kdcore.signals",
    "Command": "kdcore.commands.base",
    "ComponentConfig": "kdcore.recipe.schema",
    "ComponentSection": "kdcore.recipe.schema",
    "Corpus": "kdcore.data.base",
    "CorpusConfig": "kdcore.data.base",
    "DataError": "kdcore.errors",
    "DataRecipe": "kdcore.data.prepare",
    "Document": "kdcore.data.base",
    "Encoder": "kdcore.models.base",
    "ExportOption": "kdcore.commands.base",
    "InputError": "kdcore.errors",
    "KdcoreError": "kdcore.errors",
    "LayerPairs": "kdcore.layers",
    "Loss": "kdcore.losses.base",
    "LossConfig": "kdcore.losses.base",
    "MachineError": "kdcore.errors",
    "MaskedLM": "kdcore.tasks.masked_lm",
    "Model": "kdcore.models.base",
    "ModelInfo": "kdcore.signals",
    "Optimizer": "kdcore.optimizers.base",
    "OptimizerConfig": "kdcore.optimizers.base",
    "Pairs": "kdcore.layers",
    "ParameterSource": "kdcore.transforms.base",
    "Part": "kdcore.data.base",
    "PathOrHubName": "kdcore.recipe.schema",
    "PathString": "kdcore.recipe.schema",
    "PluginError": "kdcore.errors",
    "Problem": "kdcore.errors",
    "Progress": "kdcore.progress",
    "ProjectionMode": "kdcore.layers",
    "Projections": "kdcore.layers",
    "Recipe": "kdcore.recipe.loading",
    "RecipeError": "kdcore.errors",
    "Requests": "kdcore.signals",
    "RunStatus": "kdcore.commands.runs",
    "Scheduler": "kdcore.schedulers.base",
    "ScoreMaps": "kdcore.relations",
    "SequenceClassification": "kdcore.tasks.sequence_classification",
    "SignalRequest": "kdcore.signals",
    "Signals": "kdcore.signals",
    "StoredData": "kdcore.tasks.base",
    "SweepCell": "kdcore.recipe.sweep",
    "Task": "kdcore.tasks.base",
    "TokenizedSequences": "kdcore.data.base",
    "Tracker": "kdcore.trackers.base",
    "TrainingError": "kdcore.errors",
    "Transform": "kdcore.transforms.base",
    "TransformConfig": "kdcore.transforms.base",
    "TransformersModel": "kdcore.models.transformers",
    "at_least_float32": "kdcore.layers",
    "component_names": "kdcore.registry",
    "flow_yaml": "kdcore.recipe.showing",
    "input_files": "kdcore.data.files",
    "is_override": "kdcore.commands.base",
    "load_config": "kdcore.recipe.loading",
    "load_recipe": "kdcore.recipe.loading",
    "make_sweep": "kdcore.recipe.sweep",
    "open_input": "kdcore.data.files",
    "plain_scalar": "kdcore.recipe.yaml",
    "read_axes": "kdcore.recipe.sweep",
    "read_history": "kdcore.commands.runs",
    "recipe_problems": "kdcore.recipe.loading",
    "register_command": "kdcore.registry",
    "register_corpus": "kdcore.registry",
    "register_loss": "kdcore.registry",
    "register_model": "kdcore.registry",
    "register_optimizer": "kdcore.registry",
    "register_scheduler": "kdcore.registry",
    "register_task": "kdcore.registry",
    "register_tracker": "kdcore.registry",
    "register_transform": "kdcore.registry",
    "require_classes": "kdcore.losses.base",
    "require_equal_classes": "kdcore.losses.base",
    "require_equal_heads": "kdcore.losses.base",
    "require_teacher": "kdcore.losses.base",
    "resolve_block_pairs": "kdcore.layers",
    "resolve_pairs": "kdcore.layers",
    "run_status": "kdcore.commands.runs",
    "slurm_queue": "kdcore.commands.runs",
    "train": "kdcore.commands.train",
    "whole_file": "kdcore.data.staging",
}

__all__ = [
    "Architecture",
    "Batch",
    "ClassHead",
    "Command",
    "ComponentConfig",
    "ComponentSection",
    "Corpus",
    "CorpusConfig",
    "DataError",
    "DataRecipe",
    "Document",
    "Encoder",
    "ExportOption",
    "InputError",
    "KdcoreError",
    "LayerPairs",
    "Loss",
    "LossConfig",
    "MachineError",
    "MaskedLM",
    "Model",
    "ModelInfo",
    "Optimizer",
    "OptimizerConfig",
    "Pairs",
    "ParameterSource",
    "Part",
    "PathOrHubName",
    "PathString",
    "PluginError",
    "Problem",
    "Progress",
    "ProjectionMode",
    "Projections",
    "Recipe",
    "RecipeError",
    "Requests",
    "RunStatus",
    "Scheduler",
    "ScoreMaps",
    "SequenceClassification",
    "SignalRequest",
    "Signals",
    "StoredData",
    "SweepCell",
    "Task",
    "TokenizedSequences",
    "Tracker",
    "TrainingError",
    "Transform",
    "TransformConfig",
    "TransformersModel",
    "__version__",
    "at_least_float32",
    "component_names",
    "flow_yaml",
    "input_files",
    "is_override",
    "load_config",
    "load_recipe",
    "make_sweep",
    "open_input",
    "plain_scalar",
    "read_axes",
    "read_history",
    "recipe_problems",
    "register_command",
    "register_corpus",
    "register_loss",
    "register_model",
    "register_optimizer",
    "register_scheduler",
    "register_task",
    "register_tracker",
    "register_transform",
    "require_classes",
    "require_equal_classes",
    "require_equal_heads",
    "require_teacher",
    "resolve_block_pairs",
    "resolve_pairs",
    "run_status",
    "slurm_queue",
    "train",
    "whole_file",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("kdcore")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'kdcore' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
