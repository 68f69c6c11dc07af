"""One unit of a preparation: a few megabytes of raw text, read, cleaned, tokenised, packed and written by one process.

A unit is a part of a corpus, or several small parts joined together, so units depend only on the input files. The files
written for a unit depend only on the unit, so neither interruptions nor the number of processes affects the prepared
data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcore import PART_BYTES, Corpus, Damage, DataError, Document, Part, TokenizedSequences, plugin_faults
from kdcore_preparation.pipeline.code_points import code_points, count_in_texts
from kdcore_preparation.pipeline.document_batches import DocumentBatch, EncodedDocuments
from kdcore_preparation.pipeline.duplicates import content_keys, text_key
from kdcore_preparation.pipeline.held_out import points_of_contents
from kdcore_preparation.pipeline.text_encoding import TextEncoder
from kdcore_preparation.readers.character_account import CharacterAccount
from kdcore_preparation.readers.cleaning import clean_text
from kdcore_preparation.readers.named_counts import most_frequent

BATCH_CHARACTERS = 1_000_000

_WHITE_SPACE = np.zeros(0x110000, np.bool_)  # by code point; there is none outside the basic plane
_WHITE_SPACE[[point for point in range(0x10000) if chr(point).isspace()]] = True


@dataclass(frozen=True)
class Unit:
    """One or more parts of one corpus.

    Attributes:
        number: index of the unit.
        corpus: number of the corpus.
        parts: its parts, in reading order.
    """

    number: int
    corpus: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the input files that the unit covers."""
        return sum(part.bytes for part in self.parts)


def units_of(corpora: Sequence[Corpus]) -> list[Unit]:
    """Cut corpora into units of at most `PART_BYTES`; a larger part is one unit."""
    units: list[Unit] = []
    for number, corpus in enumerate(corpora):
        joined: list[Part] = []
        size = 0
        for part in corpus.parts():
            part_bytes = part.bytes or PART_BYTES  # one of unknown size may be large
            if joined and size + part_bytes > PART_BYTES:
                units.append(Unit(len(units), number, tuple(joined)))
                joined, size = [], 0
            joined.append(part)
            size += part_bytes
        units.append(Unit(len(units), number, tuple(joined)))
    return units


class UnitReader:
    """Read, clean and tokenise a unit.

    Attributes:
        report: counts of repaired or left-out content, by kind.
        characters: character counts of the reader's stages, if the reader counts characters, and of the two stages that
            follow: `documents`, where texts are cleaned again, and `selection`, whose output is counted by the writer.
        damages: parts that could not be read completely.
        bytes_done: number of bytes of the unit that have been read.
    """

    def __init__(self, unit: Unit, corpus: Corpus, encoder: TextEncoder, seed: int, *, keys: bool) -> None:
        self.report: Counter[str] = Counter()
        self.characters = CharacterAccount()
        self.damages: list[Damage] = []
        self._account = corpus.characters if isinstance(corpus.characters, CharacterAccount) else CharacterAccount()
        self._account.clear()
        self.characters.add(self._account)
        self._documents = self.characters.stage("documents")
        self._selection = self.characters.stage("selection")
        self._unit = unit
        self._corpus = corpus
        self._encoder = encoder
        self._seed = seed
        self._keys = keys
        self._bytes_before = 0

    @property
    def bytes_done(self) -> int:
        """Bytes of the unit's files that have been read."""
        return self._bytes_before + self._corpus.bytes_read

    def batches(self) -> Iterator[DocumentBatch]:
        """Yield tokenised documents, about a million characters at a time."""
        waiting: list[Document] = []
        size = 0
        for item in self._items():
            if isinstance(item, Document):
                waiting.append(item)
                size += len(item.text)
                if size < BATCH_CHARACTERS:
                    continue
            if waiting:
                yield self._encode(waiting)
                waiting, size = [], 0
            if not isinstance(item, Document):
                yield item
        if waiting:
            yield self._encode(waiting)

    def _items(self) -> Iterator[Document | TokenizedSequences]:
        corpus, report = self._corpus, self.report
        for part in self._unit.parts:
            corpus.report.clear()
            self._account.clear()
            corpus.bytes_read = 0
            try:
                for item in _read(corpus, part):
                    if isinstance(item, Document):
                        text = clean_text(item.text, report, self._documents)
                        if not text:
                            report["empty documents skipped"] += 1
                            continue
                        yield item if text is item.text else Document(item.id, text)
                    else:
                        yield item
            except DataError as error:
                self.damages += [
                    Damage(
                        corpus=self._unit.corpus,
                        part=part.name,
                        what=one.what,
                        where=one.where,
                        allowed=[one.allowed] if isinstance(one.allowed, str) else list(one.allowed or ()),
                        hint=one.hint,
                    )
                    for one in error.problems
                ]
            report.update(corpus.report)
            self.characters.add(self._account)
            corpus.bytes_read = 0
            self._bytes_before += part.bytes
        self.report = most_frequent(report)

    def _encode(self, documents: list[Document]) -> EncodedDocuments:
        texts = [document.text for document in documents]
        encoded = self._encoder.encode(texts)
        characters = np.stack([*_lengths(texts), encoded.unknown_characters], axis=1)
        filled = np.diff(encoded.ends, prepend=0) > 0
        self._selection.received += int(characters[:, 0].sum())
        missing = len(texts) - int(np.count_nonzero(filled))
        if missing:
            self.report["documents without tokens skipped"] += missing
            self._selection.drop("documents without tokens", int(characters[~filled, 0].sum()))
        kept = [text for text, full in zip(texts, filled, strict=True) if full]
        contents = content_keys(kept)
        keys = [text_key(text) for text in kept] if self._keys else []
        spans = text = None
        if encoded.offsets is not None:
            text = code_points("".join(texts))
            ends = np.cumsum([len(one) for one in texts])
            spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)[filled]
        return EncodedDocuments(
            encoded.tokens,
            encoded.ends[filled],
            encoded.sentence_ends,
            points_of_contents(contents, self._seed),
            np.array(keys, np.uint64),
            contents,
            characters[filled],
            text,
            spans,
            encoded.offsets,
        )


def _lengths(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of characters of each text, with and without white space."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    visible = sizes.copy()
    plain = np.fromiter(map(str.isascii, texts), np.bool_, len(texts))
    # Cleaned text that is ASCII has no other white space.
    visible[plain] -= np.array(
        [text.count(" ") + text.count("\n") + text.count("\t") for text in texts if text.isascii()], np.int64
    )
    points = code_points("".join([text for text in texts if not text.isascii()]))
    visible[~plain] -= count_in_texts(_WHITE_SPACE[points], sizes[~plain].tolist())
    return sizes, visible


def _read(corpus: Corpus, part: Part) -> Iterator[Document | TokenizedSequences]:
    with plugin_faults(corpus):
        yield from corpus.read(part)
