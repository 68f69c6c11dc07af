"""What a folder of prepared data says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcore.data.splitting import Split
from kdcore.data.staging import whole_file
from kdcore.errors import DataError, Problem

FORMAT_VERSION = 2
MANIFEST = "manifest.json"

RowType = Literal["uint16", "int32"]

PREPARE_AGAIN = "remove the folder and prepare the data again"


def row_dtype(vocab_size: int) -> RowType:
    """The smaller type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "int32"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)  # unknown keys are let through: a later minor addition must stay readable


class ShardEntry(_Stored):
    """One file of rows.

    `corpus` is the number of the corpus that they are from; `predictions` how many masked places are stored with each
    row, 0 where rows are not masked.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    corpus: int = 0
    predictions: int = 0


class SplitEntry(_Stored):
    """One split: its files and what they hold.

    `tokens` are the text's, [CLS], [SEP] and [PAD] not counted; `sentences` is None where they were not told apart.
    """

    documents: int = 0
    sentences: int | None = None
    sequences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    shards: list[ShardEntry] = Field(default_factory=list)


class SpecialTokens(_Stored):
    """Ids of special tokens; `all` are every id that never stands for text."""

    pad: int
    cls: int
    sep: int
    mask: int
    unk: int | None
    all: list[int]


class Damage(_Stored):
    """A part of a corpus that could not be read to its end; what came before is in the data."""

    corpus: int
    part: str
    what: str
    where: str | None = None
    allowed: list[str] = []
    hint: str | None = None

    def problem(self) -> Problem:
        """As one line of an error."""
        return Problem(self.what, where=self.where, allowed=self.allowed, hint=self.hint)


class Manifest(_Stored):
    """What a prepared folder holds.

    `reports` say, for each corpus, what was repaired or left out and how often; `weights` how often an epoch shows the
    sequences of each corpus.
    """

    format_version: int
    kdcore_version: str
    fingerprint: str
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    tokenizer_fingerprint: str
    vocab_size: int
    special_tokens: SpecialTokens
    sequence_length: int
    dtype: RowType
    reports: list[dict[str, int]]
    splits: dict[Split, SplitEntry]
    weights: list[float] = Field(default_factory=list)
    damages: list[Damage] = Field(default_factory=list)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; the last file of a folder in the making."""
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        DataError: there is none, it is damaged, or another kdcore wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise DataError("there is no such folder", where=str(folder), hint="kdcore prepare makes one") from error
        raise DataError(
            f"is no folder of prepared data: it has no {MANIFEST}", where=str(folder), hint="kdcore prepare makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), hint=PREPARE_AGAIN) from error
    version = content.get("format_version") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        age, hint = "an older", PREPARE_AGAIN
        if version > FORMAT_VERSION:
            age, hint = "a newer", "upgrade kdcore, or prepare the data again with this one"
        raise DataError(
            f"was written by {age} kdcore ({content.get('kdcore_version')}): format version {version}",
            where=str(folder),
            allowed=f"format version {FORMAT_VERSION}",
            hint=hint,
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"is damaged: {first['msg']}", where=str(path), key=key, hint=PREPARE_AGAIN) from error
