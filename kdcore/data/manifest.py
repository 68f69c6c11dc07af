"""The manifest of a folder of prepared data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdcore.errors import DataError, Problem
from kdcore.utils.atomic import atomic_write
from kdcore.utils.stored import read_small_file

FORMAT_VERSION = 3
OLDEST_FORMAT_VERSION = 1
MANIFEST = "manifest.json"

RowType = Literal["uint16", "int32"]
PreparedSplit = Literal["train", "held_out"]
"""A split of prepared data; `held_out` is empty if the recipe holds out no data."""

_HASH = "sha256"
FIRST_WITH_HASH = 3
"""Manifests of earlier formats do not contain a hash of themselves."""

PREPARE_AGAIN = "remove the folder and prepare the data again"


def row_dtype(vocab_size: int) -> RowType:
    """Return the smaller of the two types that can represent every id."""
    return "uint16" if vocab_size <= 2**16 else "int32"


Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$")]


class _Stored(BaseModel):
    # Unknown keys are ignored, so that manifests with later minor additions stay readable.
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ShardEntry(_Stored):
    """One file of rows.

    `corpus` is the number of the corpus that the rows belong to; `predictions` is the number of masked positions stored
    with each row, or 0 if rows are not masked.
    """

    file: FileName
    rows: Count
    bytes: Count
    sha256: str
    corpus: Count = 0
    predictions: Count = 0


class Alignment(_Stored):
    """How well the student's and the teacher's tokens of a split's text align.

    Attributes:
        teacher_tokens: number of the teacher's tokens, without special tokens.
        units: number of spans between token boundaries common to both models, including one for each special token.
        characters: number of characters in the text, not counting white space.
        unaligned: number of these characters that belong to no unit, because the tokens of one model do not cover them.
        split_sequences: number of sequences that were split because their teacher tokens were too long for one row.
    """

    teacher_tokens: Count = 0
    units: Count = 0
    characters: Count = 0
    unaligned: Count = 0
    split_sequences: Count = 0


class CharactersEntry(_Stored):
    """Character counts of a corpus at one stage of reading or preparing it.

    For each reason, `dropped` counts dropped characters, and `rewritten` counts characters before and after rewriting.
    Summed over reasons, `received + after - before == dropped + passed`.
    """

    received: Count
    passed: Count
    dropped: dict[str, Count] = Field(default_factory=dict)
    rewritten: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)


class SplitEntry(_Stored):
    """One split: its files and their contents.

    `tokens` counts the tokens of the text without [CLS], [SEP] and [PAD]; `sentences` is None if sentences were not
    detected, and `alignment` is None if the rows contain the tokens of only one tokenizer. `text_characters` counts all
    characters of the text, `visible_characters` all except white space, `unknown_characters` those inside [UNK].
    `repeated_documents` counts documents that differ from an earlier document of the split at most in case, white space
    and punctuation. The last four counts are None for rows of token ids and in older manifests.
    """

    documents: int = 0
    sentences: int | None = None
    sequences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    text_characters: Count | None = None
    visible_characters: Count | None = None
    unknown_characters: Count | None = None
    repeated_documents: Count | None = None
    shards: list[ShardEntry] = Field(default_factory=list)
    alignment: Alignment | None = None


class SpecialTokens(_Stored):
    """Ids of special tokens; `all` lists every id that never represents text."""

    pad: int
    cls: int
    sep: int
    mask: int
    unk: int | None
    all: list[int]


class TeacherRows(_Stored):
    """The teacher's tokens of the same text, which each row contains in addition to the student's tokens.

    `sequence_length` is the number of columns, and `dtype` is the type of the ids.
    """

    tokenizer_fingerprint: str
    vocab_size: Count
    special_tokens: SpecialTokens
    sequence_length: Annotated[int, Field(ge=3)]
    dtype: RowType


class Damage(_Stored):
    """A damaged part of a corpus; the content before the damage is included in the prepared data."""

    corpus: int
    part: str
    what: str
    where: str | None = None
    allowed: list[str] = []
    hint: str | None = None

    def problem(self) -> Problem:
        """Return the damage as one line of an error."""
        return Problem(self.what, where=self.where, allowed=self.allowed, hint=self.hint)


class ReaderEntry(_Stored):
    """The reader of a corpus.

    `source` is the SHA-256 of the file that defines a class registered at run time; None for an installed reader.
    """

    name: str
    revision: int
    source: str | None = None


class _InputEntry(_Stored):
    corpus: Count
    name: str
    bytes: Count
    sha256: str


class _StoredRecipe(_Stored):
    class CorpusName(_Stored):
        name: str

    corpora: list[CorpusName] = []


class Manifest(_Stored):
    """The description of a prepared folder.

    `reports` counts, for each corpus, what was repaired or left out; `characters` lists the stages of each corpus in
    order; `problems` describes likely problems with the data and is None in older manifests; `weights` is the number of
    times each corpus's sequences appear in an epoch. `stated` lists the keys of `recipe` that were set explicitly,
    `readers` describes the readers, and `preparation` is the revision of the preparation; format versions 1 and 2 have
    none of these. `teacher` describes the teacher's tokens; it is None if the rows contain the tokens of only one
    tokenizer. Versions of kdcore without support for `teacher` can train students without a teacher on this data, and
    reject a teacher with a different vocabulary. `tokenizer_files` maps the paths of the tokenizers' files in the
    folder to their SHA-256; it is empty in older manifests.
    """

    format_version: int
    kdcore_version: str
    fingerprint: str
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    tokenizer_fingerprint: str
    vocab_size: Count
    special_tokens: SpecialTokens
    sequence_length: Annotated[int, Field(ge=3)]
    dtype: RowType
    reports: list[dict[str, Count]]
    splits: dict[PreparedSplit, SplitEntry]
    weights: list[float] = Field(default_factory=list)
    damages: list[Damage] = Field(default_factory=list)
    stated: list[str] | None = None
    readers: list[ReaderEntry] = Field(default_factory=list)
    preparation: int = 1
    teacher: TeacherRows | None = None
    tokenizer_files: dict[str, str] = Field(default_factory=dict)
    characters: list[dict[str, CharactersEntry]] = Field(default_factory=list)
    problems: list[str] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check("recipe", _StoredRecipe, self.recipe)
        for number, entry in enumerate(self.inputs):
            _check(f"inputs.{number}", _InputEntry, entry)
        shards = [shard for split in self.splits.values() for shard in split.shards]
        if any(shard.corpus >= max(1, len(self.weights)) for shard in shards):
            raise ValueError("a file belongs to a corpus that has no weight")
        return self


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, including its own hash, as the last file of a folder."""
    content = manifest.model_dump(mode="json")
    write_json(folder / MANIFEST, {**content, _HASH: _hash_of(content)})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest, of any version up to the current one, and verify its hash.

    Raises:
        DataError: the manifest is missing, damaged or changed, or was written by a newer kdcore.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(read_small_file(path))
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise DataError("no such folder", where=str(folder), hint="create it with kdcore prepare") from error
        raise DataError(
            f"is not a folder of prepared data: it has no {MANIFEST}",
            where=str(folder),
            hint="create one with kdcore prepare",
        ) from error
    except RecursionError as error:
        raise DataError("cannot be read (nested too deeply)", where=str(path), hint=PREPARE_AGAIN) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), hint=PREPARE_AGAIN) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"found a {type(content).__name__}, expected a JSON object")
    version = content.get("format_version")
    if type(version) is not int or version < OLDEST_FORMAT_VERSION:
        what = "is missing" if version is None else f"found {version!r}"
        raise _damaged(path, f"{what}, expected a number from {OLDEST_FORMAT_VERSION}", "format_version")
    if version > FORMAT_VERSION:
        raise DataError(
            f"was written by a newer kdcore ({content.get('kdcore_version')}, format version {version})",
            where=str(folder),
            allowed=f"format versions {OLDEST_FORMAT_VERSION} to {FORMAT_VERSION}",
            hint="upgrade kdcore, or prepare the data again with this version",
        )
    stored = content.pop(_HASH, None)
    if version >= FIRST_WITH_HASH or stored is not None:
        found = _hash_of(content)
        if stored != found:
            raise _damaged(path, f"its content differs from its own checksum (found {found}, expected {stored})", _HASH)
    try:
        return Manifest.model_validate(content, strict=True)
    except ValidationError as error:
        raise _damaged(path, _first(error)) from error


def _hash_of(content: dict[str, Any]) -> str:
    """Compute the SHA-256 of a manifest without its hash: canonical JSON, keys sorted."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check(key: str, model: type[BaseModel], value: Any) -> None:
    try:
        model.model_validate(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{key}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")


def _damaged(path: Path, what: str, key: str | None = None) -> DataError:
    return DataError(f"is damaged: {what}", where=str(path), key=key, hint=PREPARE_AGAIN)
