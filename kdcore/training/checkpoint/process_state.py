"""Store the state of each process, except the engine's, in a checkpoint: tensors in safetensors, the rest in JSON.

The state is a tree of maps with strings as keys. A tensor is stored in `process-N.safetensors` under the JSON pointer
of its position in the tree (RFC 6901), such as `/own/terms/soft~1kl`; `process-N.json` contains the tree with null at
that position.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kdcore.errors import InputError, PluginError
from kdcore.training.checkpoint.format import read_json
from kdcore.training.engine.tensors import OldTerm, read_tensors


def write_process_state(state: Mapping[str, Any], folder: Path, rank: int) -> list[Path]:
    """Write a process's state into a checkpoint's folder.

    Args:
        state: maps with strings as keys; their values are maps, tensors, or JSON values.
        folder: the checkpoint's folder.
        rank: rank of the process.

    Returns:
        The files written.

    Raises:
        PluginError: a value is neither a tensor nor a JSON value, or a key is not a string.
        OSError: the disk fails.
    """
    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, "", tensors)
    tensor_file, json_file = folder / f"process-{rank}.safetensors", folder / f"process-{rank}.json"
    tensor_file.write_bytes(safetensors.torch.save(tensors))
    json_file.write_text(json.dumps(rest) + "\n", encoding="utf-8")
    return [tensor_file, json_file]


def read_process_state(folder: Path, rank: int, file_format: int) -> dict[str, Any]:
    """Read a process's state from a checkpoint of a given format, with tensors on the CPU.

    Raises:
        InputError: a file is missing or damaged.
    """
    if file_format == 1:
        return _format_1(folder / f"process-{rank}.pt")
    path = folder / f"process-{rank}.safetensors"
    state = read_json(folder / f"process-{rank}.json")
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    for pointer, tensor in tensors.items():
        *outer, last = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]] or [pointer]
        place: Any = state
        for key in outer:
            place = place.get(key) if isinstance(place, dict) else None
        if not isinstance(place, dict) or place.get(last, tensor) is not None:
            raise InputError(f"the tensor {pointer!r} is not listed in process-{rank}.json", where=str(path))
        place[last] = tensor
    return state


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the random states of this process, for `write_process_state`."""
    return {
        **_generators(random.getstate(), np.random.get_state()),
        "torch": torch.get_rng_state(),
        **({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}),
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Restore the random states that `random_states` returned."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy["words"].numpy().astype(np.uint32)
    if not 0 <= numpy["position"] <= len(words):  # NumPy would read beyond its state
        raise ValueError(f"numpy.position is {numpy['position']}, expected 0 to {len(words)}")
    np.random.set_state(("MT19937", words, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _generators(python: Any, numpy: Any) -> dict[str, Any]:
    version, python_words, python_gauss = python
    _, words, position, has_gauss, gauss = numpy
    return {
        "python": {"version": version, "words": torch.tensor(python_words), "gauss": python_gauss},
        "numpy": {
            "words": torch.from_numpy(words.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
    }


def _without_tensors(value: Any, pointer: str, tensors: dict[str, Tensor]) -> Any:
    """Return the value with null in place of each tensor; add the tensors to `tensors` by JSON pointer."""
    if isinstance(value, Tensor):
        tensors[pointer] = value.detach().to("cpu", copy=True).contiguous()
        return None
    if isinstance(value, Mapping):
        inner = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise PluginError(f"{pointer or '/'}: this key cannot be checkpointed (found {key!r}, expected text)")
            inner[key] = _without_tensors(item, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", tensors)
        return inner
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{pointer}: this value cannot be checkpointed (found {type(value).__name__}, expected a tensor or a "
            "JSON value)"
        ) from error


def _format_1(path: Path) -> dict[str, Any]:
    """Read a process file of format 1: a single pickle with terms as objects and random states as tuples."""
    content = read_tensors(path)
    try:
        states = content["random"]
        generators = _generators(states.pop("python"), states.pop("numpy"))
        own: dict[str, Any] = _with_text_as_keys(content["own"])
        return {"random": {**generators, **states}, "own": own}
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error


def _with_text_as_keys(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {_text(key): _with_text_as_keys(item) for key, item in value.items()}


def _text(key: Any) -> str:
    if isinstance(key, OldTerm):
        return key.label if key.label == key.name else f"{key.label}/{key.name}"
    return str(key)
