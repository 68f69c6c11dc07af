"""Define the interface of packages that prepare data (registry `kdcore.preparations`), and open `task.data`."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kdcore.data.shards import PreparedData
from kdcore.errors import InputError
from kdcore.recipe.checking import build_component
from kdcore.recipe.loading import load_component
from kdcore.recipe.schema import DATA_RECIPE, ComponentConfig

logger = logging.getLogger("kdcore")

_SECONDS_BETWEEN_LINES = 10.0


class Preparation(ABC):
    """Prepare data from a data recipe: the map under `task.data`, or a file that contains one.

    A preparation is a class with a nested `Config` (the keys of the data recipe), declared in the entry point group
    `kdcore.preparations` or with `@register_preparation("name")`. A data recipe selects a preparation by `name`;
    without `name`, it is read by `raw_text` of the package kdcore-preparation. The recipe's keys are checked before
    anything is read.

    Attributes:
        Config: keys of the data recipe; strings annotated as `PathString` arrive as absolute paths.
        config: the validated keys.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def section_for(
        cls, data: Path | Iterable[Any], cache: Path, column: str = "text", max_texts: int = 1_000_000
    ) -> dict[str, Any]:
        """Return the keys of a data recipe, except the tokenizer, for data passed to `kdcore.distil`.

        Args:
            data: a file, a folder, texts, or a table with a column of texts.
            cache: folder of prepared data, where texts can be stored.
            column: name of the column or key that contains the text.
            max_texts: number of texts to read from an iterable without a length, which may be endless.

        Raises:
            InputError: this preparation cannot create such a data recipe, or cannot read this data.
        """
        raise InputError(f"{cls.__name__} cannot create a data recipe from texts or files")

    @abstractmethod
    def describe(self) -> str:
        """Describe the data in a few words for the log, for example its sources and sequence length."""

    @abstractmethod
    def find(self, cache: Path) -> PreparedData | None:
        """Open the data if the cache folder already contains it; return None if it has to be prepared.

        Raises:
            DataError: the raw data or a folder in the cache cannot be used.
        """

    @abstractmethod
    def prepare(self, cache: Path, *, progress: Callable[[str], None]) -> PreparedData:
        """Prepare the data in the cache folder, so that `find` can open it afterwards.

        Several processes may request the same data at once; one of them prepares it and the others wait.

        Args:
            cache: the folder; it may not exist yet.
            progress: function that is called frequently with a one-line progress message, such as the number of
                documents and the time left.

        Raises:
            DataError: the raw data or a folder in the cache cannot be used.
            InfrastructureError: the disk is full, or the cache cannot be written.
        """

    def tokenizer(self) -> str | None:
        """Return the folder or name of the recipe's tokenizer, whose settings an export keeps.

        The default implementation returns None. An export then keeps the settings of the copy in the prepared folder,
        which another recipe may have written.
        """
        return None

    def reopen(
        self, cache: Path, folder: Path | None, fingerprint: str, *, progress: Callable[[str], None]
    ) -> tuple[PreparedData, str]:
        """Open the data that a run started with, even if the recipe's data is now prepared elsewhere.

        Override this method if data with the same fingerprint can have several forms, or if the run's folder stays
        valid when raw data is missing. The default implementation finds or prepares the recipe's data.

        Args:
            cache: folder of prepared data.
            folder: the folder recorded by the run; None for a run that recorded only a fingerprint.
            fingerprint: the fingerprint recorded by the run.
            progress: as for `prepare`.

        Returns:
            The data and its fingerprint, which equals `fingerprint` if the recipe describes the run's data.

        Raises:
            DataError: as in `prepare`.
            InfrastructureError: as in `prepare`.
        """
        found = self.find(cache)
        data = self.prepare(cache, progress=progress) if found is None else found
        return data, data.fingerprint


def load_preparation(path: str | Path, overrides: Sequence[str] = ()) -> Preparation:
    """Read a data recipe's file with `extends` and overrides, and check it.

    Args:
        path: the YAML file.
        overrides: strings of the form `key=value`.

    Raises:
        RecipeError: the recipe is invalid, or the package that reads it is not installed; the error lists all problems
            with file, line and key.
    """
    preparation: Preparation = load_component(path, DATA_RECIPE, overrides)
    return preparation


def open_data(source: str | dict[str, Any], cache: Path) -> PreparedData:
    """Open prepared data; if the source is a data recipe whose data is not in the cache yet, prepare it first.

    Args:
        source: a value of type `DataSource`: a prepared folder, a data recipe's file, or a data recipe.
        cache: folder of prepared data.

    Raises:
        InputError: the folder, the recipe or the raw data cannot be used.
        InfrastructureError: the disk is full, or the cache cannot be written.
    """
    preparation = _preparation_of(source)
    if preparation is None:
        return PreparedData.open(str(source))
    found = preparation.find(cache)
    if found is not None:
        return found
    logger.info(f"preparing data: {preparation.describe()}")
    return preparation.prepare(cache, progress=_ProgressLog())


def reopen_data(
    source: str | dict[str, Any], cache: Path, folder: Path | None, fingerprint: str
) -> tuple[PreparedData, str]:
    """Open the data that a run started with; arguments and results as for `Preparation.reopen`.

    Raises:
        InputError: as in `open_data`.
        InfrastructureError: as in `open_data`.
    """
    preparation = _preparation_of(source)
    if preparation is None:
        data = PreparedData.open(str(source))
        return data, data.fingerprint
    return preparation.reopen(cache, folder, fingerprint, progress=_ProgressLog())


def stated_tokenizer(source: str | dict[str, Any]) -> str | None:
    """Return the folder or name of a data recipe's tokenizer; None for a prepared folder.

    Raises:
        InputError: the data recipe cannot be used.
    """
    preparation = _preparation_of(source)
    return None if preparation is None else preparation.tokenizer()


def _preparation_of(source: str | dict[str, Any]) -> Preparation | None:
    """Load a data recipe, from its file if necessary; None for a prepared folder."""
    if isinstance(source, dict):
        named = {"name": DATA_RECIPE.default, **source}
        preparation: Preparation = build_component(DATA_RECIPE.group, named, where="data recipe")
        return preparation
    return load_preparation(source) if os.path.isfile(source) else None


class _ProgressLog:
    """Log a preparation's progress at intervals."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, line: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
            logger.info(f"preparing data: {line}")
