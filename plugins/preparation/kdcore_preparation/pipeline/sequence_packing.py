"""Pack tokens of documents into sequences `[CLS] ... [SEP]`; every token is in exactly one sequence, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kdcore import SpecialIds

SPECIAL_TOKENS_A_SEQUENCE = 2

Tokens = NDArray[np.int32]
Places = NDArray[np.int64]
Rows = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True)
class Layout:
    """The layout of sequences.

    Attributes:
        sequence_length: tokens per sequence, [CLS] and [SEP] included.
        packing: `document` ends a sequence where its document ends; `full` continues with the next document after a
            [SEP].
        sentences: whether sequences end at sentence ends; if so, only sentences longer than a sequence are cut.
        short_sequences: fraction of the sequences that are shortened, each to a random length.
    """

    sequence_length: int
    packing: Literal["document", "full"] = "document"
    sentences: bool = False
    short_sequences: float = 0.0

    @property
    def room(self) -> int:
        """Tokens of text in a full sequence."""
        return self.sequence_length - SPECIAL_TOKENS_A_SEQUENCE


class Packer:
    """Pack a stream of documents. A sequence may span several calls; `finish` returns the last one.

    Args:
        layout: layout of sequences.
        ids: special tokens.
        random: generator for the lengths of short sequences.
    """

    def __init__(self, layout: Layout, ids: SpecialIds, random: np.random.Generator) -> None:
        self._layout = layout
        self._ids = ids
        self._crossing = layout.packing == "full"
        self._targets = _targets(layout, random)
        self._target = next(self._targets)
        self._open: Tokens = np.empty(0, np.int32)

    def add(self, tokens: Tokens, document_ends: Places, sentence_ends: Places | None = None) -> Rows:
        """Pack some documents.

        Args:
            tokens: (tokens,) ids of text, one document after the other.
            document_ends: (documents,) end of each document; no document is empty.
            sentence_ends: ascending ends of sentences, including the documents' ends; required if the layout respects
                sentences.

        Returns:
            Finished rows (sequences, sequence_length) and their lengths (sequences,), special tokens included.
        """
        if not (self._crossing or self._layout.sentences or self._layout.short_sequences):
            return self._fill(tokens, *_cut_evenly(document_ends, self._layout.room))
        ends = sentence_ends if self._layout.sentences and sentence_ends is not None else document_ends
        closes = np.zeros(len(ends), bool)
        closes[np.searchsorted(ends, document_ends)] = True
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        stream = tokens
        if self._crossing:
            # A [SEP] between two documents, also between the last one in the open sequence and the first one here.
            before = self._open.size + 1 if self._open.size else 0
            shift = np.cumsum(np.concatenate([[False], closes[:-1]])) + before
            separated = np.insert(tokens, document_ends[:-1], self._ids.sep)
            between = np.full(1 if before else 0, self._ids.sep, np.int32)
            stream = np.concatenate([self._open, between, separated])
            starts, ends = starts + shift, ends + shift
        cuts, rest = self._cut(starts.tolist(), ends.tolist(), closes.tolist())
        self._open = stream[rest:].copy()
        return self._fill(stream, *np.array(cuts, np.int64).reshape(-1, 2).T)

    def finish(self) -> Rows:
        """Return the sequence that is still open, if there is one."""
        stream, self._open = self._open, self._open[:0]
        starts = np.zeros(1 if stream.size else 0, np.int64)
        return self._fill(stream, starts, starts + stream.size)

    def _cut(self, starts: list[int], ends: list[int], closes: list[bool]) -> tuple[list[tuple[int, int]], int]:
        """Distribute pieces (sentences, or whole documents) over sequences.

        Args:
            starts: start of each piece in the stream; after the [SEP] if its document follows another one.
            ends: end of each piece.
            closes: whether a document ends with the piece.

        Returns:
            Start and end of each finished sequence, and the start of the sequence that is still unfinished.
        """
        cuts: list[tuple[int, int]] = []
        start, place = 0, self._open.size  # start and current end of the open sequence

        def cut(end: int, next_start: int) -> None:
            nonlocal start
            cuts.append((start, end))
            start = next_start
            self._target = next(self._targets)

        for piece, end, closing in zip(starts, ends, closes, strict=True):
            if start < place < piece and piece - start >= self._target:
                cut(place, piece)  # full but for the [SEP] and a token
            elif start == place:
                start = piece  # a sequence does not start with the [SEP]
            while end - start > self._target:
                if not self._layout.sentences:
                    cut(start + self._target, start + self._target)
                elif start < piece:
                    cut(place, piece)
                elif end - start <= self._layout.room:
                    self._target = end - start
                else:
                    piece = start + self._layout.room
                    cut(piece, piece)
            place = end
            if closing and not self._crossing:
                cut(place, place)
        return cuts, start

    def _fill(self, stream: Tokens, starts: Places, ends: Places) -> Rows:
        """Build rows of the given ranges of the stream."""
        layout, ids = self._layout, self._ids
        rows = np.full((len(starts), layout.sequence_length), ids.pad, np.int32)
        sizes = ends - starts
        if len(starts):
            windows = sliding_window_view(np.concatenate([stream, np.empty(layout.room, np.int32)]), layout.room)
            rows[:, 1:-1] = windows[starts]
            short = np.flatnonzero(sizes < layout.room)
            rows[short] = np.where(np.arange(-1, layout.room + 1) < sizes[short, None], rows[short], ids.pad)
            rows[:, 0] = ids.cls
            rows[np.arange(len(starts)), sizes + 1] = ids.sep
        return rows, (sizes + SPECIAL_TOKENS_A_SEQUENCE).astype(np.int32)


def _cut_evenly(document_ends: Places, room: int) -> tuple[Places, Places]:
    """Cut each document into full sequences; the last one may be shorter."""
    document_starts = np.concatenate([[0], document_ends[:-1]]).astype(np.int64)
    sequences = -(-(document_ends - document_starts) // room)
    first = np.cumsum(sequences) - sequences
    number = np.arange(sequences.sum()) - np.repeat(first, sequences)  # of the sequence in its document
    starts = np.repeat(document_starts, sequences) + number * room
    return starts, np.minimum(starts + room, np.repeat(document_ends, sequences))


def _targets(layout: Layout, random: np.random.Generator) -> Iterator[int]:
    """Yield the target length, in text tokens, of each successive sequence."""
    while True:
        short = layout.short_sequences > 0 and random.random() < layout.short_sequences
        yield int(random.integers(2, layout.room + 1)) if short else layout.room
