"""Raw text as the source of `task.data`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kdcore import Preparation, PreparedData
from kdcore_preparation.given_texts import corpora_for
from kdcore_preparation.pipeline.data_recipe import DataRecipe
from kdcore_preparation.pipeline.preparation_progress import ReportProgress, Speed
from kdcore_preparation.pipeline.prepare import find, find_or_prepare
from kdcore_preparation.pipeline.reopening import reopen


class RawText(Preparation):
    """Read corpora, clean and tokenise their text, and cut it into sequences, like `kdcore prepare`."""

    Config = DataRecipe
    config: DataRecipe

    @classmethod
    def section_for(
        cls, data: Path | Iterable[Any], cache: Path, column: str = "text", max_texts: int = 1_000_000
    ) -> dict[str, Any]:
        """Return the keys of a data recipe for a file or folder of text, JSON Lines or Parquet, or for texts.

        Raises:
            InputError: there is no text, or the column does not exist.
        """
        return {"corpora": corpora_for(data, cache, column, max_texts)}

    def describe(self) -> str:
        """Describe the corpora and the sequence length."""
        corpora = ", ".join(str(entry["name"]) for entry in self.config.corpora)
        return f"corpora {corpora} in sequences of {self.config.sequence_length} tokens"

    def tokenizer(self) -> str:
        """Return the recipe's tokenizer."""
        return self.config.tokenizer

    def find(self, cache: Path) -> PreparedData | None:
        """Open the data if the cache folder holds it.

        Raises:
            DataError: the text, the tokenizer or a folder in the cache cannot be used, or text is damaged.
        """
        return find(self.config, cache)

    def prepare(self, cache: Path, *, progress: Callable[[str], None]) -> PreparedData:
        """Prepare the data in the cache folder with one process per core.

        Raises:
            DataError: as for `find`.
            InfrastructureError: the disk is full, or the cache cannot be written.
        """
        return find_or_prepare(self.config, cache, progress=_as_lines(progress))

    def reopen(
        self, cache: Path, folder: Path | None, fingerprint: str, *, progress: Callable[[str], None]
    ) -> tuple[PreparedData, str]:
        """Open the data that a run started with; warn if a reader's revision has increased since.

        Raises:
            DataError: as for `find`.
            InfrastructureError: as for `prepare`.
        """
        return reopen(self.config, cache, folder, fingerprint, progress=_as_lines(progress))


def _as_lines(progress: Callable[[str], None]) -> ReportProgress:
    speed = Speed()
    return lambda done: progress(speed.describe(done))
