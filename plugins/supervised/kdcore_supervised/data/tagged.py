"""Texts with labelled spans: define the keys that locate them, and read their train, validation and test parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from unicodedata import normalize

import numpy as np
from kdcore_preparation import RecordMistakes, RecordTable, clean_text, file_format, read_records, table_files
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kdcore import ComponentConfig, DataError, PathOrHubName, PathString
from kdcore_supervised.data.conll import CONLL_FORMATS, ConllFormat, read_conll
from kdcore_supervised.data.labelled import SPLITS, Label
from kdcore_supervised.data.labelled_datasets import HuggingFaceData, load_splits
from kdcore_supervised.data.labelled_tables import (
    QUOTES_HINT,
    Quoting,
    column_of_texts,
    count_empty,
    label_as_text,
)
from kdcore_supervised.data.splitting import SplitFractions
from kdcore_supervised.data.words import word_bounds
from kdcore_supervised.span_metrics import SPAN_METRICS, SpanMetric, SpanScores
from kdcore_supervised.tags import OUTSIDE, TaggedSpan, TagScheme, output_tags, spans_of, tag_problem, tags_of

if TYPE_CHECKING:
    from pyarrow import Table

_LABELS_KEY = "task.data.labels"


class TaggedData(ComponentConfig):
    """Texts with labelled spans, from CoNLL files, records or the library `datasets`."""

    task: ClassVar[str] = "token_classification"
    """Name of the task that trains on this data."""

    kind: ClassVar[str] = "spans"
    metrics: ClassVar[tuple[SpanMetric, ...]] = SPAN_METRICS
    main_metric: ClassVar[SpanMetric] = "f1"

    train: PathString | None = Field(
        None,
        description="File, folder or glob: CoNLL files (.conll, .iob, .iob2, .bio, .bioes, .tsv, .txt), jsonl or "
        "parquet.",
    )
    validation: PathString | None = Field(None, description="Validation files, in the same format as `train`.")
    test: PathString | None = Field(None, description="Test files, in the same format; labels may be missing.")
    unlabelled: PathString | None = Field(
        None,
        description="Files of further texts to train on, whose labels are ignored: only losses that need no labels, "
        "such as soft_targets, use these texts. May replace `train`.",
    )
    huggingface: HuggingFaceData | None = None
    split: SplitFractions | None = Field(
        None, description="Fractions of `train` for validation and testing, chosen by a hash of the text."
    )
    quoting: Quoting | None = Field(
        None, description="`none`: quotes in csv files are text, and every line is a record; default: csv is quoted."
    )
    conll: ConllFormat = ConllFormat()
    text: str | None = Field(None, description="Column of running text in records with `spans`.")
    spans: str | None = Field(
        None, description="Column of a text's spans: a list of {start, end, label} in characters, `end` exclusive."
    )
    tokens: str | None = Field(None, description="Column of the list of words in records with `tags`.")
    tags: str | None = Field(None, description="Column of the list of their tags.")
    id: str | None = Field(None, description="Column of record names (not for CoNLL files); default: record numbers.")
    labels: list[Label] = Field(
        min_length=1,
        description="Types of spans as spelled in the files, whose tags become the model's outputs in this order; or "
        "all tags, including O, in the order of the model's outputs.",
    )
    scheme: TagScheme = Field(
        "bio",
        description="Scheme of the tags in files and of the model's outputs; `iob1` is converted to `bio`.",
    )
    invalid_tags: Literal["repair", "refuse"] = Field(
        "repair",
        description="What to do with invalid sequences, such as I without B: `repair` starts a span there and counts "
        "the repair.",
    )
    label_all_tokens: bool = Field(
        False, description="Whether training labels every subword of a word; default: only the first subword."
    )
    tokenizer: PathOrHubName | None = Field(
        None, description="Default: the tokenizer of the folder that the student starts from, or the teacher's."
    )
    max_length: int = Field(
        128, ge=4, description="Maximum number of tokens, including special tokens; longer texts are cut into windows."
    )

    @model_validator(mode="after")
    def _one_source(self) -> TaggedData:
        if self.train is not None and self.huggingface is not None:
            raise ValueError("needs `train` (files) or `huggingface`, not both")
        if self.train is None and self.huggingface is None and self.unlabelled is None:
            raise ValueError("needs `train` (files), `huggingface` or `unlabelled`")
        if self.huggingface is not None and (self.validation is not None or self.test is not None):
            raise ValueError("`validation` and `test` are files: name the dataset's splits under `huggingface`")
        if self.split is not None and (self.validation is not None or self.test is not None):
            raise ValueError("`split` divides `train`: remove it if other splits are given")
        if self.split is not None and self.train is None and self.huggingface is None:
            raise ValueError("`split` divides `train`, which is missing")
        if self.text is not None and self.tokens is not None:
            raise ValueError("needs `text` (with `spans`) or `tokens` (with `tags`), not both")
        for column, needed in (("spans", "text"), ("tags", "tokens")):
            if getattr(self, column) is not None and getattr(self, needed) is None:
                raise ValueError(f"`{column}` needs `{needed}`")
        if self.huggingface is not None and self.label_column is None:
            raise ValueError("`huggingface` needs the columns `tokens` and `tags`, or `text` and `spans`")
        return self

    @model_validator(mode="after")
    def _complete_labels(self) -> TaggedData:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` names a label twice")
        if OUTSIDE in self.labels:
            expected = set(output_tags(self.types, self.scheme))
            if set(self.labels) != expected:
                differing = ", ".join(sorted(set(self.labels) ^ expected))
                raise ValueError(
                    f"`labels` lists tags (it contains O), which must be the tags of all types in the scheme "
                    f"`{self.scheme}`: {differing} differ"
                )
        return self

    def read(self, report: Counter[str]) -> list[TaggedPart]:
        """Read all parts, as `read_tagged` does."""
        return read_tagged(self, report)

    def identity(self) -> str:
        """Return the settings that affect training besides texts, tokenizer and length."""
        return repr((self.classes, self.label_all_tokens))

    def stored_scores(self, predictions: Table) -> dict[str, float]:
        """Score predictions in the form in which the task stores them in Parquet; empty without labels."""
        if "label" not in predictions.column_names:
            return {}
        scores = SpanScores(self.types)
        sides = (predictions.column(name).to_pylist() for name in ("label", "prediction"))
        for true, predicted in zip(*sides, strict=True):
            scores.add(spans_of(_composed(true)), spans_of(_composed(predicted)), len(true))
        return scores.values()

    @property
    def types(self) -> tuple[str, ...]:
        """Types of spans, in the order of the labels."""
        if OUTSIDE not in self.labels:
            return tuple(self.labels)
        return tuple(dict.fromkeys(label.partition("-")[2] for label in self.labels if label != OUTSIDE))

    @property
    def classes(self) -> tuple[str, ...]:
        """Tags in the order of the model's outputs."""
        return tuple(self.labels) if OUTSIDE in self.labels else output_tags(self.labels, self.scheme)

    @property
    def output_scheme(self) -> TagScheme:
        """Scheme of the model's outputs."""
        return "bio" if self.scheme == "iob1" else self.scheme

    @property
    def label_column(self) -> str | None:
        """Column of tags or spans in records; None if no records are labelled."""
        return self.spans or self.tags


