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
"""About how much of a file one part should cover: some seconds of tokenising, and what is lost when work is killed."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text that belongs together: an article, a book, a post.

    Attributes:
        id: names the document within its corpus. It decides, together with the seed, whether the document is held
            out, so it must be the same each time, wherever the files lie, and stay the same when they grow.
        text: plain text, its paragraphs separated by a newline character.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedSequences:
    """Sequences that were tokenised, cut and perhaps masked by another program; they are stored as they are.

    A reader yields some hundreds of them at a time. Everything is checked against the recipe's tokenizer and
    `sequence_length`: ids must be below its vocabulary size, [CLS] first and [SEP] last.

    Attributes:
        id: names this group of sequences within its corpus, as `Document.id`; they are held out together or not at all.
        tokens: (sequences, width) the original ids, special tokens included, before any of them was masked; what
            stands behind a sequence's end does not matter. `width` is at most the recipe's `sequence_length`.
        lengths: (sequences,) tokens of each, special tokens included.
        masked_positions: (sequences, predictions) places of the tokens to be predicted; 0 fills up, for the first token
            is [CLS] and never predicted. None where nothing is masked.
        masked_inputs: (sequences, predictions) the ids that the model gets to see there (most of them [MASK]); what
            stands where the place is 0 does not matter.
        split: the split that they belong to; None lets the recipe's `held_out` decide.
    """

    id: str
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    masked_positions: NDArray[np.int32] | None = None
    masked_inputs: NDArray[np.int32] | None = None
    split: Literal["train", "held_out"] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a corpus that can be read by itself: a file, or a range of a large one.

    Attributes:
        name: names it within its corpus and says nothing of where the data lies.
        bytes: how much of the files it covers, as they lie on the disk; 0 where that is unknown. Work is dealt to
            processes and progress is shown by it.
        file: name of its file in `Corpus.files`, for readers that read file by file.
        start: where the range starts in the file, for readers that can begin there.
        end: where it ends; None is the end of the file.
    """

    name: str
    bytes: int = 0
    file: str = ""
    start: int = 0
    end: int | None = None


class CorpusConfig(ComponentConfig):
    """Base of a reader's `Config`: the keys that every entry under `corpora` may have."""

    weight: float = Field(
        1.0, gt=0, description="How often an epoch shows each of its sequences; 0.5 shows every other one, in turn."
    )


class Corpus(ABC):
    """Reads documents out of files. Subclass it to teach kdcore another format of raw text.

    A reader is a class with a nested `Config` (the keys of its entry under `corpora`, `name` excepted), announced under
    the entry point group `kdcore.corpora` or with `@register_corpus("name")`:

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

    That is all a reader needs. One that also has `parts` and `read` is read by several processes at once, and a
    preparation that was killed goes on behind the parts that were finished.

    **Damage.** A reader that cannot go on in a file yields what came before it and then raises `DataError`. What came
    before is kept, the loss is recorded, and the other parts are read all the same.

    Attributes:
        revision: raise it when the reader yields other documents for the same files and stated settings than it did
            before, also by a changed default, so that data which was prepared by the older reader is not taken for
            current.
        Config: keys of the reader; strings annotated as `PathString` arrive as absolute paths.
        config: the checked keys.
        report: what the reader had to repair or leave out, counted by kind in plain words ("redirects skipped"). It is
            stored with the prepared data and shown to the user: nothing may be changed or dropped without a count.
            It is emptied before each part and added up afterwards.
        bytes_read: how many of the part's `bytes` have been read so far, for the progress bar. A reader that knows may
            keep it up to date; it is set to 0 before each part.
    """

    revision: ClassVar[int] = 1
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config
        self.report: Counter[str] = Counter()
        self.bytes_read = 0

    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """List every input file of the documents, by a name that does not depend on where the data is stored.

        Contents and names of these files and the reader's settings other than paths identify the data: when none of
        them has changed, data that was prepared once is used again. Empty for a reader that reads no files.

        Raises:
            DataError: there is no such file or folder.
        """

    @abstractmethod
    def documents(self) -> Iterator[Document | TokenizedSequences]:
        """Yield all documents, always in the same order, holding few of them in memory at a time.

        A reader with parts yields those of each part in turn:

            for part in self.parts():
                yield from self.read(part)

        Raises:
            DataError: a file cannot be read as what it should be.
        """

    def parts(self) -> Sequence[Part]:
        """List the pieces that can be read independently, in reading order; by default everything is one piece.

        They are determined by the files and the reader's settings alone, never by the number of processes, and are
        listed without reading much. Pieces of about `PART_BYTES` suit best: small ones are joined, large ones keep
        other processes waiting. A part that begins in the middle of a file begins at a multiple of something fixed, so
        that documents keep their names when the file grows.

        Raises:
            DataError: as `files`.
        """
        return [Part("all", sum(path.stat().st_size for path in self.files().values()))]

    def read(self, part: Part) -> Iterator[Document | TokenizedSequences]:
        """Yield the documents of one of `parts`; the same ones whichever other parts have been read before.

        Raises:
            DataError: the part is damaged; what came before the damage has been yielded.
        """
        return self.documents()
