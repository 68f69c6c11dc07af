"""Defaults of `kdcore distil` for sentence encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcore_preparation import file_format

from kdcore import Defaults, GivenData, TeacherKind, load_recipe
from kdcore_embeddings.data.records import FORMATS


class SentenceEncoderDefaults(Defaults):
    """The recipe `embeddings/domain.yaml`, for teachers saved by sentence-transformers."""

    priority = 20

    def sections(self, teacher: TeacherKind, data: GivenData) -> Mapping[str, Any] | None:
        """Return the recipe's sections except the student, for texts that the task `embeddings` can read."""
        texts: Mapping[str, Any]
        if data.is_table() and isinstance(data.section, Mapping):
            texts = data.section
        elif data.path is not None and (data.path.is_dir() or file_format(data.path) in FORMATS):
            texts = {"train": str(data.path)} | ({} if data.column == "text" else {"text": data.column})
        else:
            return None
        if teacher.file("modules.json") is None:
            return None
        stated = {"teacher.path": teacher.source, "task.data": texts}
        recipe = load_recipe("kdcore:embeddings/domain.yaml", stated, check_names=False).data
        return {key: section for key, section in recipe.items() if key not in ("run", "seed", "student")}
