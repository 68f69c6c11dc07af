"""Train kdcore's encoders on labelled texts: read them, score predictions of whole sequences.

What other packages may use is a name of this module, imported on first access.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore_supervised.classification import ClassificationLoss
    from kdcore_supervised.data.glue import GlueData, GlueName
    from kdcore_supervised.data.labelled import LabelledData, LabelledTexts, majority_fraction, read_labelled
    from kdcore_supervised.data.labelled_tokens import TokenizedTexts, tokenize
    from kdcore_supervised.metrics import CLASS_METRICS, NUMBER_METRICS, Metric, metrics_of, require_libraries
    from kdcore_supervised.sequence_classification import SequenceClassification

# The public names and the modules that define them.
_HOMES = {
    "CLASS_METRICS": "metrics",
    "ClassificationLoss": "classification",
    "GlueData": "data.glue",
    "GlueName": "data.glue",
    "LabelledData": "data.labelled",
    "LabelledTexts": "data.labelled",
    "Metric": "metrics",
    "NUMBER_METRICS": "metrics",
    "SequenceClassification": "sequence_classification",
    "TokenizedTexts": "data.labelled_tokens",
    "majority_fraction": "data.labelled",
    "metrics_of": "metrics",
    "read_labelled": "data.labelled",
    "require_libraries": "metrics",
    "tokenize": "data.labelled_tokens",
}

__all__ = [
    "CLASS_METRICS",
    "NUMBER_METRICS",
    "ClassificationLoss",
    "GlueData",
    "GlueName",
    "LabelledData",
    "LabelledTexts",
    "Metric",
    "SequenceClassification",
    "TokenizedTexts",
    "majority_fraction",
    "metrics_of",
    "read_labelled",
    "require_libraries",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
