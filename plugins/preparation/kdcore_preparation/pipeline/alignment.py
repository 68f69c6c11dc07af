"""Pack documents into sequences together with the teacher's tokens for the same text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcore import NO_UNIT, DataError, SpecialIds, TeacherView, special_ids, vocabulary_size
from kdcore_preparation.pipeline.code_points import text_of
from kdcore_preparation.pipeline.document_batches import EncodedDocuments
from kdcore_preparation.pipeline.sequence_packing import SPECIAL_TOKENS_A_SEQUENCE, Layout, Packer, Places, Rows
from kdcore_preparation.pipeline.text_encoding import TextEncoder

_PAD, _CLS, _SEP = -1, -2, -3
_MARKS = SpecialIds(pad=_PAD, cls=_CLS, sep=_SEP, mask=-4, unk=None, all=())
"""Markers of special tokens; negative, because the positions of ordinary tokens are not."""

_WHITE_SPACE = np.array([point for point in range(0x3001) if chr(point).isspace()], np.uint32)


class TeacherTokenizer:
    """The teacher's tokenizer, if it differs from the student's.

    Args:
        tokenizer: a `transformers` fast tokenizer.
        sequence_length: length of the teacher's rows.
        all_cores: use threads where possible.
    """

    def __init__(self, tokenizer: Any, sequence_length: int, *, all_cores: bool) -> None:
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.ids = special_ids(tokenizer)
        self.vocab_size = vocabulary_size(tokenizer)
        self.encoder = TextEncoder(tokenizer, all_cores=all_cores, offsets=True)


class Spans(NamedTuple):
    """The shortest spans of a text such that no token of either tokenizer crosses a boundary between spans.

    Attributes:
        of_characters: (characters,) index of the span that contains each character.
        shared: (spans,) whether tokens of both tokenizers overlap the span; these spans are the units of alignment.
    """

    of_characters: Places
    shared: NDArray[np.bool_]


def common_spans(characters: int, one: Places, other: Places) -> Spans:
    """Cut a text at the boundaries shared by two segmentations.

    Args:
        characters: length of the text.
        one: (tokens, 2) start and end of each token in the text. Tokens may be empty, skip characters, or overlap
            (tokens of a byte-level BPE overlap within a character).
        other: the same for the other segmentation.
    """
    crossed = np.zeros(characters + 1, np.int64)
    for starts, ends in (one.T, other.T):
        crossed += np.bincount(np.minimum(starts + 1, ends), minlength=characters + 1)
        crossed -= np.bincount(ends, minlength=characters + 1)
    of_characters = np.cumsum(np.cumsum(crossed)[:-1] == 0) - 1
    covered = [np.zeros(int(of_characters[-1]) + 1 if characters else 0, np.bool_) for _ in range(2)]
    for side, (starts, ends) in zip(covered, (one.T, other.T), strict=True):
        side[of_characters[starts[ends > starts]]] = True
    return Spans(of_characters, covered[0] & covered[1])


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """Tokens of documents that are not yet in a finished row.

    Attributes:
        ids: (tokens,) the student's ids.
        documents: (tokens,) index of each token's document.
        starts: (tokens,) where a row's text starts if the row begins with this token: at the end of the previous token.
        ends: (tokens,) where a row's text ends if the row ends with this token.
        offsets: (tokens, 2) start and end of the token itself.
        text: code points of the whole text.
    """

    ids: NDArray[np.int32]
    documents: Places
    starts: Places
    ends: Places
    offsets: Places
    text: NDArray[np.uint32]

    @classmethod
    def of(cls, documents: EncodedDocuments) -> _Stream:
        assert documents.text is not None
        assert documents.text_spans is not None
        assert documents.offsets is not None
        last = documents.document_ends - 1
        first = np.concatenate([[0], documents.document_ends[:-1]])
        reached = np.maximum.accumulate(documents.offsets[:, 1])
        starts = np.minimum(documents.offsets[:, 0], np.concatenate([[0], reached[:-1]]))
        starts[first], reached[last] = documents.text_spans.T
        numbers = np.repeat(np.arange(len(documents)), np.diff(documents.document_ends, prepend=0))
        return cls(documents.tokens, numbers, starts, reached, documents.offsets, documents.text)

    def followed_by(self, other: _Stream) -> _Stream:
        shift, number = len(self.text), int(self.documents[-1]) + 1 if len(self.documents) else 0
        return _Stream(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.documents, other.documents + number]),
            np.concatenate([self.starts, other.starts + shift]),
            np.concatenate([self.ends, other.ends + shift]),
            np.concatenate([self.offsets, other.offsets + shift]),
            np.concatenate([self.text, other.text]),
        )

    def after(self, count: int) -> _Stream:
        """Drop the first tokens, and their text."""
        starts = self.starts[count:]
        begin = int(starts[0]) if len(starts) else len(self.text)
        return _Stream(
            self.ids[count:],
            self.documents[count:],
            starts - begin,
            self.ends[count:] - begin,
            self.offsets[count:] - begin,
            self.text[begin:].copy(),
        )


class AlignedPacker:
    """Pack documents like `Packer`, and add the teacher's tokens for the text of each row, aligned by units.

    The text of a row begins where the last token of the previous row ends, so that no white space is lost; if a row
    ends between two tokens within a character, that character belongs to the teacher's text of both rows. A row whose
    text has too many teacher tokens is split in half, repeatedly if necessary.

    Args:
        layout: layout of the student's sequences.
        ids: the student's special tokens.
        random: generator for the lengths of short sequences.
        teacher: the teacher's tokenizer.

    Attributes:
        counts: the fields of `kdcore.Alignment`, summed over the documents so far.
    """

    def __init__(self, layout: Layout, ids: SpecialIds, random: np.random.Generator, teacher: TeacherTokenizer) -> None:
        self.counts: Counter[str] = Counter()
        self._packer = Packer(layout, _MARKS, random)  # packs places of tokens in the stream
        self._ids = ids
        self._teacher = teacher
        nothing = np.empty(0, np.int64)
        self._stream = _Stream(
            np.empty(0, np.int32), nothing, nothing, nothing, nothing.reshape(0, 2), np.empty(0, np.uint32)
        )
        self._dropped = 0  # tokens before the stream

    def add(self, documents: EncodedDocuments) -> tuple[Rows, TeacherView]:
        """Pack some documents; return the finished rows and the corresponding teacher rows.

        Raises:
            DataError: the text of a single token has more teacher tokens than a row can contain.
        """
        first = self._dropped + len(self._stream.ids)
        self._stream = self._stream.followed_by(_Stream.of(documents))
        places = np.arange(first, first + len(documents.tokens), dtype=np.int32)
        return self._finished(*self._packer.add(places, documents.document_ends, documents.sentence_ends))

    def finish(self) -> tuple[Rows, TeacherView]:
        """Return the unfinished sequence, if any; may raise the same errors as `add`."""
        return self._finished(*self._packer.finish())

    def _finished(self, rows: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[Rows, TeacherView]:
        places = np.where(rows >= 0, rows - self._dropped, rows).astype(np.int64)
        done: list[tuple[Places, TeacherView]] = []
        while True:
            view, counts = self._align(places)
            fits = view.lengths <= self._teacher.sequence_length
            done.append((places[fits], _shortened(view, fits, self._teacher.sequence_length)))
            for name, values in counts.items():
                self.counts[name] += int(values[fits].sum())
            if fits.all():
                break
            if len(done) == 1:
                self.counts["split_sequences"] += int(np.count_nonzero(~fits))
            places = np.stack([half for row in places[~fits] for half in self._halves(row)])
        places = np.concatenate([one for one, _ in done])
        order = np.argsort(places[:, 1], kind="stable")  # of the text
        places = places[order]
        view = TeacherView(*(np.concatenate(parts)[order] for parts in zip(*(one for _, one in done), strict=True)))
        # The marks index the end of the table.
        table = np.array([self._ids.sep, self._ids.cls, self._ids.pad], np.int32)
        ids = np.concatenate([self._stream.ids, table])[places]
        used = int(places.max(initial=-1)) + 1
        self._stream, self._dropped = self._stream.after(used), self._dropped + used
        return (ids, (places != _PAD).sum(axis=1).astype(np.int32)), view

    def _halves(self, row: Places) -> tuple[Places, Places]:
        content = row[row != _PAD][1:-1]
        middle = len(content) // 2
        if not middle:
            raise DataError(
                f"a token of the student spans more than {self._teacher.sequence_length - SPECIAL_TOKENS_A_SEQUENCE} "
                f"of the teacher's tokens ({text_of(self._text_of_token(content[0]))!r})",
                key="teacher_sequence_length",
                hint="raise teacher_sequence_length",
            )
        halves = np.full((2, len(row)), _PAD)
        for half, part in zip(halves, (content[:middle], content[middle:]), strict=True):
            part = part[int(part[0] == _SEP) : len(part) - int(part[-1] == _SEP)]
            half[: len(part) + SPECIAL_TOKENS_A_SEQUENCE] = [_CLS, *part, _SEP]
        return halves[0], halves[1]

    def _text_of_token(self, place: int) -> NDArray[np.uint32]:
        start, end = self._stream.offsets[place]
        return self._stream.text[start:end]

    def _align(self, places: Places) -> tuple[TeacherView, dict[str, Places]]:
        """Return the teacher's rows, without a limit on their length, and the counts of each row."""
        stream, size = self._stream, len(places)
        # Segments are runs of tokens of one document in one row; a [SEP] follows each.
        row, column = np.nonzero(places >= 0)
        place = places[row, column]
        document = stream.documents[place]
        begins = np.ones(len(place), np.bool_)
        begins[1:] = (row[1:] != row[:-1]) | (document[1:] != document[:-1])
        first, segment = np.flatnonzero(begins), np.cumsum(begins) - 1
        of_row = row[first]
        first_characters = stream.starts[place[first]]
        ends = stream.ends[place[np.append(first[1:], len(place)) - 1]] if len(first) else first
        pieces = [stream.text[start:end] for start, end in zip(first_characters, ends, strict=True)]
        encoded = self._teacher.encoder.encode([text_of(piece) for piece in pieces])
        assert encoded.offsets is not None

        sizes = ends - first_characters
        bases = np.cumsum(sizes) - sizes
        own = np.clip(stream.offsets[place] - first_characters[segment, None], 0, sizes[segment, None])
        own += bases[segment, None]
        spans = common_spans(int(sizes.sum()), own, encoded.offsets)
        rank = np.where(spans.shared, np.cumsum(spans.shared) - 1, -1)  # of a span among the units
        unit_starts = np.flatnonzero(np.diff(spans.of_characters, prepend=-1))[spans.shared]
        unit_segment = np.searchsorted(bases, unit_starts, side="right") - 1

        layout = _SegmentLayout(of_row, size)
        units_a_segment = np.bincount(unit_segment, minlength=len(first))
        unit_numbers, separator_numbers = layout.places(units_a_segment, unit_segment)

        def unit_of(offsets: Places) -> Places:
            filled = offsets[:, 1] > offsets[:, 0]
            found = np.full(len(offsets), -1)
            found[filled] = rank[spans.of_characters[offsets[filled, 0]]]
            numbers: Places = np.append(unit_numbers, NO_UNIT)[found]
            return numbers

        student_units = np.full(places.shape, NO_UNIT, np.uint16)
        student_units[:, 0] = 0
        student_units[row, column] = unit_of(own)
        student_units[places == _SEP] = separator_numbers

        tokens_a_segment = np.diff(encoded.ends, prepend=0)
        token_segment = np.repeat(np.arange(len(first)), tokens_a_segment)
        columns, separators = layout.places(tokens_a_segment, token_segment)
        tokens_a_row = layout.total(tokens_a_segment)
        lengths = tokens_a_row + layout.segments + 1
        width = max(self._teacher.sequence_length, int(lengths.max(initial=0)))
        tokens = np.full((size, width), self._teacher.ids.pad, np.int32)
        units = np.full((size, width), NO_UNIT, np.uint16)
        tokens[:, 0], units[:, 0] = self._teacher.ids.cls, 0
        tokens[of_row[token_segment], columns] = encoded.tokens
        units[of_row[token_segment], columns] = unit_of(encoded.offsets)
        tokens[of_row, separators], units[of_row, separators] = self._teacher.ids.sep, separator_numbers

        visible = ~np.isin(np.concatenate([*pieces, np.empty(0, np.uint32)]), _WHITE_SPACE)
        lost = visible & ~spans.shared[spans.of_characters]
        character_row = np.repeat(of_row, sizes)
        counts = {
            "teacher_tokens": tokens_a_row,
            "units": layout.total(units_a_segment) + layout.segments + 1,
            "characters": np.bincount(character_row[visible], minlength=size),
            "unaligned": np.bincount(character_row[lost], minlength=size),
        }
        return TeacherView(tokens, lengths.astype(np.int32), units, student_units), counts


