"""Read sentence-transformers folders: pooling, the layers after it, prompts and limits."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kdcore import DataError, first_line
from kdcore_embeddings.sentence_modules import ACTIVATIONS, Dense, Normalize, SentenceModules, Truncate

POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Key of each pooling mode in the classic schema, in order of concatenation."""

_FIRST = ("Transformer", "Pooling")
_FURTHER = ("Dense", "LayerNorm", "Normalize", "Dropout")
_DOWNLOADED = ("*.json", "*.txt", "*.model", "*.safetensors", "*/pytorch_model.bin")
_OLDER_WEIGHTS = ("pytorch_model*.bin",)
_IGNORED = ("onnx/*", "openvino/*")
_Width = Annotated[int, Field(ge=1)]


class _StatedFile(BaseModel):
    """Keys of a file in the folder; other keys are ignored."""

    model_config = ConfigDict(strict=True)


class _StatedSettings(_StatedFile):
    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: Literal["cosine", "dot", "euclidean", "manhattan"] | None = None
    truncate_dim: _Width | None = None


class _StatedLimits(_StatedFile):
    max_seq_length: Annotated[int, Field(ge=4)] | None = None
    do_lower_case: bool = False


class _StatedPooling(_StatedFile):
    pooling_mode: str | list[str] | None = None
    include_prompt: bool = True


class _StatedDense(_StatedFile):
    in_features: _Width
    out_features: _Width
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


class _StatedLayerNorm(_StatedFile):
    dimension: _Width | None = None


_AnyFile = TypeVar("_AnyFile", bound=_StatedFile)


@dataclass(frozen=True)
class Layer:
    """A module after the pooling.

    Attributes:
        kind: last part of the module's type, such as `Dense`.
        folder: folder with the module's configuration and weights.
    """

    kind: str
    folder: Path


@dataclass(frozen=True)
class SentenceFolder:
    """Description of an encoder in a sentence-transformers folder.

    Attributes:
        path: the folder.
        encoder: folder of the Hugging Face encoder.
        pooling: folder of the pooling.
        modes: pooling modes, whose results are concatenated.
        include_prompt: whether tokens of a prompt are pooled.
        layers: the modules after the pooling.
        max_length: longest sequence in tokens, special tokens included; None if the folder sets no limit.
        lower_case: whether texts are converted to lower case before they are tokenised.
        prompts: prompts by name.
        default_prompt: the prompt used by default; empty if there is none.
        similarity: name of the similarity of two embeddings.
        truncate_dim: number of components to which embeddings are truncated; None for no truncation.
    """

    path: Path
    encoder: Path
    pooling: Path
    modes: tuple[str, ...]
    include_prompt: bool
    layers: tuple[Layer, ...]
    max_length: int | None
    lower_case: bool
    prompts: Mapping[str, str]
    default_prompt: str
    similarity: str
    truncate_dim: int | None = None

    @property
    def normalizes(self) -> bool:
        """Whether embeddings have length 1; truncated embeddings do not."""
        return bool(self.layers) and self.layers[-1].kind == "Normalize" and self.truncate_dim is None

    def prompt(self, *names: str) -> str:
        """Return the first of the named prompts that exists, or the default prompt."""
        return next((self.prompts[name] for name in names if name in self.prompts), self.default_prompt)

    def module_files(self) -> dict[str, Path]:
        """Return the files outside the encoder that affect the embeddings, by their names in the folder."""
        folders = [self.pooling, *(layer.folder for layer in self.layers)]
        names = ("config.json", "model.safetensors", "pytorch_model.bin")
        files = [self.path / "modules.json", *(folder / name for folder in folders for name in names)]
        return {path.relative_to(self.path).as_posix(): path for path in files if path.is_file()}

    def modules(self, hidden_size: int) -> SentenceModules:
        """Build the pooling and the layers, and load their weights.

        Raises:
            DataError: widths do not match, or weights are missing or damaged.
        """
        width, layers = hidden_size * len(self.modes), list[nn.Module]()
        for layer in self.layers:
            if layer.kind != "Dropout":  # does nothing at inference
                made, width = _build(layer, width)
                layers.append(made)
        if self.truncate_dim is not None and self.truncate_dim < width:
            layers.append(Truncate(self.truncate_dim))
            width = self.truncate_dim
        return SentenceModules(self.modes, width, layers)


def is_sentence_folder(source: str) -> bool:
    """Return whether a local folder contains sentence-transformers modules."""
    return (Path(source) / "modules.json").is_file()


