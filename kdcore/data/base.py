"""The interface of readers of raw text (registry `kdcore.corpora`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kdcore.recipe.schema import ComponentConfig


@dataclass(frozen=True, slots=True)
class Document:
    """One text that belongs together: an article, a book, a post. No training sequence crosses its ends.

    Attributes:
        id: names the document within its corpus. It decides, together with the seed, whether the document is held
            out, so it must be the same each time, wherever the files lie.
        text: plain text, its paragraphs separated by a newline character.
    """

    id: str
    text: str


class Corpus(ABC):
    """Reads documents out of files. Subclass it to teach kdcore another format of raw text.

    A reader is a class with a nested `Config` (the keys of its entry under `corpora`, `name` excepted), announced under
    the entry point group `kdcore.corpora` or with `@register_corpus("name")`:

        class JsonLines(Corpus):
            class Config(ComponentConfig):
                path: PathString
                field: str = "text"

            def files(self) -> Mapping[str, Path]:
                return input_files(self.config.path)

            def documents(self) -> Iterator[Document]:
                for name, path in self.files().items():
                    with path.open(encoding="utf-8") as lines:
                        for number, line in enumerate(lines, start=1):
                            text = json.loads(line)[self.config.field]
                            if text:
                                yield Document(f"{name}:{number}", text)
                            else:
                                self.report["empty documents skipped"] += 1

    Attributes:
        revision: raise it when the reader yields other documents for the same files than it did before, so that data
            which was prepared by the older reader is not taken for current.
        Config: keys of the reader; strings annotated as `PathString` arrive as absolute paths.
        config: the checked keys.
        report: what the reader had to repair or leave out, counted by kind in plain words ("redirects skipped"). It is
            stored with the prepared data and shown to the user: nothing may be changed or dropped without a count.
    """

    revision: ClassVar[int] = 1
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config
        self.report: Counter[str] = Counter()

    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """Every file that the documents come from, by a name that does not depend on where the data lies.

        Contents and names of these files and the reader's settings other than paths identify the data: when none of
        them has changed, data that was prepared once is used again. Empty for a reader that reads no files.

        Raises:
            DataError: there is no such file or folder.
        """

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents, always in the same order, holding few of them in memory at a time.

        Raises:
            DataError: a file cannot be read as what it should be.
        """
