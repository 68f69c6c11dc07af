"""Default losses for any encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcore import Defaults, GivenData, TeacherKind


class HiddenDefaults(Defaults):
    """The mean squared error of the last hidden states, which every encoder has."""

    def sections(self, teacher: TeacherKind, data: GivenData) -> Mapping[str, Any] | None:
        """Return the loss, and a low masking probability, because the teacher may not have been trained with masks."""
        task = {"name": "masked_lm", "masking": {"probability": 0.05}}
        return {"task": task, "losses": {"hidden_mse": {"layers": "last"}}}
