"""The interface of readers of raw text (registry `kdcore.corpora`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdcore.recipe.schema import ComponentConfig

PART_BYTES = 32 * 2**20
"""Approximate size of a part. It is tokenised in a few seconds, which is the most work that a killed process loses."""


@dataclass(frozen=True, slots=True)
class Document:
    """One coherent text: an article, a book, a post.

    Attributes:
        id: identifies the document within its corpus. It must not depend on where the files are stored, and must not
            change when the files grow.
        text: plain text, with paragraphs separated by newline characters.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedSequences:
    """Sequences that another program has tokenised, cut and possibly masked. They are stored unchanged.

    A reader yields a few hundred of them at a time. Everything is checked against the recipe's tokenizer and
    `sequence_length`: ids must be below the vocabulary size, and each sequence must start with [CLS] and end with
    [SEP].

    Attributes:
        id: identifies this group of sequences within its corpus, like `Document.id`. Together with the seed, it
            determines whether the whole group is held out.
        tokens: (sequences, width) the original ids before masking, including special tokens; content after a sequence's
            end is ignored. `width` is at most the recipe's `sequence_length`.
        lengths: (sequences,) number of tokens in each sequence, including special tokens.
        masked_positions: (sequences, predictions) positions of the tokens to be predicted; 0 is padding, as the first
            token is [CLS] and never predicted. None if nothing is masked.
        masked_inputs: (sequences, predictions) the input ids at these positions (mostly [MASK]); ignored where the
            position is 0.
        split: the split that the sequences belong to; if None, the recipe's `held_out` determines it.
    """

    id: str
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    masked_positions: NDArray[np.int32] | None = None
    masked_inputs: NDArray[np.int32] | None = None
    split: Literal["train", "held_out"] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a corpus that can be read independently: a file, or a range of a large file.

    Attributes:
        name: identifies the piece within its corpus, independently of where the data is stored.
        bytes: size of the covered range on disk; 0 if unknown. Used to distribute work among processes and to show
            progress.
        file: name of the file in `Corpus.files`, for readers that read file by file.
        start: where the range starts in the file, for readers that can start in the middle of a file.
        end: where the range ends; None for the end of the file.
    """

    name: str
    bytes: int = 0
    file: str = ""
    start: int = 0
    end: int | None = None


class CorpusConfig(ComponentConfig):
    """Base class of a reader's `Config`: the keys that every entry under `corpora` may have."""

    weight: float = Field(
        1.0, gt=0, description="How often each sequence appears in an epoch; 0.5 uses the two halves alternately."
    )


class Corpus(ABC):
    """Read documents from files. Subclass it to support another format of raw text.

    A reader is a class with a nested `Config` (the keys of its entry under `corpora`, except `name`), declared in the
    entry point group `kdcore.corpora` or with `@register_corpus("name")`:

        class JsonLines(Corpus):
            class Config(CorpusConfig):
                path: PathString
                field: str = "text"

            def files(self) -> Mapping[str, Path]:
                return kdcore_preparation.input_files(self.config.path)

            def documents(self) -> Iterator[Document]:
                for name, path in self.files().items():
                    with path.open(encoding="utf-8") as lines:
                        for number, line in enumerate(lines, start=1):
                            text = json.loads(line)[self.config.field]
                            if text:
                                yield Document(f"{name}:{number}", text)
                            else:
                                self.report["empty documents skipped"] += 1

    Nothing else is required. If a reader also defines `parts` and `read`, several processes read its corpus in
    parallel, and a killed preparation resumes after the finished parts.

    **Damage.** A reader that finds damage in a file yields the documents before the damage and then raises `DataError`.
    Those documents are kept, the damage is recorded, and the other parts are still read.

    Attributes:
        revision: increase it when the reader yields different documents for the same files and explicit settings, for
            example after a default has changed, so that data prepared by the older reader is not reused.
        Config: keys of the reader; strings annotated as `PathString` arrive as absolute paths.
        config: the validated keys.
        report: counts of what the reader repaired or left out, by description ("redirects skipped"). They are stored
            with the prepared data and shown to the user, so every change and every omission must be counted. They are
            reset before each part and summed afterwards.
        characters: None, or a `kdcore_preparation.CharacterAccount` that counts the characters that each stage of the
            reader received, dropped, rewrote and passed on, with reasons. It is reset and summed like `report`.
        bytes_read: number of the part's `bytes` that have been read so far, for the progress bar. Updating it is
            optional; it is reset to 0 before each part.
    """

    revision: ClassVar[int] = 1
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    config: Any
    characters: Any = None

    def __init__(self, config: Any) -> None:
        self.config = config
        self.report: Counter[str] = Counter()
        self.bytes_read = 0

    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """Map the names of all input files to their paths. Names must not depend on where the data is stored.

        The contents and names of these files and the reader's settings other than paths identify the data. If none of
        them has changed, data that has already been prepared is reused. The map is empty for a reader that reads no
        files.

        Raises:
            DataError: the file or folder does not exist.
        """

    @abstractmethod
    def documents(self) -> Iterator[Document | TokenizedSequences]:
        """Yield all documents, always in the same order, keeping only a few of them in memory at a time.

        A reader with parts yields the documents of each part in turn:

            for part in self.parts():
                yield from self.read(part)

        Raises:
            DataError: a file does not have the expected format.
        """

    def parts(self) -> Sequence[Part]:
        """List the pieces that can be read independently, in reading order; by default everything is one piece.

        The pieces may depend only on the files and the reader's settings, never on the number of processes. Listing
        them must not require much reading. Pieces of about `PART_BYTES` work best: smaller pieces are joined, and
        larger ones keep other processes waiting. A part that begins in the middle of a file must begin at a multiple of
        a fixed size, so that documents keep their names when the file grows.

        Raises:
            DataError: as in `files`.
        """
        return [Part("all", sum(path.stat().st_size for path in self.files().values()))]

    def read(self, part: Part) -> Iterator[Document | TokenizedSequences]:
        """Yield the documents of one of the `parts`, independently of which parts have been read before.

        Raises:
            DataError: the part is damaged; the documents before the damage have been yielded.
        """
        return self.documents()