def read_sentence_folder(source: str) -> SentenceFolder:
    """Read a folder, or download a repository from the hub.

    Raises:
        DataError: the folder is missing or is not a sentence-transformers folder, or it has an unsupported module.
    """
    path = Path(source)
    if not path.is_dir():
        path = _downloaded(source)
    if not is_sentence_folder(str(path)):
        raise DataError(
            "has no modules.json, so it is not a sentence-transformers folder",
            where=source,
            hint="use the model `transformers` for an encoder without pooling",
        )
    entries = _json(path / "modules.json", list)
    layers = [_layer(path, number, entry) for number, entry in enumerate(entries)]
    kinds = tuple(layer.kind for layer in layers)
    for number, kind in enumerate(kinds):
        allowed = _FIRST[number : number + 1] if number < len(_FIRST) else _FURTHER
        if kind not in allowed:
            raise DataError(
                f"module {number} of modules.json has the type `{entries[number]['type']}`, which is not supported",
                where=str(path),
                allowed=list(allowed),
                hint="use a teacher whose modules are Transformer, Pooling, and any of Dense, LayerNorm and Normalize",
            )
    if len(layers) < len(_FIRST):
        raise DataError(f"modules.json has no module {_FIRST[len(layers)]}", where=str(path))
    pooling_file = layers[1].folder / "config.json"
    pooling = _json(pooling_file, dict)
    limits_file = next(iter(sorted(layers[0].folder.glob("sentence_*_config.json"))), None)
    limits = _StatedLimits() if limits_file is None else _parsed(limits_file, _StatedLimits)
    settings_file = path / "config_sentence_transformers.json"
    settings = _parsed(settings_file, _StatedSettings) if settings_file.is_file() else _StatedSettings()
    prompts = {name: text or "" for name, text in (settings.prompts or {}).items()}
    return SentenceFolder(
        path=path,
        encoder=layers[0].folder,
        pooling=layers[1].folder,
        modes=_modes(pooling, layers[1].folder),
        include_prompt=_parsed(pooling_file, _StatedPooling).include_prompt,
        layers=tuple(layers[2:]),
        max_length=_length(limits.max_seq_length, layers[0].folder),
        lower_case=limits.do_lower_case,
        prompts=prompts,
        default_prompt=prompts.get(settings.default_prompt_name or "", ""),
        similarity=settings.similarity_fn_name or "cosine",
        truncate_dim=settings.truncate_dim,
    )


def _downloaded(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(source, allow_patterns=list(_DOWNLOADED), ignore_patterns=list(_IGNORED)))
        if not any(found.glob("*.safetensors")):
            snapshot_download(source, allow_patterns=list(_OLDER_WEIGHTS))  # into the same folder
        return found
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise DataError(
            f"is neither a folder nor a model that can be downloaded ({first_line(error)})",
            where=source,
            hint="without network access, download the model on another machine and use its folder",
        ) from error


def _layer(path: Path, number: int, entry: Any) -> Layer:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise DataError(f"entry {number} has no `type`", where=str(path / "modules.json"))
    package, _, kind = entry["type"].rpartition(".")
    return Layer(kind if package.split(".")[0] == "sentence_transformers" else "", path / str(entry.get("path", "")))


def _modes(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    stated = config.get("pooling_mode")
    if stated is None:
        modes = tuple(mode for key, mode in POOLING_KEYS.items() if config.get(key)) or ("mean",)
    else:
        modes = (stated,) if isinstance(stated, str) else tuple(map(str, stated))
    for mode in modes:
        if mode not in POOLING_KEYS.values():
            raise DataError(
                f"the pooling mode `{mode}` is unknown", where=str(folder), allowed=list(POOLING_KEYS.values())
            )
    return modes


def _length(stated: float | None, encoder: Path) -> int | None:
    """Return the limit of the classic schema, or the tokenizer's limit if there is none."""
    file = encoder / "tokenizer_config.json"
    if stated is None and file.is_file():
        stated = _json(file, dict).get("model_max_length")
    return int(stated) if isinstance(stated, int | float) and stated < 1e9 else None


def _build(layer: Layer, width: int) -> tuple[nn.Module, int]:
    """Build a layer for inputs (B, width); return it with its number of outputs."""
    if layer.kind == "Normalize":
        return Normalize(), width
    config = _json(layer.folder / "config.json", dict)
    if layer.kind == "LayerNorm":
        norm = nn.LayerNorm(_parsed(layer.folder / "config.json", _StatedLayerNorm).dimension or width)
        _load(norm, layer.folder, "norm.", width, int(norm.normalized_shape[0]))
        return norm, width
    for key, usual in (("use_residual", False), ("module_input_name", "sentence_embedding")):
        if config.get(key, usual) != usual or (
            key.startswith("module") and config.get("module_output_name", usual) != usual
        ):
            raise DataError(f"`{key}: {config.get(key)}` of a Dense module is not supported", where=str(layer.folder))
    stated = _parsed(layer.folder / "config.json", _StatedDense)
    activation = stated.activation_function.rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise DataError(
            f"the activation function `{stated.activation_function}` is not supported",
            where=str(layer.folder),
            allowed=sorted(ACTIVATIONS),
        )
    dense = Dense(stated.in_features, stated.out_features, bias=stated.bias, activation=activation)
    _load(dense.linear, layer.folder, "linear.", width, stated.in_features)
    return dense, dense.linear.out_features


def _load(module: nn.Module, folder: Path, prefix: str, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"the module expects {expected} inputs, but the previous module has {found} outputs", where=str(folder)
        )
    try:
        if (folder / "model.safetensors").is_file():
            weights = load_file(folder / "model.safetensors")
        else:
            weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        module.load_state_dict({name.removeprefix(prefix): tensor.float() for name, tensor in weights.items()})
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"the weights cannot be loaded ({first_line(error)})", where=str(folder)) from error


def _parsed(path: Path, kind: type[_AnyFile]) -> _AnyFile:
    """Read a file with the keys of `kind`."""
    try:
        return kind.model_validate(_json(path, dict))
    except ValidationError as error:
        problems = [f"`{'.'.join(map(str, one['loc']))}`: {one['msg']}" for one in error.errors()]
        raise DataError(
            f"has values that cannot be used: {'; '.join(problems)}",
            where=str(path),
            hint="correct the file: sentence-transformers writes these keys",
        ) from error


def _json(path: Path, kind: type[Any]) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({first_line(error)})", where=str(path)) from error
    if not isinstance(content, kind):
        raise DataError(f"has no JSON {'list' if kind is list else 'object'}", where=str(path))
    return content