@dataclass(frozen=True)
class TaggedText:
    """A text, its words and its labelled spans.

    Attributes:
        id: name of the record.
        text: the text; a list of words is joined by spaces.
        bounds: (words, 2) start and end of each word in characters.
        spans: labelled spans in words, in order; None if the text is unlabelled.
    """

    id: str
    text: str
    bounds: NDArray[np.int32]
    spans: tuple[TaggedSpan, ...] | None

    @property
    def clean(self) -> str:
        """The text after cleaning, for comparisons with other texts."""
        return clean_text(self.text, Counter())


@dataclass(frozen=True)
class TaggedPart:
    """The texts of one split; either all of them are labelled, or none."""

    name: str
    texts: list[TaggedText]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether the texts have labels."""
        return bool(self.texts) and self.texts[0].spans is not None

    def baselines(self) -> dict[str, float]:
        """Return the scores of predicting no spans; empty without labels."""
        scores = SpanScores({span.type for text in self.texts for span in text.spans or ()})
        for text in self.texts:
            scores.add(text.spans or (), (), len(text.bounds))
        return scores.values() if self.labelled else {}

    def content(self) -> Iterator[bytes]:
        """Yield the bytes that identify texts and labels."""
        yield repr((self.name, len(self))).encode()
        for text in self.texts:
            yield text.text.encode("utf-8", errors="replace")
            yield text.bounds.tobytes()
            yield repr(text.spans).encode()


def read_tagged(data: TaggedData, report: Counter[str]) -> list[TaggedPart]:
    """Read all given parts, in the order `train`, `unlabelled`, `validation`, `test`.

    Repairs and irregularities are counted in `report`.

    Raises:
        DataError: files or columns are missing, rows are ragged, a tag or span is invalid, or a part is empty.
    """
    if data.huggingface is not None:
        needed = [*_text_columns(data), *([data.id] if data.id else [])]
        label = str(data.label_column)
        tables = load_splits(data.huggingface, needed, label, data.labels, only_train=data.split is not None)
        parts = [TaggedPart(name, _of_table(data, table, name, report)) for name, table in tables.items()]
    else:
        parts = [part for name in SPLITS if (part := _read_files(data, name, report)) is not None]
    if data.split is not None:
        whole = parts[0].texts
        divided = data.split.divide((one.clean,) for one in whole)
        parts = [TaggedPart(name, [whole[index] for index in chosen]) for name, chosen in divided.items()]
    if (further := _read_files(data, "unlabelled", report)) is not None:
        parts.insert(int(bool(parts) and parts[0].name == "train"), further)
    for part in parts:
        if not len(part):
            raise DataError(
                f"`{part.name}` contains no texts",
                key="task.data",
                hint="increase the fractions under `split`" if data.split else "name files that contain records",
            )
    return parts


def _read_files(data: TaggedData, name: str, report: Counter[str]) -> TaggedPart | None:
    path = getattr(data, name)
    if path is None:
        return None
    texts: list[TaggedText] = []
    try:
        files = table_files(path)
        report.update(files.left_out)
        for file in files.values():
            texts += _read_file(data, file, name, report)
    except DataError as error:
        raise DataError(replace(one, key=one.key or f"task.data.{name}") for one in error.problems) from error
    if len({text.spans is None for text in texts}) > 1:
        raise DataError("some of the files have labels and others have none", where=path, key=f"task.data.{name}")
    if data.id is None:
        texts = [replace(text, id=str(number)) for number, text in enumerate(texts)]
    return TaggedPart(name, texts)


def _read_file(data: TaggedData, path: Path, name: str, report: Counter[str]) -> list[TaggedText]:
    if file_format(path) in CONLL_FORMATS:
        if data.id is not None:
            raise DataError(
                f"CoNLL files have no named columns (found `{data.id}`)",
                where=str(path),
                key="task.data.id",
                hint="remove `id`, so that texts are numbered, or convert the file to jsonl or parquet",
            )
        tags: Literal["required", "if present", "ignored"] = "required"
        if name in ("test", "unlabelled"):
            tags = "if present" if name == "test" else "ignored"
        sentences = read_conll(path, data.conll, tags, report)
        labelled = any(sentence.tags for sentence in sentences)
        tagged = _Tags(data, str(path), "line", report)
        texts = []
        for number, sentence in enumerate(sentences):
            spans = tagged.spans(sentence.tags, sentence.lines) if labelled else None
            texts.append(_of_words(str(number), sentence.tokens, spans))
        tagged.finish()
        return texts
    label = data.label_column
    if not _text_columns(data) or (label is None and name not in ("test", "unlabelled")):
        raise DataError(
            "records need the names of their columns",
            where=str(path),
            key="task.data",
            hint="set `tokens` and `tags`, or `text` and `spans`; or name CoNLL files "
            f"({', '.join(CONLL_FORMATS)}, compressed or not)",
        )
    required = [str(label)] if name not in ("test", "unlabelled") else []
    needed = [*_text_columns(data), *required, *([data.id] if data.id else [])]
    table = read_records(
        path,
        needed,
        report,
        label=label if name == "test" else None,
        quoted=data.quoting is None,
        quotes_hint=QUOTES_HINT,
        other_formats=CONLL_FORMATS,
    )
    return _of_table(data, table, name, report)


def _text_columns(data: TaggedData) -> list[str]:
    return [column for column in (data.text, data.tokens) if column is not None]


def _of_table(data: TaggedData, table: RecordTable, name: str, report: Counter[str]) -> list[TaggedText]:
    ids = [str(value) for value in table.columns[data.id]] if data.id else [str(one) for one in range(len(table))]
    label = data.label_column
    values = table.columns.get(label) if label is not None and name != "unlabelled" else None
    if name == "test" and values is not None and all(value is None for value in values):
        values = None
    if data.tokens is not None:
        return _of_lists(data, table, ids, values, report)
    return _of_spans(data, table, ids, values, report)


def _of_lists(
    data: TaggedData, table: RecordTable, ids: Sequence[str], values: Sequence[Any] | None, report: Counter[str]
) -> list[TaggedText]:
    """Convert records with a list of words and a list of tags."""
    tagged = _Tags(data, table.where, table.unit, report)
    mistakes = RecordMistakes(table.where)
    texts = []
    for record, words in enumerate(table.columns[str(data.tokens)]):
        place, tags = table.place(record), None if values is None else values[record]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            mistakes.add(place, f"has no list of words under `{data.tokens}`")
        elif any(not word.strip() for word in words):
            number = next(number for number, word in enumerate(words) if not word.strip())
            mistakes.add(place, f"has an empty word (number {number})")
        elif values is not None and (not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags)):
            mistakes.add(place, f"has no list of tags as text under `{data.tags}`")
        elif tags is not None and len(tags) != len(words):
            mistakes.add(place, f"has {len(words)} words, but {len(tags)} tags")
        else:
            spans = None if tags is None else tagged.spans(tags, [table.numbers[record]] * len(tags))
            texts.append(_of_words(ids[record], words, spans))
    mistakes.raise_if_any(hint="every record needs a list of words and a tag for each of them")
    tagged.finish()
    return texts


def _of_spans(
    data: TaggedData, table: RecordTable, ids: Sequence[str], values: Sequence[Any] | None, report: Counter[str]
) -> list[TaggedText]:
    """Convert records with running text and character spans."""
    mistakes, unknown = RecordMistakes(table.where), RecordMistakes(table.where)
    types = set(data.types)
    found = []
    texts, unused = column_of_texts(table, str(data.text)), Counter[str]()
    count_empty((clean_text(text, unused) for text in texts), report)
    for record, text in enumerate(texts):
        bounds = word_bounds(text)
        spans: tuple[TaggedSpan, ...] | None = None
        if values is not None:
            place = table.place(record)
            characters = _checked(values[record], text, partial(mistakes.add, place))
            for span in characters:
                if span.type not in types:
                    unknown.add(place, f"has a span of the unknown type {span.type!r}")
            spans = tuple(_on_words(characters, bounds, report))
        found.append(TaggedText(ids[record], text, bounds, spans))
    mistakes.raise_if_any(
        hint="`start` and `end` are characters of the text, `end` is exclusive, and spans must not overlap"
    )
    unknown.raise_if_any(key=_LABELS_KEY, allowed=data.types, hint="add the type to `task.data.labels`")
    return found


def _checked(value: Any, text: str, mistake: Callable[[str], None]) -> list[TaggedSpan]:
    """Return the spans of a record in order; report the first span that cannot be used."""
    if not isinstance(value, list):
        mistake("has no list of spans")
        return []
    spans = []
    for one in value:
        start, end, label = (one.get(key) if isinstance(one, dict) else None for key in ("start", "end", "label"))
        if type(start) is not int or type(end) is not int or label is None:
            mistake(f"has a span without `start`, `end` and `label` (found {one!r})")
            return []
        if not 0 <= start < end <= len(text):
            mistake(f"has the span {start} to {end}, which is not inside its text of {len(text)} characters")
            return []
        spans.append(TaggedSpan(start, end, label_as_text(label)))
    spans.sort()
    for before, after in pairwise(spans):
        if after.start < before.end:
            mistake(f"has spans that overlap: {before.start} to {before.end} and {after.start} to {after.end}")
            return []
    return spans


def _on_words(spans: Iterable[TaggedSpan], bounds: NDArray[np.int32], report: Counter[str]) -> list[TaggedSpan]:
    """Extend character spans to whole words; leave out spans whose words are all covered by earlier spans."""
    found: list[TaggedSpan] = []
    for span in spans:
        start = int(np.searchsorted(bounds[:, 1], span.start, side="right"))
        end = int(np.searchsorted(bounds[:, 0], span.end, side="left"))
        own = max(start, found[-1].end if found else 0)
        if own >= end:
            report["spans without their own word left out"] += 1
            continue
        if own != start or bounds[start, 0] < span.start or bounds[end - 1, 1] > span.end:
            report["spans moved to the bounds of words"] += 1
        found.append(TaggedSpan(own, end, span.type))
    return found


def _of_words(name: str, words: Sequence[str], spans: list[TaggedSpan] | None) -> TaggedText:
    lengths = np.array([len(word) for word in words], dtype=np.int32)
    ends = np.cumsum(lengths + 1, dtype=np.int32) - 1
    bounds = np.stack([ends - lengths, ends], axis=1)
    return TaggedText(name, " ".join(words), bounds, None if spans is None else tuple(spans))


def _composed(tags: Sequence[str]) -> list[str]:
    return [normalize("NFC", tag) for tag in tags]


class _Tags:
    """Read the spans of tagged words of one file, and collect the mistakes in its tags."""

    def __init__(self, data: TaggedData, where: str, unit: str, report: Counter[str]) -> None:
        self._data = data
        self._types = set(data.types)
        self._where = where
        self._unit = unit
        self._report = report
        self._mistakes = RecordMistakes(where)
        self._repaired = 0
        self._first = 0

    def spans(self, tags: Sequence[str], lines: Sequence[int]) -> list[TaggedSpan]:
        """Return the spans of one text, whose words are in `lines`."""
        tags = _composed(tags)
        problems = [
            (line, tag_problem(tag, self._types, self._data.scheme)) for tag, line in zip(tags, lines, strict=True)
        ]
        problem = next(((line, what) for line, what in problems if what is not None), None)
        if problem is not None:
            self._mistakes.add(f"{self._unit} {problem[0]}", problem[1])
            return []
        spans = spans_of(tags)
        valid = tags_of(spans, len(tags), self._data.scheme)
        wrong = [line for line, tag, other in zip(lines, tags, valid, strict=True) if tag != other]
        if wrong and self._data.invalid_tags == "refuse":
            self._mistakes.add(
                f"{self._unit} {wrong[0]}", f"has tags that are invalid in the scheme `{self._data.scheme}`"
            )
        elif wrong:
            self._first = self._first or wrong[0]
            self._repaired += len(wrong)
        return spans

    def finish(self) -> None:
        """Count the repairs, or report all mistakes.

        Raises:
            DataError: a tag is malformed or of an unknown type, or invalid sequences are refused.
        """
        self._mistakes.raise_if_any(
            key=_LABELS_KEY,
            allowed=self._data.types,
            hint="complete `task.data.labels`, set `task.data.scheme` to the file's scheme, or repair the file",
        )
        if self._repaired:
            place = f"{self._where}, the first in {self._unit} {self._first}"
            self._report[f"tags of invalid `{self._data.scheme}` sequences repaired ({place})"] += self._repaired
