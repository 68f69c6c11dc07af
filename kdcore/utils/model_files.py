"""Check the JSON files of a model folder before transformers reads them, and hash its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from kdcore.utils.hashing import sha256_of_file
from kdcore.utils.stored import read_json_object

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "config.json")
_HINT = "repair the file, or download the model again"


class _ModelConfig(BaseModel):
    model_type: str | None = None
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None
    pad_token_id: int | None = None


class _WeightIndex(BaseModel):
    metadata: dict[str, Any]
    weight_map: Annotated[dict[str, Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]], Field(min_length=1)]


def check_model_files(folder: Path) -> None:
    """Check config.json and the weight indexes in a folder. For a hub name, nothing is checked.

    Raises:
        DataError: a file is not JSON, is nested too deeply or has a value of the wrong type, or an index names a file
            outside the folder.
    """
    config = folder / "config.json"
    if config.is_file():
        read_json_object(config, _ModelConfig, hint=_HINT)
    for index in sorted(folder.glob("*.index.json")):
        read_json_object(index, _WeightIndex, hint=_HINT)


def model_file_hashes(source: str) -> dict[str, str]:
    """Compute the SHA-256 of each weight file and of the configuration of a model, by name.

    Args:
        source: a folder, or the hub name of a model that has been downloaded to the hub's cache.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "config.json")
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    found = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    return {path.name: sha256_of_file(path) for path in sorted(found)}
