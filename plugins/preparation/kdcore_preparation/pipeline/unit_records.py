"""Records of the finished units of an unfinished preparation."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from kdcore import CharactersEntry, Damage, PreparedSplit, ShardEntry, write_json


class TokenisedUnit(BaseModel):
    """A tokenised unit that is not written until the duplicates in all units are known."""

    documents: int
    tokens: int
    report: dict[str, int]
    damages: list[Damage]
    characters: dict[str, CharactersEntry]


class WrittenUnit(BaseModel):
    """A unit whose shards have been written."""

    shards: dict[PreparedSplit, list[ShardEntry]]
    counts: dict[PreparedSplit, dict[str, int]]
    report: dict[str, int]
    damages: list[Damage]
    characters: dict[str, CharactersEntry]
    nearest: float | None

    def total(self, name: str) -> int:
        """Sum a count over all splits."""
        return sum(counts.get(name, 0) for counts in self.counts.values())


Record = TypeVar("Record", TokenisedUnit, WrittenUnit)


class Records:
    """Records and other files of units, in a separate folder.

    Args:
        folder: folder of the records.
        shards: folder of the shards of written units.
    """

    def __init__(self, folder: Path, shards: Path) -> None:
        self._folder = folder
        self._shards = shards
        folder.mkdir(exist_ok=True)

    def path(self, unit: int, what: str) -> Path:
        """Return the path of a file of a unit."""
        return self._folder / f"{unit:05d}.{what}"

    def write(self, unit: int, record: TokenisedUnit | WrittenUnit) -> None:
        """Record that a unit is done; call this as the last step of a unit."""
        write_json(self.path(unit, _file_of(type(record))), record.model_dump(mode="json"))

    def tokenised(self, unit: int) -> TokenisedUnit | None:
        """Return the record of a tokenised unit."""
        return self._read(unit, TokenisedUnit)

    def written(self, unit: int) -> WrittenUnit | None:
        """Return the record of a unit whose shards exist."""
        record = self._read(unit, WrittenUnit)
        shards = [] if record is None else [shard for shards in record.shards.values() for shard in shards]
        return record if all(_size(self._shards / shard.file) == shard.bytes for shard in shards) else None

    def _read(self, unit: int, kind: type[Record]) -> Record | None:
        try:
            return kind.model_validate_json(self.path(unit, _file_of(kind)).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


def _file_of(kind: type[BaseModel]) -> str:
    return "tokenised.json" if kind is TokenisedUnit else "written.json"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