class _SegmentLayout:
    """Compute positions of the items of segments in rows `[CLS] segment [SEP] segment [SEP]`.

    Args:
        of_row: (segments,) row of each segment, ascending.
        rows: number of rows.

    Attributes:
        segments: (rows,) number of segments.
    """

    def __init__(self, of_row: Places, rows: int) -> None:
        self._of_row = of_row
        self._rows = rows
        self.segments = np.bincount(of_row, minlength=rows)
        self._index = np.arange(len(of_row)) - (np.cumsum(self.segments) - self.segments)[of_row]

    def total(self, counts: Places) -> Places:
        """Sum counts of segments over each row."""
        return np.bincount(self._of_row, weights=counts, minlength=self._rows).astype(np.int64)

    def places(self, counts: Places, segment: Places) -> tuple[Places, Places]:
        """Return the position of each item, and of the [SEP] after each segment, within its row.

        Args:
            counts: (segments,) number of items.
            segment: (items,) segment of each item, ascending.
        """
        before = (np.cumsum(self.total(counts)) - self.total(counts))[self._of_row]  # items of the rows before
        shift = 1 + self._index - before
        return np.arange(len(segment)) + shift[segment], np.cumsum(counts) + shift


def _shortened(view: TeacherView, rows: NDArray[np.bool_], width: int) -> TeacherView:
    return TeacherView(
        view.tokens[rows, :width], view.lengths[rows], view.units[rows, :width], view.student_units[rows]
    )
