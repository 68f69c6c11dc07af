"""Reshard DeepSpeed's optimizer state of ZeRO stages 1 and 2 to a different number of processes.

At these stages, all parameters of a group form one flat tensor. Each process stores the float32 weights and the
optimizer's state of one part of it. The file of each part lists which range belongs to which parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcore.errors import InputError
from kdcore.training.engine.tensors import read_tensors

_PART = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_00_optim_states\.pt")
_WEIGHTS = "single_partition_of_fp32_groups"
_PLACES = "param_slice_mappings"
_BASE = "base_optimizer_state"
_LAYOUT = ("group_paddings", "param_alignment_paddings", "partition_count", _PLACES)


def part_rank(name: str) -> int | None:
    """Return the rank in the name of a part's file; None for other files. In bf16, these names have a prefix."""
    found = _PART.fullmatch(name)
    return int(found[1]) if found else None


def read_part(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read the file of one part.

    Raises:
        InputError: the file is damaged.
    """
    content = read_tensors(path, mmap=mmap)
    part = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    if not isinstance(part, dict) or any(key not in part for key in (_WEIGHTS, _PLACES, _BASE, "partition_count")):
        raise InputError("does not contain optimizer state of ZeRO stage 1 or 2", where=str(path))
    return {**content, "optimizer_state_dict": part}


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """Read the optimizer state of all processes from the engine's folder in a checkpoint, by rank.

    Raises:
        InputError: a part is missing or damaged.
    """
    files = {rank: path for path in folder.iterdir() if (rank := part_rank(path.name)) is not None}
    parts = []
    for rank in range(max(files, default=0) + 1):
        if rank not in files:
            raise InputError(f"the optimizer's state of process {rank} is missing", where=str(folder))
        parts.append(read_part(files[rank], mmap=True)["optimizer_state_dict"])
    for part in parts:
        if any(count != len(parts) for count in part["partition_count"]):
            raise InputError(
                f"the optimizer's state is not complete (found {len(parts)} parts, expected {part['partition_count']})",
                where=str(folder),
            )
    return parts


def float32_weights(parts: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Join the float32 weights of the parts. Each is flat."""
    weights: dict[str, Tensor] = {}
    for group in range(len(parts[0][_PLACES])):
        weights |= _joined(parts, group, [part[_WEIGHTS][group] for part in parts])
    return weights


def reshard(parts: Sequence[Mapping[str, Any]], optimizer: Any, where: Path) -> dict[str, Any]:
    """Return the part of this process, in the layout of its DeepSpeed optimizer.

    Args:
        parts: parts of all processes that wrote the checkpoint.
        optimizer: DeepSpeed's optimizer; its groups contain the same parameters.
        where: the checkpoint, for messages.

    Raises:
        InputError: the groups contain different parameters, or a state is not elementwise.
    """
    layout = optimizer.state_dict()
    base = parts[0][_BASE]
    weights, states = [], {}
    for number, group in enumerate(optimizer.optimizer.param_groups):
        flat = group["params"][0]
        members = {optimizer.param_names[parameter]: parameter for parameter in _members(optimizer)[number]}
        weights.append(_cut(_joined(parts, number, [part[_WEIGHTS][number] for part in parts]), members, flat, where))
        (index,) = base["param_groups"][number]["params"]
        own = [part[_BASE]["state"].get(index, {}) for part in parts]
        states[index] = {key: _state(parts, number, key, own, members, flat, where) for key in own[0]}
    return {
        **parts[0],
        **{key: layout[key] for key in _LAYOUT if key in layout},
        _WEIGHTS: weights,
        _BASE: {**base, "state": states},
    }


def _state(
    parts: Sequence[Mapping[str, Any]],
    group: int,
    key: str,
    own: Sequence[Mapping[str, Any]],
    members: Mapping[str, Tensor],
    flat: Tensor,
    where: Path,
) -> Any:
    """Return one entry of a group's state: resharded if it is elementwise, otherwise unchanged."""
    values = [state[key] for state in own]
    if all(isinstance(value, Tensor) and value.ndim == 1 for value in values):
        sizes = [part[_WEIGHTS][group].numel() for part in parts]
        if all(value.numel() >= size for value, size in zip(values, sizes, strict=True)):
            return _cut(_joined(parts, group, values), members, flat, where)
    elif (
        all(not isinstance(value, Tensor) or value.ndim == 0 for value in values) and len(set(map(float, values))) == 1
    ):
        return values[0]
    raise InputError(
        f"`{key}` in the optimizer's state cannot be resharded to a different number of processes",
        where=str(where),
        hint=f"start with --processes {len(parts)}, the original number, or train with `training.zero_stage: 0`",
    )


def _members(optimizer: Any) -> Sequence[Iterable[Tensor]]:
    """List the parameters of each group of DeepSpeed's optimizer; supports both optimizer classes."""
    groups: Sequence[Iterable[Tensor]] = getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups
    return groups


def _joined(parts: Sequence[Mapping[str, Any]], group: int, flats: Sequence[Tensor]) -> dict[str, Tensor]:
    """Join the ranges of each parameter of a group; they are stored in the order of processes."""
    pieces: dict[str, list[Tensor]] = {}
    for part, flat in zip(parts, flats, strict=True):
        for name, place in part[_PLACES][group].items():
            pieces.setdefault(name, []).append(flat.detach().narrow(0, place.start, place.numel))
    return {name: torch.cat(found) for name, found in pieces.items()}


def _cut(whole: Mapping[str, Tensor], members: Mapping[str, Any], flat: Tensor, where: Path) -> Tensor:
    """Return this process's part of a group, with zeros as padding."""
    if whole.keys() != members.keys():
        other = sorted(whole.keys() ^ members.keys())
        raise InputError(
            f"its parameters differ from those of this run (first difference: `{other[0]}`)", where=str(where)
        )
    part = torch.zeros(flat.numel(), dtype=next(iter(whole.values())).dtype)
    for name, parameter in members.items():
        mapping = parameter._hp_mapping
        if mapping is not None:
            source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
            part.narrow(0, target.start, target.numel).copy_(whole[name].narrow(0, source.start, source.numel))
    return part
