"""Datasets of the Hugging Face library `datasets`, saved in a folder or streamed from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kdcore.data.base import PART_BYTES, CorpusConfig, Document, Part
from kdcore.data.files import input_files
from kdcore.data.reading import PartedCorpus
from kdcore.errors import DataError
from kdcore.recipe.schema import PathString


class HuggingFaceCorpus(PartedCorpus):
    """Reads a column of texts out of a dataset; needs `pip install kdcore[datasets]`.

    Datasets of the hub are streamed, not kept on the disk. Control characters are removed, rows whose text is empty or
    null are skipped; each is counted. A text of more than 16 million characters is read as several documents.
    """

    class Config(CorpusConfig):
        """Which dataset, and which of its columns is the text."""

        path: PathString | None = Field(
            None, description="Folder that `save_to_disk` wrote, or that `load_dataset` can read."
        )
        dataset: str | None = Field(None, description="Name on the hub, such as wikimedia/wikipedia.")
        subset: str | None = Field(None, description="Name of its configuration, such as 20231101.en.")
        split: str = Field("train", description="Which of its splits.")
        revision: str | None = Field(
            None, description="Commit or tag on the hub; without one, later versions go unnoticed."
        )
        column: str = Field("text", min_length=1, description="Name of the column of texts.")

        @model_validator(mode="after")
        def _one_place(self) -> HuggingFaceCorpus.Config:
            if (self.path is None) == (self.dataset is None):
                raise ValueError("needs either `path`, a folder, or `dataset`, a name on the hub")
            return self

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._loaded: Any = None

    def files(self) -> Mapping[str, Path]:
        """The folder's files; none of a dataset on the hub, which is identified by its name and revision."""
        return {} if self.config.path is None else input_files(self.config.path)

    def parts(self) -> Sequence[Part]:
        """Ranges of rows of a saved dataset; the files of one that is streamed."""
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
        """Yield documents named after their row, and their file where the dataset is streamed."""
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
            raise self._unusable(error) from error

    def _dataset(self) -> Any:
        if self._loaded is None:
            try:
                import datasets
            except ImportError as error:
                raise DataError(
                    "the corpus `huggingface` needs the package `datasets`", hint="pip install 'kdcore[datasets]'"
                ) from error
            datasets.disable_progress_bars()
            try:
                self._loaded = self._load(datasets)
            except _failures() as error:
                raise self._unusable(error) from error
            columns = self._loaded.column_names
            if columns is not None and self.config.column not in columns:
                raise self._wrong_column(f"there is no column `{self.config.column}`", columns)
        return self._loaded

    def _load(self, datasets: Any) -> Any:
        config = self.config
        if config.path is not None and not Path(config.path).is_dir():
            raise DataError("there is no such folder", where=config.path)
        saved = config.path is not None and any(
            Path(config.path, name).is_file() for name in ("dataset_dict.json", "state.json")
        )
        if not saved:
            return datasets.load_dataset(
                config.path or config.dataset,
                config.subset,
                split=config.split,
                revision=config.revision,
                streaming=True,
            )
        found = datasets.load_from_disk(config.path)
        if not isinstance(found, dict):
            return found
        if config.split not in found:
            raise DataError(f"the dataset has no split `{config.split}`", where=config.path, allowed=list(found))
        return found[config.split]

    def _where(self) -> str:
        return self.config.path or f"dataset {self.config.dataset}"

    def _wrong_column(self, what: str, columns: list[str]) -> DataError:
        return DataError(what, where=self._where(), allowed=columns, hint="set `column` to the one that holds the text")

    def _unusable(self, error: Exception) -> DataError:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DataError(
            f"the dataset cannot be read ({first})",
            where=self._where(),
            hint="without a network, write it to a folder elsewhere with save_to_disk and give that as `path`",
        )


def _failures() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, DatasetsError)


def _streamed(dataset: Any) -> bool:
    return not hasattr(dataset, "select")
