"""Labelled texts out of the Hugging Face library `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kdcore.data.tables import Table, require_columns
from kdcore.errors import DataError
from kdcore.recipe.schema import ComponentConfig, PathString

_KEY = "task.data.huggingface"


class HuggingFaceData(ComponentConfig):
    """A dataset of the library `datasets`; needs `pip install kdcore[datasets]`."""

    path: PathString | None = Field(None, description="Folder that `save_to_disk` wrote, or `load_dataset` can read.")
    dataset: str | None = Field(None, description="Name on the hub, such as nyu-mll/glue.")
    subset: str | None = Field(None, description="Name of its configuration, such as sst2.")
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    train: str = Field("train", description="Which of its splits is for training.")
    validation: str | None = Field("validation", description="Which is for validation; null for none.")
    test: str | None = Field("test", description="Which is for testing, if it is there; null for none.")

    @model_validator(mode="after")
    def _one_place(self) -> HuggingFaceData:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("needs either `path`, a folder, or `dataset`, a name on the hub")
        return self

    @property
    def where(self) -> str:
        """What it is, for messages."""
        return self.path or f"dataset {self.dataset}"


def load_splits(
    source: HuggingFaceData, needed: Sequence[str], label: str, classes: Sequence[str], *, only_train: bool
) -> dict[str, Table]:
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
    loaded = _load(source)
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
        tables[name] = Table(where, "row", list(range(len(split))), columns)
    return tables


def _load(source: HuggingFaceData) -> Any:
    """The dataset's splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "`huggingface` needs the package `datasets`", key=_KEY, hint="pip install 'kdcore[datasets]'"
        ) from error
    path = source.path
    if path is not None and not Path(path).is_dir():
        raise DataError("there is no such folder", where=path, key=_KEY)
    datasets.disable_progress_bars()
    saved = path is not None and any(Path(path, name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path or source.dataset, source.subset, revision=source.revision)
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the dataset cannot be read ({first})",
            where=source.where,
            key=_KEY,
            hint="without a network, write it to a folder elsewhere with save_to_disk and give that as `path`",
        ) from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}
