"""Readers and defaults as of manifest version 2; manifests up to this version store all defaults but no revisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OldReader:
    """A reader as of manifest version 2.

    Attributes:
        revision: its last revision before manifest version 3.
        defaults: the default of every setting except paths.
    """

    revision: int
    defaults: Mapping[str, Any]


OLD_READERS = {
    "text": OldReader(2, {"weight": 1.0, "documents": "lines"}),
    "wikipedia": OldReader(2, {"weight": 1.0}),
    "books": OldReader(1, {"weight": 1.0, "encoding": None}),
    "jsonl": OldReader(1, {"weight": 1.0, "field": "text"}),
    "parquet": OldReader(1, {"weight": 1.0, "column": "text"}),
    "hdf5": OldReader(1, {"weight": 1.0}),
    "huggingface": OldReader(
        1,
        {"weight": 1.0, "dataset": None, "subset": None, "revision": None, "split": "train", "column": "text"},
    ),
}

OLD_RECIPE_DEFAULTS: dict[str, Any] = {
    "sequence_length": 128,
    "packing": "document",
    "sentences": None,
    "short_sequences": 0.0,
    "remove_duplicates": False,
    "held_out": 0.02,
    "seed": 0,
}
