"""The model `vectors`: a teacher whose embeddings of texts were computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Block,
    ComponentConfig,
    DataError,
    Encoder,
    Head,
    InputError,
    Model,
    ModelInfo,
    PathString,
    Role,
    SignalRequest,
    Signals,
    Split,
    Task,
    sha256_of_file,
)
from kdcore_teacher_cache.vectors import Vectors, read_vectors

EMBEDDING = "embedding"
_UNLIMITED = 2**31


class VectorTeacher(Model):
    """A teacher that provides stored vectors of texts as the head `embedding`, but no other signals.

    The task must provide texts.
    """

    class Config(ComponentConfig):
        """Keys of a `vectors` teacher."""

        path: PathString = Field(description="Parquet or JSON Lines file with the columns `id`, `text` and `vector`.")

    config: Config

    def __init__(self, config: Config, role: Role, teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        if role == "student":
            raise InputError("vectors cannot be a student", key="student.name")
        self._vectors: Vectors = read_vectors(config.path)
        self._rows: dict[str, np.ndarray] = {}
        width = self._vectors.values.shape[1]
        self.info = ModelInfo(
            "vectors",
            num_layers=1,
            hidden_size=width,
            num_heads=1,
            head_size=width,
            vocab_size=_UNLIMITED,
            max_length=_UNLIMITED,
            heads=[Head(EMBEDDING, "sequence", width, problem_type="regression")],
            attention=False,
        )

    @property
    def source(self) -> None:
        """Return None: there are no weights."""
        return None

    def file_hashes(self) -> dict[str, str]:
        """Return the hash of the file."""
        path = Path(self.config.path)
        return {path.name: sha256_of_file(path)}

    def check_task(self, task: Task, requests: Mapping[Split, SignalRequest]) -> None:
        """Find the vector of every sample.

        Raises:
            DataError: texts have no vector.
            InputError: the task has no texts, or a loss reads other signals.
        """
        if requests["train"] != Signals.head(EMBEDDING):
            hint = "use losses that read the head `embedding`"
            raise InputError("vectors have no hidden states, attention or predictions", key="teacher", hint=hint)
        splits: tuple[Split, ...] = ("train", "held_out")
        for split in splits:
            samples = np.arange(task.num_samples(split), dtype=np.int64)
            texts = task.texts(split, samples)
            if texts is None:
                what, hint = "the task has no texts to find vectors by", "use the task `embeddings`"
                raise InputError(what, key="task", hint=hint)
            self._rows[split] = self._vectors.rows(texts)

    def load_teacher(self, request: SignalRequest) -> VectorEncoder:
        """Return an encoder that looks vectors up."""
        return VectorEncoder(self.info, self._vectors, self._rows)

    def build_student(self, request: SignalRequest) -> Encoder:
        """Raise an error, because vectors cannot be a student."""
        raise InputError("vectors cannot be a student", key="student.name")


class VectorEncoder(Encoder):
    """Look up the vectors of a batch by split and samples."""

    keeps_precision = True

    def __init__(self, info: ModelInfo, vectors: Vectors, rows: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.info = info
        self._vectors = vectors
        self._rows = rows

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Return the vectors of the batch's samples as outputs of the head `embedding`."""
        rows = None if batch.split is None else self._rows.get(batch.split)
        if rows is None:
            raise DataError("has no vectors for batches without sample numbers", where=str(self._vectors.path))
        values = torch.from_numpy(self._vectors.values[rows[batch.samples]])
        return VectorSignals(batch, values.to(batch.input_ids.device, non_blocking=True))

    def compile_parts(self) -> None:
        """Do nothing: there is nothing to compile."""

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Raise an error, because vectors have no weights."""
        raise InputError("vectors have no weights to export")


class VectorSignals(Signals):
    """Signals with the vectors as the head `embedding`, and, as states of tokens, the vectors of their texts."""

    def __init__(self, batch: Batch, vectors: Tensor) -> None:
        super().__init__(batch, {}, {}, {}, heads={EMBEDDING: vectors})
        self._vectors = vectors
        self._lengths = batch.lengths

    def tokens(self, block: Block) -> Tensor:
        """Return the vector of each real token's text (N, D); validation averages them over a text."""
        return self._vectors.repeat_interleave(torch.from_numpy(self._lengths).to(self._vectors.device), 0)
