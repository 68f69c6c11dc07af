"""Read labelled texts from the Hugging Face library `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcore_preparation import DatasetSource, RecordTable, load_source, require_columns
from pydantic import Field

from kdcore import DataError

_KEY = "task.data.huggingface"


class HuggingFaceData(DatasetSource):
    """A dataset of the library `datasets`; needs `pip install "kdcore-preparation[datasets]"`."""

    train: str = Field("train", description="Name of the training split.")
    validation: str | None = Field("validation", description="Name of the validation split; null for none.")
    test: str | None = Field("test", description="Name of the test split, used if it exists; null for none.")


def load_splits(
    source: HuggingFaceData, needed: Sequence[str], label: str, classes: Sequence[str], *, only_train: bool
) -> dict[str, RecordTable]:
    """Read columns of a dataset's splits. The test split may be missing; all other named splits must exist.

    Args:
        source: the dataset.
        needed: columns that must exist.
        label: column of the label, optional in the test split.
        classes: the recipe's classes; numbered classes of the dataset are translated to their names unless the
            recipe's classes are numbers.
        only_train: whether to read only the split to train on.

    Raises:
        DataError: the library, the dataset, a split or a column is missing.
    """
    loaded = load_source(source, key=_KEY)
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    tables = {}
    for name in ("train",) if only_train else ("train", "validation", "test"):
        own = getattr(source, name)
        if own is None or (name == "test" and own not in loaded):
            continue
        if own not in loaded:
            raise DataError(f"the dataset has no split `{own}`", where=source.where, key=_KEY, allowed=list(loaded))
        split, where = loaded[own], f"{source.where}, {own}"
        require_columns(where, split.column_names, [*needed, *([] if name == "test" else [label])])
        columns = {column: list(split[column]) for column in needed}
        if label in split.column_names:
            values = list(split[label])
            names = _class_names(split.features[label])
            if names and not all(one.isdigit() for one in classes):
                values = [_with_names(value, names) for value in values]
            columns[label] = values
        tables[name] = RecordTable(where, "row", range(len(split)), columns)
    return tables


def _class_names(feature: Any) -> Sequence[str] | None:
    """Return the names of numbered classes, also for a feature with lists of classes."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _with_names(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_with_names(one, names) for one in value]
    return "" if value is None or value < 0 else names[value]
