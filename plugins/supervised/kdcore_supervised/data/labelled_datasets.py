"""Labelled texts out of the Hugging Face library `datasets`."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore_preparation import DatasetSource, load_source
from pydantic import Field

from kdcore import DataError
from kdcore_supervised.data.labelled_tables import LabelledTable, require_columns

_KEY = "task.data.huggingface"


class HuggingFaceData(DatasetSource):
    """A dataset of the library `datasets`; needs `pip install kdcore[datasets]`."""

    train: str = Field("train", description="Which of its splits is for training.")
    validation: str | None = Field("validation", description="Which is for validation; null for none.")
    test: str | None = Field("test", description="Which is for testing, if it is there; null for none.")


def load_splits(
    source: HuggingFaceData, needed: Sequence[str], label: str, classes: Sequence[str], *, only_train: bool
) -> dict[str, LabelledTable]:
    """Columns of a dataset's splits; the test split may be missing, all others that are named may not.

    Args:
        source: the dataset.
        needed: columns that must be there.
        label: column of the label, which the test split need not have.
        classes: as the recipe lists them; classes that the dataset numbers are given by name, unless these are numbers.
        only_train: whether the other splits are left alone.

    Raises:
        DataError: the library or the dataset is missing, or has no such split or column.
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
            names = getattr(split.features[label], "names", None)
            if names and not all(one.isdigit() for one in classes):
                values = ["" if value is None or value < 0 else names[value] for value in values]
            columns[label] = values
        tables[name] = LabelledTable(where, "row", list(range(len(split))), columns)
    return tables
