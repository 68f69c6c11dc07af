"""The signals of a teacher as columns with one row per real token, masked token or sequence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kdcore import (
    AttentionPart,
    AttentionPattern,
    Batch,
    Block,
    InputError,
    ModelInfo,
    Positions,
    SignalRequest,
    Signals,
)

RowLevel = Literal["token", "masked", "sequence"]
"""The unit of a column's rows."""


StoredType = Literal["fp32", "bf16", "fp16", "int8"]
"""How values are stored: `int8` has one float32 scale per row."""

PredictionForm = Literal["full", "top_k", "random_sampling"]
"""How predictions over the vocabulary are stored; see `stored_predictions`."""


class StoredEntry(BaseModel):
    """Base class for entries of a cache's files; unknown keys are ignored for forward compatibility."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class SignalColumn(StoredEntry):
    """One signal.

    Attributes:
        name: kind and place, such as `hidden.3`, `query.0`, `logits.masked`, `factored.all`, `head.sequence_classes`.
        level: unit of a row.
        shape: shape of one row as read by losses, such as [d], [A, d_k] or [V].
        form: how predictions over the vocabulary are stored; `full` for other signals.
        kept: number of tokens stored for each prediction; 0 for all.
    """

    name: str
    level: RowLevel
    shape: tuple[int, ...]
    form: PredictionForm = "full"
    kept: int = 0


class AttentionEntry(StoredEntry):
    """Properties of a block that losses on attention read in addition to its states.

    Attributes:
        scale: factor on `query @ key^T`.
        window: greatest distance between a query and its keys; None without a limit.
        biased: whether the scores have a bias, which is not stored.
    """

    scale: float
    window: int | None = None
    biased: bool = False


def names_of(request: SignalRequest) -> list[str]:
    """Return the names of the columns that contain the requested signals, sorted."""
    names = [f"hidden.{block}" for block in request.hidden_blocks]
    names += [f"{part}.{block}" for part, block in request.attention_parts]
    names += [f"logits.{positions}" for positions in request.prediction_positions]
    names += [f"factored.{positions}" for positions in request.factored_positions]
    names += [f"head.{name}" for name in request.heads]
    return sorted(names)


def request_of(names: Iterable[str]) -> SignalRequest:
    """Return the request for columns of these names."""
    request = SignalRequest()
    for name in names:
        kind, _, place = name.partition(".")
        if kind == "hidden":
            request |= Signals.hidden([block_of(place)])
        elif kind == "head":
            request |= SignalRequest(heads=frozenset({place}))
        elif kind in ("logits", "factored"):
            positions: Positions = "masked" if place == "masked" else "all"
            request |= Signals.predictions(positions, factored=kind == "factored")
        else:
            request |= Signals.attention([_part(kind)], [int(place)])
    return request


def level_of(name: str, info: ModelInfo) -> RowLevel:
    """Return the unit of the rows of a model's column."""
    kind, _, place = name.partition(".")
    if kind == "head":
        head = info.head(place)
        assert head is not None
        return head.level
    return "masked" if place == "masked" else "token"


def block_of(place: str) -> Block:
    """Return the block given in a column's name."""
    return "embeddings" if place == "embeddings" else int(place)


def rows_of(signals: Signals, name: str) -> Tensor:
    """Return the rows of a column from the signals of a live teacher: (rows, *shape)."""
    kind, _, place = name.partition(".")
    if kind == "hidden":
        return signals.tokens(block_of(place))
    if kind == "logits":
        return signals.logits("masked" if place == "masked" else "all")
    if kind == "factored":
        return signals.factored("masked" if place == "masked" else "all").states
    if kind == "head":
        return signals.outputs(place)
    return signals.packed_heads(_part(kind), int(place)).states


def attention_of(signals: Signals, names: Iterable[str]) -> dict[str, AttentionEntry]:
    """Return the entries to store for the attention of each block, by block number.

    Raises:
        InputError: the mask of a block depends on more than lengths and a window, or queries and keys are requested
            although their scores have a bias.
    """
    found = {}
    names = list(names)
    for name in names:
        kind, _, place = name.partition(".")
        if kind in ("query", "key", "value") and place not in found:
            heads = signals.packed_heads(_part(kind), int(place))
            if heads.pattern is None:
                raise InputError(
                    f"`{name}` cannot be stored: the attention of block {place} of this teacher has a mask that "
                    "depends on more than lengths and a window, and a cache contains only queries, keys and values",
                    hint="remove the cache (a live teacher has all signals), or replace the losses that read "
                    "attention with losses on hidden states or predictions",
                )
            biased = heads.pattern.bias is not None
            found[place] = AttentionEntry(scale=heads.scale, window=heads.pattern.window, biased=biased)
    refuse_biased_scores(found, names)
    return found


def refuse_biased_scores(attention: Mapping[str, AttentionEntry], names: Collection[str]) -> None:
    """Reject queries together with keys of blocks whose scores have a bias, which a cache does not contain.

    Relations of queries, of keys or of values do not depend on the bias, but scores do, and a loss that reads queries
    and keys may compute scores.

    Args:
        attention: the entries of the blocks, by block number.
        names: names of the requested columns.

    Raises:
        InputError: both are requested.
    """
    for place, entry in attention.items():
        if entry.biased and f"query.{place}" in names and f"key.{place}" in names:
            raise InputError(
                f"`query.{place}` and `key.{place}` cannot both be read from a cache: the attention of block {place} "
                "of this teacher adds a bias to its scores, such as relative positions, and a cache contains only "
                "queries, keys and values",
                hint="remove the cache (a live teacher has all signals), or use relations without one of the two: "
                "`minilm_v2` with `relations: {key: 0}`, or `value_relation_kl`",
            )


def counts_of(batch: Batch, level: RowLevel) -> np.ndarray:
    """Return the number of rows of each sequence of a batch at a level: (B,) int64."""
    if level == "token":
        return batch.lengths.astype(np.int64)
    if level == "sequence":
        return np.ones(batch.num_sequences, np.int64)
    rows = batch.masked_index.cpu().numpy() // batch.input_ids.shape[1]
    return np.bincount(rows, minlength=batch.num_sequences)


def pattern_of(entry: AttentionEntry) -> AttentionPattern:
    """Return the structure of a block's mask."""
    return AttentionPattern(window=entry.window)


def _part(kind: str) -> AttentionPart:
    parts: dict[str, AttentionPart] = {"query": "query", "key": "key", "value": "value"}
    return parts[kind]


def require_finite(values: Tensor, name: str, counts: np.ndarray, samples: np.ndarray, split: str) -> None:
    """Reject values that are not finite.

    Args:
        values: rows of a column.
        name: name of the column.
        counts: (B,) rows of each sequence.
        samples: (B,) indices of the sequences.
        split: their split.

    Raises:
        InputError: a value is not finite; the message names the signal and the first sample.
    """
    finite = torch.isfinite(values).flatten(1).all(1)
    if not bool(finite.all()):
        row = int(finite.int().argmin())
        sample = int(samples[np.searchsorted(np.cumsum(counts), row, side="right")])
        raise InputError(
            f"the teacher's signal `{name}` is not finite in sample {sample} of the split `{split}`",
            hint="repair the teacher, or compute it in fp32: teacher.dtype=fp32",
        )
