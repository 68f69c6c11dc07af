"""Defaults of `kdcore distil` for fine-tuned classifiers and taggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcore import Defaults, GivenData, TeacherKind

_WEIGHTS = {"temperature": 2.0, "weight": 0.5}
_LOSSES: dict[str, dict[str, Any]] = {
    "sequence": {"soft_targets": {"positions": "classes", **_WEIGHTS}, "classification": {"weight": 0.5}},
    "token": {
        "soft_targets": {"head": "token_classes", "column": "word_starts", **_WEIGHTS},
        "classification": {"weight": 0.5},
    },
}


class LabelledDefaults(Defaults):
    """For fine-tuned teachers and labelled texts: the teacher's task, with losses on its predictions and the labels."""

    priority = 20

    def sections(self, teacher: TeacherKind, data: GivenData) -> Mapping[str, Any] | None:
        """Return task, data and losses. The classes are the teacher's; a tenth of the texts is held out by default."""
        kind = teacher.classifies
        if kind is None or not data.is_table():
            return None
        if isinstance(data.section, Mapping):
            texts = dict(data.section)
        else:
            columns = {"text": data.column, "label": "label"} if kind == "sequence" else {}
            texts = {"train": str(data.path), **columns}
        if not {"validation", "split", "glue", "huggingface"} & texts.keys():
            texts["split"] = {"validation": 0.1}
        if not {"labels", "regression", "glue"} & texts.keys():
            texts |= _classes(teacher)
        return {
            "task": {"name": f"{kind}_classification", "data": texts},
            "losses": _LOSSES[kind],
            "optimizer": {"lr": 5e-5},
            "scheduler": {"warmup": 0.1},
            "training": {"gradient_clipping": 1.0},
            "validation": {"every": {"epochs": 0.5}},
        }


def _classes(teacher: TeacherKind) -> dict[str, Any]:
    names = {int(number): str(name) for number, name in teacher.config.get("id2label", {}).items()}
    if len(names) == 1:
        return {"regression": True}
    unnamed = all(name == f"LABEL_{number}" for number, name in names.items())
    labels = {"labels": [str(number) if unnamed else names[number] for number in sorted(names)]}
    return labels | (
        {"multi_label": True} if teacher.config.get("problem_type") == "multi_label_classification" else {}
    )
