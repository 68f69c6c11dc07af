"""Compute the fingerprints of manifest versions up to 2, so that data prepared then is still found.

Those fingerprints included the module of a reader's class, the manifest's format version and every default. The modules
and defaults of that time are frozen here: neither moving a reader nor a new option changes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcore import Corpus, path_keys

_FORMAT_VERSION = 2
_PREPARATION = 1


@dataclass(frozen=True)
class OldReader:
    """The parts of a reader's fingerprint in manifest version 2.

    Attributes:
        place: `module:Class`.
        revision: the last revision that such a fingerprint holds.
        defaults: every setting except paths.
    """

    place: str
    revision: int
    defaults: Mapping[str, Any]


OLD_READERS = {
    "text": OldReader("kdcore.data.text:TextCorpus", 2, {"weight": 1.0, "documents": "lines"}),
    "wikipedia": OldReader("kdcore.data.wikipedia:WikipediaCorpus", 2, {"weight": 1.0}),
    "books": OldReader("kdcore.data.books:BooksCorpus", 1, {"weight": 1.0, "encoding": None}),
    "jsonl": OldReader("kdcore.data.jsonl:JsonLinesCorpus", 1, {"weight": 1.0, "field": "text"}),
    "parquet": OldReader("kdcore.data.parquet:ParquetCorpus", 1, {"weight": 1.0, "column": "text"}),
    "hdf5": OldReader("kdcore.data.hdf5:Hdf5Corpus", 1, {"weight": 1.0}),
    "huggingface": OldReader(
        "kdcore.data.huggingface:HuggingFaceCorpus",
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


def old_fingerprint(
    stated: Mapping[str, Any],
    corpora: Sequence[tuple[str, Corpus]],
    inputs: Sequence[Mapping[str, Any]],
    tokenizer_fingerprint: str,
    preparation: int,
) -> str:
    """Compute the fingerprint that data of manifest version 2 has.

    Args:
        stated: the keys that the data recipe states, without `corpora` and `tokenizer`.
        corpora: registered name and instance of each reader.
        inputs: name, size and SHA-256 of every input file.
        tokenizer_fingerprint: of the tokenizer alone.
        preparation: revision of the preparation; after the first one no data has the fingerprint.
    """
    recipe = {**OLD_RECIPE_DEFAULTS, **stated}
    if recipe["sentences"] is None:
        recipe["sentences"] = recipe["packing"] == "full"
    content = {
        **recipe,
        "format_version": _FORMAT_VERSION,
        "corpora": [_reader(name, corpus) for name, corpus in corpora],
        "inputs": list(inputs),
        "tokenizer": tokenizer_fingerprint,
    }
    if preparation != _PREPARATION:
        content["preparation"] = preparation
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _reader(name: str, corpus: Corpus) -> dict[str, Any]:
    cls, old = type(corpus), OLD_READERS.get(name)
    place = f"{cls.__module__}:{cls.__qualname__}" if old is None else old.place
    settings: dict[str, Any] = corpus.config.model_dump(mode="json", exclude_unset=old is not None)
    for key in path_keys(type(corpus.config)):
        settings.pop(key, None)
    if old is not None:
        settings = {**old.defaults, **settings}
    return {"reader": place, "revision": corpus.revision, "settings": settings}
