"""The description of a cache: its content and the inputs from which it was computed."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kdcore import DataError, Model, Problem, find_component, read_json_object, without_paths, write_json
from kdcore_teacher_cache.signal_columns import AttentionEntry, SignalColumn, StoredEntry, StoredType

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONTENTS = "contents.json"
"""Describes a cache that is being written; the manifest replaces it."""

DESCRIPTION = "teacher"
"""Folder with the teacher's configuration and tokenizer, without weights."""

CACHE_AGAIN = "remove the folder and run `kdcore teacher cache` again"

CachedSplit = Literal["train", "held_out"]
_Count = Annotated[int, Field(ge=0)]
_FileName = Annotated[str, Field(pattern=r"^[^./\\\x00][^\\\x00]*$")]


class CachedRows(StoredEntry):
    """The rows of one split.

    Attributes:
        samples: sequences of the split.
        copies: number of epochs whose inputs differ.
        samples_per_shard: sequences in a file; the last file of a copy may have fewer.
        columns: the signals.
    """

    samples: _Count
    copies: Annotated[int, Field(ge=1)]
    samples_per_shard: Annotated[int, Field(ge=1)]
    columns: list[SignalColumn]

    @property
    def shards_per_copy(self) -> int:
        """Return the number of files of one copy."""
        return -(-self.samples // self.samples_per_shard)

    def shard(self, number: int) -> tuple[int, int, int]:
        """Return the copy of a file, the index of its first sample, and the index one past its last sample."""
        copy, place = divmod(number, self.shards_per_copy)
        start = place * self.samples_per_shard
        return copy, start, min(self.samples, start + self.samples_per_shard)


class CachedModel(StoredEntry):
    """The teacher whose signals are stored.

    Attributes:
        section: result of `teacher_section`.
        files: SHA-256 of its weights and configuration by name.
        precision: precision of the computation.
        tf32: whether products of float32 matrices were rounded to TF32.
    """

    section: dict[str, Any]
    files: dict[str, str]
    precision: str
    tf32: bool = False


class CacheContents(StoredEntry):
    """Planned content of a cache; two caches with equal contents are identical byte for byte.

    Attributes:
        teacher: the teacher.
        task: `Task.batch_identity` of the task whose samples were read.
        values: how values are stored.
        batch_size: batch size of the teacher.
        splits: the rows of each split.
        attention: masks and scales of blocks whose queries, keys or values are stored.
    """

    format_version: int = FORMAT_VERSION
    teacher: CachedModel
    task: dict[str, str]
    values: StoredType
    batch_size: Annotated[int, Field(ge=1)]
    splits: dict[CachedSplit, CachedRows]
    attention: dict[str, AttentionEntry] = Field(default_factory=dict)

    def shard_files(self) -> list[tuple[CachedSplit, int, str]]:
        """Return split, number and name of each file of rows."""
        return [
            (split, number, f"{split}-{number:05d}.arrow")
            for split, rows in self.splits.items()
            for number in range(rows.copies * rows.shards_per_copy)
        ]


class StoredFile(StoredEntry):
    """Size and SHA-256 of a file."""

    bytes: _Count
    sha256: str


class CacheManifest(StoredEntry):
    """The manifest of a complete cache.

    Attributes:
        contents: content of the cache.
        files: all other files by their paths in the folder.
        source: folder or hub name of the teacher's weights at the time of caching.
    """

    contents: CacheContents
    files: dict[_FileName, StoredFile]
    source: str | None = None
    kdcore_version: str = ""


class _Header(StoredEntry):
    format_version: int
    kdcore_version: str = ""
    sha256: str


def teacher_section(name: str, model: Model) -> dict[str, Any]:
    """Return a teacher's name and its keys that differ from the defaults, without local paths and `path`.

    Args:
        name: name of the model, as in a recipe.
        model: the teacher.
    """
    found = find_component("kdcore.models", name)
    pinned = found.name if found.package in (None, "kdcore") else f"{found.package}:{found.name}"
    keys = model.config.model_dump(mode="json", exclude={"path"}, exclude_defaults=True)
    return {"name": pinned, **without_paths(type(model.config), keys)}


def write_cache_manifest(
    folder: Path, contents: CacheContents, files: dict[str, StoredFile], source: str | None
) -> None:
    """Write the manifest with its own hash, as the last file of a cache."""
    version = metadata.version("kdcore-teacher-cache")
    manifest = CacheManifest(contents=contents, files=files, source=source, kdcore_version=version)
    content = {"format_version": FORMAT_VERSION, **manifest.model_dump(mode="json")}
    write_json(folder / MANIFEST, {**content, "sha256": hash_of(content)})


def read_cache_manifest(folder: Path) -> CacheManifest:
    """Read the manifest of a complete cache, and compare it with its hash.

    Raises:
        DataError: the folder is not a cache, is incomplete or damaged, or was written by a different version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / CONTENTS).is_file():
            what, hint = "the cache is incomplete", "run `kdcore teacher cache RECIPE FOLDER` again: it continues there"
        elif folder.is_dir():
            what, hint = f"is not a cache: it has no {MANIFEST}", "create one with `kdcore teacher cache RECIPE FOLDER`"
        else:
            what, hint = "no such folder", "create it with `kdcore teacher cache RECIPE FOLDER`"
        raise DataError(what, where=str(folder), hint=hint)
    header = read_json_object(path, _Header, hint=CACHE_AGAIN)
    if header.format_version != FORMAT_VERSION:
        raise DataError(
            f"was written by kdcore-teacher-cache {header.kdcore_version} (found format version "
            f"{header.format_version}, expected {FORMAT_VERSION})",
            where=str(path),
            hint=f"install that version, or {CACHE_AGAIN}",
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["sha256"]
    if header.sha256 != (found := hash_of(content)):
        what = f"its content differs from its own checksum (found {found}, expected {header.sha256})"
        raise DataError(what, where=str(path), hint=CACHE_AGAIN)
    return read_json_object(path, CacheManifest, hint=CACHE_AGAIN)


def hash_of(content: dict[str, Any]) -> str:
    """Compute the SHA-256 of canonical JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(found: CacheContents, expected: CacheContents, where: Path) -> list[Problem]:
    """Return one problem for each difference between two caches."""
    one, other = (_flat(contents.model_dump(mode="json")) for contents in (found, expected))
    return [
        Problem(f"differs (found {_short(one.get(key))}, expected {_short(other.get(key))})", str(where), key)
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    ]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{key}.{name}" if key else name)
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
