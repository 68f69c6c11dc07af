"""Initialise a student from a source: select the source block for each student block and plan the copy of weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcore.errors import InputError
from kdcore.layers import uniform_blocks
from kdcore.models.architectures import Architecture
from kdcore.models.configuration import block_kinds

_KEY = "student.initialize.blocks"


def choose_blocks(
    blocks: str | list[int], source: PreTrainedConfig, student: PreTrainedConfig, architecture: Architecture
) -> list[int]:
    """Select one source block for each student block.

    Raises:
        InputError: the number of blocks differs from the student's, a block does not exist, or the kinds (global or
            local attention) of a student block and its source block differ.
    """
    source_kinds, student_kinds = block_kinds(source, architecture), block_kinds(student, architecture)
    all_alike = len({*source_kinds, *student_kinds}) == 1
    what = f"`{blocks}` does not match the student's pattern of global and local attention"
    try:
        chosen = _numbers(blocks, len(source_kinds), len(student_kinds))
    except InputError as error:
        if all_alike or isinstance(blocks, list):
            raise InputError(replace(problem, key=_KEY) for problem in error.problems) from error
        # The rule cannot be applied to the depths, and the blocks that its hint suggests would not match the pattern.
    else:
        places = [place for place, block in enumerate(chosen) if source_kinds[block] != student_kinds[place]]
        if not places:
            return chosen
        place, block = places[0], chosen[places[0]]
        what += (
            f": student block {place} ({student_kinds[place]}) would be copied from source block {block} "
            f"({source_kinds[block]})"
        )
    fitting = fitting_blocks(source_kinds, student_kinds)
    hint = f"use blocks: {fitting}" if fitting else "no selection of blocks fits: change student.config.layer_types"
    raise InputError(what, key=_KEY, hint=hint)


def _numbers(blocks: str | list[int], available: int, wanted: int) -> list[int]:
    if blocks == "uniform":
        return uniform_blocks(available, wanted)
    if isinstance(blocks, str):
        if wanted > available:
            raise InputError(f"the student has {wanted} blocks, but its source has only {available}")
        return list(range(wanted)) if blocks == "first" else list(range(available - wanted, available))
    if len(blocks) != wanted:
        raise InputError(f"the number of listed blocks, {len(blocks)}, differs from the student's {wanted} blocks")
    missing = [block for block in blocks if not -available <= block < available]
    if missing:
        raise InputError(f"source block {missing[0]} does not exist", allowed=f"0 to {available - 1}")
    return [block % available for block in blocks]


def fitting_blocks(source_kinds: Sequence[str], student_kinds: Sequence[str]) -> list[int] | None:
    """Find increasing, evenly spread source blocks that match the kinds of the student's blocks; None if impossible."""
    spread = (len(source_kinds) - 1) / max(len(student_kinds) - 1, 1)
    best: dict[int, tuple[float, list[int]]] = {-1: (0.0, [])}  # by the last block taken
    for place, kind in enumerate(student_kinds):
        best = {
            block: min(
                (cost + abs(block - place * spread), [*taken, block])
                for last, (cost, taken) in best.items()
                if last < block
            )
            for block in range(len(source_kinds))
            if source_kinds[block] == kind and any(last < block for last in best)
        }
    return min(best.values())[1] if best else None


def plan_copy(
    source: PreTrainedModel, student: PreTrainedModel, chosen: Sequence[int], architecture: Architecture
) -> dict[str, str]:
    """Map each of the student's weights to the source weight that is copied, by their names in the base model.

    All weights are mapped except the weights of a head or pooler that the source lacks. The networks may be on the meta
    device.

    Raises:
        InputError: a weight has a different size in the source, or exists in only one of source and student.
    """
    _check_equal_use(source.config, student.config, architecture)
    blocks = f"{architecture.blocks}."
    available, needed = plain_state(source), plain_state(student)
    plan = {}
    for name in needed:
        number, _, rest = name.removeprefix(blocks).partition(".")
        plan[name] = f"{blocks}{chosen[int(number)]}.{rest}" if name.startswith(blocks) else name
    kept = {f"{blocks}{block}." for block in chosen}
    wanted = {name for name in _base_names(source) if not name.startswith(blocks) or name.startswith(tuple(kept))}
    alone = {plan[name] for name in _base_names(student)} ^ wanted
    if alone:
        raise InputError(
            f"`{min(alone)}` exists in only one of source and student",
            key="student.initialize",
            hint="copying requires equal blocks: change student.config, or remove `initialize`",
        )
    for name, theirs in plan.items():
        if theirs in available and needed[name].shape != available[theirs].shape:
            raise InputError(
                f"the shape of `{theirs}` is {tuple(available[theirs].shape)} in the source and "
                f"{tuple(needed[name].shape)} in the student",
                key="student.initialize",
                hint="copying requires equal sizes: change student.config, or remove `initialize`",
            )
    return {name: theirs for name, theirs in plan.items() if theirs in available}


def _check_equal_use(source: PreTrainedConfig, student: PreTrainedConfig, architecture: Architecture) -> None:
    """Check the settings that change how weights are used without changing their shapes."""
    for key in ("num_attention_heads", "tie_word_embeddings", *architecture.use):
        theirs, ours = getattr(source, key, None), getattr(student, key, None)
        if theirs != ours:
            raise InputError(
                f"{key} is {json.dumps(theirs)} in the source and {json.dumps(ours)} in the student, so copied weights "
                "would produce different results",
                key=f"student.config.{key}",
                hint="use the source's value, or remove `initialize`",
            )
    if architecture.position_offset(source) != architecture.position_offset(student):
        raise InputError(
            f"positions start after pad_token_id, which is {source.pad_token_id} in the source and "
            f"{student.pad_token_id} in the student, so copied position embeddings would be shifted",
            key="student.config.pad_token_id",
            hint="use the source's value, or remove `initialize`",
        )


def plain_state(network: PreTrainedModel) -> dict[str, Tensor]:
    """Return weights by their names in the base model, for networks with and without a head."""
    prefix = "" if network.base_model is network else f"{network.base_model_prefix}."
    return {name.removeprefix(prefix): tensor for name, tensor in network.state_dict().items()}


def _base_names(network: PreTrainedModel) -> set[str]:
    return {name for name in network.base_model.state_dict() if not name.startswith("pooler.")}
