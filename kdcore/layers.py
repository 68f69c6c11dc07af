"""Pair teacher blocks with student blocks, and project between different hidden sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdcore.errors import InputError
from kdcore.signals import Block

LayerPairs = Literal["last", "uniform", "all", "skip", "first"] | list[tuple[Block, Block]]
"""How a loss pairs layers: a rule, or explicit `[[teacher, student], ...]` with 0-based blocks or `embeddings`."""

ProjectionMode = Literal["auto", "none"]
"""`auto` maps the student's states to the teacher's width if the widths differ; with `none` this is an error."""


@dataclass(frozen=True)
class Pairs:
    """Resolved pairs of blocks. Both tuples have one entry per pair.

    Attributes:
        teacher: numbers of the teacher's blocks, not negative.
        student: numbers of the student's blocks, not negative.
    """

    teacher: tuple[Block, ...]
    student: tuple[Block, ...]

    def __len__(self) -> int:
        return len(self.teacher)

    def __iter__(self) -> zip[tuple[Block, Block]]:
        return zip(self.teacher, self.student, strict=True)


def resolve_pairs(layers: LayerPairs, teacher_layers: int, student_layers: int) -> Pairs:
    """Resolve a rule or explicit pairs to blocks, counted from 0.

    Args:
        layers: `last`; `uniform` (student i with teacher (i+1)*T/S-1); `all` (the same rounded, for any two depths);
            `skip` (uniform without the last pair, as in Patient KD); `first` (i with i); or explicit (teacher, student)
            pairs, where -1 is the last block.
        teacher_layers: number T of teacher blocks.
        student_layers: number S of student blocks.

    Raises:
        InputError: a block does not exist, a rule cannot be applied to the two depths, or the list of pairs is empty.
    """
    if isinstance(layers, str):
        pairs = _rule_pairs(layers, teacher_layers, student_layers)
    else:
        pairs = [(_block(t, teacher_layers, "teacher"), _block(s, student_layers, "student")) for t, s in layers]
    if not pairs:
        raise InputError("the list of pairs is empty", key="layers", hint="list at least one [teacher, student] pair")
    return Pairs(tuple(t for t, _ in pairs), tuple(s for _, s in pairs))


def resolve_block_pairs(layers: LayerPairs, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
    """Resolve (teacher, student) pairs of blocks for signals that only blocks have, such as attention.

    Raises:
        InputError: as in `resolve_pairs`, or a pair contains the embeddings.
    """
    pairs = resolve_pairs(layers, teacher_layers, student_layers)
    if "embeddings" in (*pairs.teacher, *pairs.student):
        raise InputError(
            "`embeddings` is not a block with attention",
            key="layers",
            allowed=f"pairs of blocks: 0 to {teacher_layers - 1} of the teacher, 0 to {student_layers - 1} of the "
            "student",
        )
    return [(int(t), int(s)) for t, s in pairs]


def uniform_blocks(teacher_layers: int, student_layers: int) -> list[int]:
    """Spread teacher blocks evenly over student blocks: 1, 3, 5, 7, 9, 11 for depths 12 and 6.

    Raises:
        InputError: the teacher's depth is not a multiple of the student's.
    """
    if teacher_layers % student_layers:
        nearest = _nearest_blocks(teacher_layers, student_layers)
        pairs = ", ".join(f"[{t}, {s}]" for s, t in enumerate(nearest))
        raise InputError(
            f"`uniform` requires a multiple of the student's {student_layers} blocks, but the teacher has "
            f"{teacher_layers}",
            hint=f"list the blocks explicitly, for example {nearest} or, as pairs, [{pairs}]",
        )
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


def _nearest_blocks(teacher_layers: int, student_layers: int) -> list[int]:
    """Spread teacher blocks as evenly as possible over student blocks: 1, 4, 6, 9, 11 for depths 12 and 5."""
    return [max(0, round((i + 1) * teacher_layers / student_layers) - 1) for i in range(student_layers)]


def _rule_pairs(rule: str, teacher_layers: int, student_layers: int) -> list[tuple[Block, Block]]:
    if rule == "last":
        return [(teacher_layers - 1, student_layers - 1)]
    if rule == "first":
        if student_layers > teacher_layers:
            raise InputError(
                f"`first` pairs block i with block i, but the student has {student_layers} blocks and the teacher "
                f"{teacher_layers}",
                key="layers",
            )
        return [(i, i) for i in range(student_layers)]
    if rule == "all":
        return [(t, s) for s, t in enumerate(_nearest_blocks(teacher_layers, student_layers))]
    pairs: list[tuple[Block, Block]] = [(t, s) for s, t in enumerate(uniform_blocks(teacher_layers, student_layers))]
    return pairs[:-1] if rule == "skip" else pairs


def _block(block: Block, num_layers: int, whose: str) -> Block:
    if block == "embeddings":
        return block
    number = int(block)
    if not -num_layers <= number < num_layers:
        raise InputError(
            f"block {number} does not exist: the {whose} has {num_layers} blocks",
            key="layers",
            allowed=f"0 to {num_layers - 1}, -{num_layers} to -1, or embeddings",
        )
    return number % num_layers


class Projections(nn.Module):
    """One learned linear map per pair, applied to the student's states; no maps if the widths are equal."""

    def __init__(self, pairs: Sequence[object] | Pairs, student_size: int, teacher_size: int, mode: ProjectionMode):
        """Create a map for every pair if the widths differ.

        Args:
            pairs: pairs of blocks, with one map per pair.
            student_size: width of the student's states.
            teacher_size: width of the teacher's states.
            mode: `auto` or `none`.

        Raises:
            InputError: widths differ and `mode` is `none`.
        """
        super().__init__()
        self.maps = nn.ParameterList()
        if student_size == teacher_size:
            return
        if mode == "none":
            raise InputError(
                f"hidden sizes differ (student {student_size}, teacher {teacher_size}), but `projection` is `none`",
                key="projection",
                allowed=("auto", "none"),
                hint="use `projection: auto`, or set the student's hidden_size to the teacher's",
            )
        for _ in range(len(pairs)):
            self.maps.append(nn.Linear(student_size, teacher_size, bias=False).weight)

    def forward(self, states: Tensor, pair: int) -> Tensor:
        """Map student states (..., d_s) of pair number `pair` to (..., d_t), in float32 or float64."""
        states = at_least_float32(states)
        if not len(self.maps):
            return states
        return nn.functional.linear(states, self.maps[pair].to(states.dtype))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast a tensor to float32; keep float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
