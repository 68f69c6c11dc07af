"""The file `layers.json` of a run: a comparison of each layer of the student with the teacher."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcore import atomic_write, first_line

logger = logging.getLogger("kdcore")

LAYERS = "layers.json"

SimilarityMatrix = list[list[float | None]]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class PairedHeads(_FrozenModel):
    """Attention heads of a pair of blocks."""

    teacher: int = Field(description="Block of the teacher.")
    student: int = Field(description="Block of the student.")
    divergence: dict[str, list[float | None]] = Field(
        description="`student`, `initial` -> Jensen-Shannon divergence in bits between the attention of each head and "
        "the attention of the teacher's head with the same number, averaged over queries: 0 equal, 1 disjoint."
    )


class ErrorGroup(_FrozenModel):
    """Errors in a range of frequencies or positions: lowest <= value < highest."""

    lowest: int
    highest: int | None = Field(description="None for the last group.")
    count: int = Field(description="Number of tokens in the group.")
    values: dict[str, float] = Field(description="`teacher`, `student`, `initial` -> mean over the group's tokens.")


class Errors(_FrozenModel):
    """Errors of the models by groups of tokens."""

    measure: Literal["masked_lm", "state", "state_mapped"] = Field(
        description="`masked_lm`: cross-entropy in nats per masked token. `state`: squared distance between the states "
        "of the last pair of blocks, relative to the variance of the teacher's states. `state_mapped`: the same "
        "after the best affine map of the student's states, fitted on every second sequence and measured on the others."
    )
    by: Literal["frequency", "position"] = Field(
        description="`frequency`: occurrences per million tokens of training text; `position`: index in a sequence."
    )
    overall: dict[str, float]
    groups: list[ErrorGroup]


class LayerReport(_FrozenModel):
    """What each layer has learned, measured on held-out text. Undefined values are None.

    Mappings have the key `student`, and `initial` for the student before training if the run exported it.
    """

    format: Literal[1] = 1
    export: str = Field(description="The measured export, such as `final`.")
    teacher: str = Field(description="Folder or hub name of the teacher.")
    sequences: int
    tokens: int = Field(description="Number of tokens N from which CKA was computed.")
    teacher_blocks: list[int | Literal["embeddings"]] = Field(description="Rows of the matrices below.")
    student_blocks: list[int | Literal["embeddings"]] = Field(description="Columns of the matrices below.")
    pairs: list[tuple[int | Literal["embeddings"], int | Literal["embeddings"]]] = Field(
        description="Pairs of blocks [teacher, student] that losses compare; if none do, pairs at equal relative depth."
    )
    cka: dict[str, SimilarityMatrix] = Field(
        description="`student`, `initial` -> debiased linear CKA with the teacher."
    )
    cka_without_dominant: dict[str, SimilarityMatrix] = Field(description="The same without the dominant dimensions.")
    dominant: dict[str, list[list[int]]] = Field(
        description="`teacher`, `student`, `initial` -> dominant dimensions of each block."
    )
    heads: list[PairedHeads] = Field(description="Empty if heads cannot be compared.")
    errors: list[Errors]


def write_layers(folder: Path, report: LayerReport) -> Path:
    """Write `layers.json` into a run folder and return its path.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / LAYERS
    with atomic_write(path) as file:
        file.write(report.model_dump_json(indent=1).encode())
    return path


def read_layers(folder: Path) -> LayerReport | None:
    """Read `layers.json` of a run folder; return None if it is missing, and None with a warning if it is damaged."""
    path = folder / LAYERS
    try:
        return LayerReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        logger.warning(f"{path}: left out, because it cannot be read: {first_line(error)}")
        return None
