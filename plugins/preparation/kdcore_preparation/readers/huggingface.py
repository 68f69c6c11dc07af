"""Datasets of the Hugging Face library `datasets`, saved in a folder or streamed from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from kdcore import PART_BYTES, ComponentConfig, CorpusConfig, DataError, Document, Part, PathString, first_line
from kdcore_preparation.readers.file_corpus import PartedCorpus
from kdcore_preparation.readers.input_files import input_files


class DatasetSource(ComponentConfig):
    """Location of a dataset of the library `datasets`."""

    path: PathString | None = Field(None, description="Folder written by `save_to_disk` or readable by `load_dataset`.")
    dataset: str | None = Field(None, description="Name on the hub, such as wikimedia/wikipedia or nyu-mll/glue.")
    subset: str | None = Field(None, description="Name of its configuration, such as 20231101.en or sst2.")
    revision: str | None = Field(None, description="Commit or tag on the hub.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("needs either `path` (a folder) or `dataset` (a name on the hub)")
        return self

    @property
    def where(self) -> str:
        """Name of the dataset in messages."""
        return self.path or f"dataset {self.dataset}"


class HuggingFaceCorpus(PartedCorpus):
    """Read a column of texts from a dataset; needs `pip install kdcore-preparation[datasets]`.

    Datasets of the hub are streamed, not stored on disk. Control characters are removed, and rows whose text is empty
    or null are skipped; each is counted. A text of more than 16 million characters is read as several documents.
    """

    class Config(DatasetSource, CorpusConfig):
        """Keys of the corpus: the dataset and its column of texts."""

        split: str = Field("train", description="Name of the split.")
        revision: str | None = Field(
            None, description="Commit or tag on the hub; without one, changes to the dataset go unnoticed."
        )
        column: str = Field("text", min_length=1, description="Name of the column of texts.")

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.characters.stage("clean")
        self.characters.stage("cut")
        self._loaded: Any = None

    def files(self) -> Mapping[str, Path]:
        """List the folder's files; none for a dataset on the hub, which is identified by its name and revision."""
        return {} if self.config.path is None else dict(input_files(self.config.path))

    def parts(self) -> Sequence[Part]:
        """List ranges of rows of a saved dataset, or the files of a streamed one."""
        dataset = self._dataset()
        if _streamed(dataset):
            return [Part(f"file {index}", start=index) for index in range(dataset.num_shards)]
        rows, size = len(dataset), dataset.data.nbytes
        step = max(1, rows * PART_BYTES // max(size, 1))
        return [
            Part(f"row {start}", size * min(step, rows - start) // rows, start=start, end=min(start + step, rows))
            for start in range(0, rows, step)
        ]

    def read(self, part: Part) -> Iterator[Document]:
        """Yield documents named after their row, and after their file if the dataset is streamed."""
        dataset = self._dataset()
        column = self.config.column
        if _streamed(dataset):
            rows, prefix, first = dataset.shard(dataset.num_shards, part.start), f"{part.start}:", 0
        else:
            rows, prefix, first = dataset.select(range(part.start, part.end or len(dataset))), "", part.start
        try:
            for number, row in enumerate(rows, start=first):
                text = row.get(column)
                if not isinstance(text, str | None) or column not in row:
                    kind = "is missing" if column not in row else f"holds a {type(text).__name__}, not text"
                    raise self._wrong_column(f"the column `{column}` {kind}", list(row))
                yield from self.finished(f"{prefix}{number}", text or "")
        except _failures() as error:
            raise _unusable(self.config, error) from error

    def _dataset(self) -> Any:
        if self._loaded is None:
            config = self.config
            found = load_source(config, split=config.split, streaming=True)
            if isinstance(found, dict):
                if config.split not in found:
                    raise DataError(
                        f"the dataset has no split `{config.split}`", where=config.path, allowed=list(found)
                    )
                found = found[config.split]
            self._loaded = found
            columns = found.column_names
            if columns is not None and config.column not in columns:
                raise self._wrong_column(f"the dataset has no column `{config.column}`", columns)
        return self._loaded

    def _wrong_column(self, what: str, columns: list[str]) -> DataError:
        hint = "set `column` to the one that contains the text"
        return DataError(what, where=self.config.where, allowed=columns, hint=hint)


def load_source(source: DatasetSource, *, key: str | None = None, **options: Any) -> Any:
    """Load a dataset with the library.

    Args:
        source: location of the dataset.
        key: its key in the recipe, for messages.
        options: options of `load_dataset`; ignored for a folder written by `save_to_disk`, of which all splits are
            loaded.

    Raises:
        DataError: the library or the dataset is missing, or the dataset cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "`huggingface` needs the package `datasets`", key=key, hint="pip install 'kdcore-preparation[datasets]'"
        ) from error
    path = source.path
    if path is not None and not Path(path).is_dir():
        raise DataError("no such folder", where=path, key=key)
    datasets.disable_progress_bars()
    try:
        if path is not None and any(Path(path, name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path or source.dataset, source.subset, revision=source.revision, **options)
    except _failures() as error:
        raise _unusable(source, error, key) from error


def _failures() -> tuple[type[Exception], ...]:
    """List the errors that the library raises for unreadable datasets; call this after the library is imported."""
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, DatasetsError)


def _unusable(source: DatasetSource, error: Exception, key: str | None = None) -> DataError:
    return DataError(
        f"the dataset cannot be read ({first_line(error)})",
        where=source.where,
        key=key,
        hint="without network access, save it on another machine with save_to_disk and set `path` to that folder",
    )


def _streamed(dataset: Any) -> bool:
    return not hasattr(dataset, "select")
