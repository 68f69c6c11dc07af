"""kdcore distils BERT-like encoders: a large teacher, raw text and a recipe in, a small student out.

Everything that other packages may use is a name of this module. Each is imported when it is first asked for, so that
`import kdcore` costs nothing and brings in neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore.commands.base import Command, ExportOption, add_overrides, is_override
    from kdcore.commands.runs import RunStatus, read_history, run_folders, run_status, slurm_queue
    from kdcore.commands.train import train
    from kdcore.data.base import PART_BYTES, Corpus, CorpusConfig, Document, Part, TokenizedSequences
    from kdcore.data.manifest import (
        Damage,
        Manifest,
        PreparedSplit,
        ReaderEntry,
        ShardEntry,
        SpecialTokens,
        SplitEntry,
        row_dtype,
        write_json,
        write_manifest,
    )
    from kdcore.data.preparation import Preparation, load_preparation, open_data
    from kdcore.data.shard_writer import ShardWriter
    from kdcore.data.shards import Masks, PreparedData, Sequences
    from kdcore.data.staging import (
        lock_of,
        locked,
        publish,
        refuse_other_content,
        staged_folder,
        staging_of,
        whole_file,
    )
    from kdcore.data.tokenizers import SpecialIds, load_tokenizer, special_ids, tokenizer_fingerprint, vocabulary_size
    from kdcore.errors import (
        EXIT_INPUT,
        EXIT_INTERRUPTED,
        EXIT_MACHINE,
        EXIT_TRAINING,
        DataError,
        InputError,
        KdcoreError,
        MachineError,
        PluginError,
        Problem,
        RecipeError,
        TrainingError,
        first_line,
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
    from kdcore.recipe.checking import build_component
    from kdcore.recipe.fields import path_keys, without_paths
    from kdcore.recipe.loading import Recipe, load_config, load_recipe, recipe_problems
    from kdcore.recipe.paths import resolve_path
    from kdcore.recipe.schema import (
        Budget,
        ComponentConfig,
        ComponentSection,
        DataSource,
        FolderName,
        PathOrHubName,
        PathString,
    )
    from kdcore.recipe.showing import flow_yaml
    from kdcore.recipe.sweep import SweepCell, SweepFile, as_override, make_sweep, read_axes
    from kdcore.recipe.yaml import dump_yaml, plain_scalar
    from kdcore.registry import (
        FoundComponent,
        component_names,
        find_component,
        get_command,
        register_command,
        register_corpus,
        register_loss,
        register_model,
        register_optimizer,
        register_preparation,
        register_scheduler,
        register_summary,
        register_task,
        register_tracker,
        register_transform,
    )
    from kdcore.relations import ScoreMaps
    from kdcore.schedulers.base import Scheduler
    from kdcore.signals import Batch, ClassHead, ModelInfo, Requests, SignalRequest, Signals
    from kdcore.tasks.base import Split, StoredData, Task
    from kdcore.tasks.finished_run import FinishedRun, SummaryRows
    from kdcore.tasks.fitting import check_fit
    from kdcore.tasks.masked_lm import MaskedLM
    from kdcore.trackers.base import Tracker
    from kdcore.trackers.jsonl import read_metrics
    from kdcore.training.run.build import cache_folder
    from kdcore.transforms.base import ParameterSource, Transform, TransformConfig
    from kdcore.utils.hashing import sha256_of_file

    __version__: str

# The public names and where they live; tests hold this table against tests/unit/public_names.txt.
_HOMES = {
    "Architecture": "kdcore.models.architectures",
    "Batch": "kdcore.signals",
    "Budget": "kdcore.recipe.schema",
    "ClassHead": "kdcore.signals",
    "Command": "kdcore.commands.base",
    "ComponentConfig": "kdcore.recipe.schema",
    "ComponentSection": "kdcore.recipe.schema",
    "Corpus": "kdcore.data.base",
    "CorpusConfig": "kdcore.data.base",
    "Damage": "kdcore.data.manifest",
    "DataError": "kdcore.errors",
    "DataSource": "kdcore.recipe.schema",
    "Document": "kdcore.data.base",
    "EXIT_INPUT": "kdcore.errors",
    "EXIT_INTERRUPTED": "kdcore.errors",
    "EXIT_MACHINE": "kdcore.errors",
    "EXIT_TRAINING": "kdcore.errors",
    "Encoder": "kdcore.models.base",
    "ExportOption": "kdcore.commands.base",
    "FinishedRun": "kdcore.tasks.finished_run",
    "FolderName": "kdcore.recipe.schema",
    "FoundComponent": "kdcore.registry",
    "InputError": "kdcore.errors",
    "KdcoreError": "kdcore.errors",
    "LayerPairs": "kdcore.layers",
    "Loss": "kdcore.losses.base",
    "LossConfig": "kdcore.losses.base",
    "MachineError": "kdcore.errors",
    "Manifest": "kdcore.data.manifest",
    "MaskedLM": "kdcore.tasks.masked_lm",
    "Masks": "kdcore.data.shards",
    "Model": "kdcore.models.base",
    "ModelInfo": "kdcore.signals",
    "Optimizer": "kdcore.optimizers.base",
    "OptimizerConfig": "kdcore.optimizers.base",
    "PART_BYTES": "kdcore.data.base",
    "Pairs": "kdcore.layers",
    "ParameterSource": "kdcore.transforms.base",
    "Part": "kdcore.data.base",
    "PathOrHubName": "kdcore.recipe.schema",
    "PathString": "kdcore.recipe.schema",
    "PluginError": "kdcore.errors",
    "Preparation": "kdcore.data.preparation",
    "PreparedData": "kdcore.data.shards",
    "PreparedSplit": "kdcore.data.manifest",
    "Problem": "kdcore.errors",
    "Progress": "kdcore.progress",
    "ProjectionMode": "kdcore.layers",
    "Projections": "kdcore.layers",
    "ReaderEntry": "kdcore.data.manifest",
    "Recipe": "kdcore.recipe.loading",
    "RecipeError": "kdcore.errors",
    "Requests": "kdcore.signals",
    "RunStatus": "kdcore.commands.runs",
    "Scheduler": "kdcore.schedulers.base",
    "ScoreMaps": "kdcore.relations",
    "Sequences": "kdcore.data.shards",
    "ShardEntry": "kdcore.data.manifest",
    "ShardWriter": "kdcore.data.shard_writer",
    "SignalRequest": "kdcore.signals",
    "Signals": "kdcore.signals",
    "SpecialIds": "kdcore.data.tokenizers",
    "SpecialTokens": "kdcore.data.manifest",
    "Split": "kdcore.tasks.base",
    "SplitEntry": "kdcore.data.manifest",
    "StoredData": "kdcore.tasks.base",
    "SummaryRows": "kdcore.tasks.finished_run",
    "SweepCell": "kdcore.recipe.sweep",
    "SweepFile": "kdcore.recipe.sweep",
    "Task": "kdcore.tasks.base",
    "TokenizedSequences": "kdcore.data.base",
    "Tracker": "kdcore.trackers.base",
    "TrainingError": "kdcore.errors",
    "Transform": "kdcore.transforms.base",
    "TransformConfig": "kdcore.transforms.base",
    "TransformersModel": "kdcore.models.transformers",
    "add_overrides": "kdcore.commands.base",
    "as_override": "kdcore.recipe.sweep",
    "at_least_float32": "kdcore.layers",
    "build_component": "kdcore.recipe.checking",
    "cache_folder": "kdcore.training.run.build",
    "check_fit": "kdcore.tasks.fitting",
    "component_names": "kdcore.registry",
    "dump_yaml": "kdcore.recipe.yaml",
    "find_component": "kdcore.registry",
    "first_line": "kdcore.errors",
    "flow_yaml": "kdcore.recipe.showing",
    "get_command": "kdcore.registry",
    "is_override": "kdcore.commands.base",
    "load_config": "kdcore.recipe.loading",
    "load_preparation": "kdcore.data.preparation",
    "load_recipe": "kdcore.recipe.loading",
    "load_tokenizer": "kdcore.data.tokenizers",
    "lock_of": "kdcore.data.staging",
    "locked": "kdcore.data.staging",
    "make_sweep": "kdcore.recipe.sweep",
    "open_data": "kdcore.data.preparation",
    "path_keys": "kdcore.recipe.fields",
    "plain_scalar": "kdcore.recipe.yaml",
    "publish": "kdcore.data.staging",
    "read_axes": "kdcore.recipe.sweep",
    "read_history": "kdcore.commands.runs",
    "read_metrics": "kdcore.trackers.jsonl",
    "recipe_problems": "kdcore.recipe.loading",
    "refuse_other_content": "kdcore.data.staging",
    "register_command": "kdcore.registry",
    "register_corpus": "kdcore.registry",
    "register_loss": "kdcore.registry",
    "register_model": "kdcore.registry",
    "register_optimizer": "kdcore.registry",
    "register_preparation": "kdcore.registry",
    "register_scheduler": "kdcore.registry",
    "register_summary": "kdcore.registry",
    "register_task": "kdcore.registry",
    "register_tracker": "kdcore.registry",
    "register_transform": "kdcore.registry",
    "require_classes": "kdcore.losses.base",
    "require_equal_classes": "kdcore.losses.base",
    "require_equal_heads": "kdcore.losses.base",
    "require_teacher": "kdcore.losses.base",
    "resolve_block_pairs": "kdcore.layers",
    "resolve_pairs": "kdcore.layers",
    "resolve_path": "kdcore.recipe.paths",
    "row_dtype": "kdcore.data.manifest",
    "run_folders": "kdcore.commands.runs",
    "run_status": "kdcore.commands.runs",
    "sha256_of_file": "kdcore.utils.hashing",
    "slurm_queue": "kdcore.commands.runs",
    "special_ids": "kdcore.data.tokenizers",
    "staged_folder": "kdcore.data.staging",
    "staging_of": "kdcore.data.staging",
    "tokenizer_fingerprint": "kdcore.data.tokenizers",
    "train": "kdcore.commands.train",
    "vocabulary_size": "kdcore.data.tokenizers",
    "whole_file": "kdcore.data.staging",
    "without_paths": "kdcore.recipe.fields",
    "write_json": "kdcore.data.manifest",
    "write_manifest": "kdcore.data.manifest",
}

# Names that a package of its own has taken over: old name -> that package, as imported and as installed.
_MOVED = {
    "SequenceClassification": ("kdcore_supervised", "kdcore-supervised"),
    "DataRecipe": ("kdcore_preparation", "kdcore-preparation"),
    "input_files": ("kdcore_preparation", "kdcore-preparation"),
    "open_input": ("kdcore_preparation", "kdcore-preparation"),
}

__all__ = [
    "EXIT_INPUT",
    "EXIT_INTERRUPTED",
    "EXIT_MACHINE",
    "EXIT_TRAINING",
    "PART_BYTES",
    "Architecture",
    "Batch",
    "Budget",
    "ClassHead",
    "Command",
    "ComponentConfig",
    "ComponentSection",
    "Corpus",
    "CorpusConfig",
    "Damage",
    "DataError",
    "DataSource",
    "Document",
    "Encoder",
    "ExportOption",
    "FinishedRun",
    "FolderName",
    "FoundComponent",
    "InputError",
    "KdcoreError",
    "LayerPairs",
    "Loss",
    "LossConfig",
    "MachineError",
    "Manifest",
    "MaskedLM",
    "Masks",
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
    "Preparation",
    "PreparedData",
    "PreparedSplit",
    "Problem",
    "Progress",
    "ProjectionMode",
    "Projections",
    "ReaderEntry",
    "Recipe",
    "RecipeError",
    "Requests",
    "RunStatus",
    "Scheduler",
    "ScoreMaps",
    "Sequences",
    "ShardEntry",
    "ShardWriter",
    "SignalRequest",
    "Signals",
    "SpecialIds",
    "SpecialTokens",
    "Split",
    "SplitEntry",
    "StoredData",
    "SummaryRows",
    "SweepCell",
    "SweepFile",
    "Task",
    "TokenizedSequences",
    "Tracker",
    "TrainingError",
    "Transform",
    "TransformConfig",
    "TransformersModel",
    "__version__",
    "add_overrides",
    "as_override",
    "at_least_float32",
    "build_component",
    "cache_folder",
    "check_fit",
    "component_names",
    "dump_yaml",
    "find_component",
    "first_line",
    "flow_yaml",
    "get_command",
    "is_override",
    "load_config",
    "load_preparation",
    "load_recipe",
    "load_tokenizer",
    "lock_of",
    "locked",
    "make_sweep",
    "open_data",
    "path_keys",
    "plain_scalar",
    "publish",
    "read_axes",
    "read_history",
    "read_metrics",
    "recipe_problems",
    "refuse_other_content",
    "register_command",
    "register_corpus",
    "register_loss",
    "register_model",
    "register_optimizer",
    "register_preparation",
    "register_scheduler",
    "register_summary",
    "register_task",
    "register_tracker",
    "register_transform",
    "require_classes",
    "require_equal_classes",
    "require_equal_heads",
    "require_teacher",
    "resolve_block_pairs",
    "resolve_pairs",
    "resolve_path",
    "row_dtype",
    "run_folders",
    "run_status",
    "sha256_of_file",
    "slurm_queue",
    "special_ids",
    "staged_folder",
    "staging_of",
    "tokenizer_fingerprint",
    "train",
    "vocabulary_size",
    "whole_file",
    "without_paths",
    "write_json",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("kdcore")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MOVED:
        return _moved(name)  # not kept, so that every module that uses the old name is warned
    else:
        raise AttributeError(f"module 'kdcore' has no attribute {name!r}")
    globals()[name] = value
    return value


def _moved(name: str) -> Any:
    """Resolve a deprecated name.

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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
