"""Texts with labelled spans from every kind of file, and mistakes in files."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from kdcore_supervised.data.tagged import TaggedData, TaggedPart, read_tagged
from kdcore_supervised.data.words import word_bounds
from kdcore_supervised.tags import TaggedSpan
from pyarrow import parquet
from pydantic import ValidationError

from kdcore import DataError

LABELS = ["per", "loc"]
WORDS = ["Ada", "Lovelace", "met", "Bo", "in", "New", "York", "."]
TAGS = ["B-per", "I-per", "O", "B-per", "O", "B-loc", "I-loc", "O"]
SPANS = (TaggedSpan(0, 2, "per"), TaggedSpan(3, 4, "per"), TaggedSpan(5, 7, "loc"))
BIOES = ["B-per", "E-per", "O", "S-per", "O", "B-loc", "E-loc", "O"]
IOB1 = ["I-per", "I-per", "O", "I-per", "O", "I-loc", "I-loc", "O"]
COLUMNS = {"tokens": "tokens", "tags": "tags"}


def write(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def read(report: Counter[str] | None = None, **keys: Any) -> dict[str, TaggedPart]:
    data = TaggedData.model_validate({"labels": LABELS} | keys)
    return {part.name: part for part in read_tagged(data, Counter() if report is None else report)}


def conll(words: list[str], tags: list[str], separator: str = " ") -> str:
    return "".join(f"{word}{separator}{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"


def characters() -> list[dict[str, Any]]:
    """The spans of `WORDS`, joined by spaces, in characters."""
    text = " ".join(WORDS)
    names = [("Ada Lovelace", "per"), ("Bo", "per"), ("New York", "loc")]
    return [{"start": text.index(name), "end": text.index(name) + len(name), "label": label} for name, label in names]


@pytest.mark.parametrize("form", ["conll", "tsv", "bioes", "iob1", "lists", "parquet", "spans", "datasets"])
def test_every_form_gives_the_same_words_and_spans(form: str, tmp_path: Path) -> None:
    record = {"tokens": WORDS, "tags": TAGS}
    keys: dict[str, Any] = {}
    if form == "conll":
        keys["train"] = write(tmp_path, "train.conll.gz", gzip.compress(conll(WORDS, TAGS, " \t ").encode()))
    elif form == "tsv":
        keys["train"] = write(tmp_path, "train.tsv", conll(WORDS, TAGS, "\t"))
        keys["conll"] = {"separator": "\t"}
    elif form in ("bioes", "iob1"):
        keys["train"] = write(tmp_path, "train.txt", conll(WORDS, BIOES if form == "bioes" else IOB1))
        keys["scheme"] = form
    elif form == "lists":
        keys |= COLUMNS | {"train": write(tmp_path, "train.jsonl", json.dumps(record))}
    elif form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "train.parquet")
        keys |= COLUMNS | {"train": str(tmp_path / "train.parquet")}
    elif form == "spans":
        content = json.dumps({"words": " ".join(WORDS), "entities": characters()})
        keys |= {"train": write(tmp_path, "train.jsonl", content), "text": "words", "spans": "entities"}
    else:
        import datasets

        names = ["O", "B-loc", "I-loc", "B-per", "I-per"]
        features = datasets.Features(
            {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
        )
        numbered = {"tokens": WORDS, "tags": [names.index(tag) for tag in TAGS]}
        train = datasets.Dataset.from_list([numbered], features=features)
        datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "saved")
        keys |= COLUMNS | {"huggingface": {"path": str(tmp_path / "saved"), "validation": None}}
    report: Counter[str] = Counter()
    (text,) = read(report, **keys)["train"].texts
    assert text.text == " ".join(WORDS)
    assert [text.text[start:end] for start, end in text.bounds] == WORDS
    assert text.spans == SPANS
    assert not report


def test_columns_separators_and_document_markers(tmp_path: Path) -> None:
    lines = ["-DOCSTART- -X- O O", "", "Ada NNP B-per x", "met VBD O x", "   ", "\t", "Bo NNP B-per x"]
    report: Counter[str] = Counter()
    form = {"token": 0, "tag": 2}
    train = read(report, train=write(tmp_path, "x.conll", "\r\n".join(lines)), conll=form)["train"]
    assert [text.text for text in train.texts] == ["Ada met", "Bo"]
    assert [text.id for text in train.texts] == ["0", "1"]
    assert report == {"document markers left out": 1}
    train = read(train=write(tmp_path, "y.tsv", "B-loc\tNew York\n"), conll={"token": -1, "tag": 0, "separator": "\t"})[
        "train"
    ]
    assert (train.texts[0].text, train.texts[0].bounds.tolist()) == ("New York", [[0, 8]])
    train = read(train=write(tmp_path, "z.conll", "#new O\nAda B-per\n"), conll={"document": "#new"})["train"]
    assert [text.text for text in train.texts] == ["Ada"]


def test_invalid_sequences_are_repaired_and_counted_or_refused(tmp_path: Path) -> None:
    words = ["a", "b", "c", "d", "e"]
    tags = ["I-per", "I-loc", "O", "B-loc", "I-loc"]
    path = write(tmp_path, "x.conll", conll(words, tags))
    report: Counter[str] = Counter()
    (text,) = read(report, train=path)["train"].texts
    assert text.spans == (TaggedSpan(0, 1, "per"), TaggedSpan(1, 2, "loc"), TaggedSpan(3, 5, "loc"))
    assert report == {f"tags of invalid `bio` sequences repaired ({path}, the first in line 1)": 2}
    with pytest.raises(DataError, match=r"x.conll(?s:.)*line 1 has tags that are invalid in the scheme `bio`"):
        read(train=path, invalid_tags="refuse")
    bioes = write(tmp_path, "y.conll", conll(words, ["B-per", "O", "E-loc", "S-loc", "I-loc"]))
    report.clear()
    (text,) = read(report, train=bioes, scheme="bioes")["train"].texts
    assert [span[:2] for span in text.spans or ()] == [(0, 1), (2, 3), (3, 4), (4, 5)]
    assert list(report.values()) == [3]
    report.clear()
    (text,) = read(report, train=path, scheme="iob1")["train"].texts
    assert text.spans == (TaggedSpan(0, 1, "per"), TaggedSpan(1, 2, "loc"), TaggedSpan(3, 5, "loc"))
    assert list(report.values()) == [1], "B is needed only where a span of the same type ends right before it"


def test_spans_of_characters_are_extended_to_words_and_counted(tmp_path: Path) -> None:
    text = "New-Yorkers  like Ada's café."
    spans = [(0, 3, "loc"), (4, 8, "loc"), (18, 21, "per"), (24, 28, "loc"), (11, 12, "per")]
    record = {"text": text, "spans": [{"start": start, "end": end, "label": type_} for start, end, type_ in spans]}
    report: Counter[str] = Counter()
    (found,) = read(report, train=write(tmp_path, "x.jsonl", json.dumps(record)), text="text", spans="spans")[
        "train"
    ].texts
    words = [found.text[start:end] for start, end in found.bounds]
    assert words == ["New", "-", "Yorkers", "like", "Ada", "'", "s", "café", "."]
    assert found.spans is not None
    assert [(" ".join(words[one.start : one.end]), one.type) for one in found.spans] == [
        ("New", "loc"),
        ("Yorkers", "loc"),
        ("Ada", "per"),
        ("café", "loc"),
    ]
    assert report == {"spans moved to the bounds of words": 1, "spans without their own word left out": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. O'Neil_2, ok?", ["Mr", ".", "O", "'", "Neil_2", ",", "ok", "?"]),
        ("cafe\u0301 x", ["cafe\u0301", "x"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 a", ["\u0939\u093f\u0928\u094d\u0926\u0940", "a"]),
        ("東京 2020年", ["東", "京", "2020", "年"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        (" \u00a0\n", []),
    ],
)
def test_words_of_running_text(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in word_bounds(text)] == words


def test_test_and_further_texts_may_lack_labels(tmp_path: Path) -> None:
    train = write(tmp_path, "train.conll", conll(WORDS, TAGS))
    parts = read(
        train=train,
        test=write(tmp_path, "test.conll", "Ada\nLovelace\n\nBo\n"),
        unlabelled=write(tmp_path, "more.jsonl", '{"text": "Hi Bo!"}\n'),
        text="text",
    )
    assert list(parts) == ["train", "unlabelled", "test"]
    assert [part.labelled for part in parts.values()] == [True, False, False]
    assert [text.text for text in parts["test"].texts] == ["Ada Lovelace", "Bo"]
    assert [text.text for text in parts["unlabelled"].texts] == ["Hi Bo!"]
    parts = read(unlabelled=train, validation=train)
    assert [part.labelled for part in parts.values()] == [False, True], "labels of `unlabelled` are ignored"
    parts = read(train=train, test=write(tmp_path, "t.jsonl", '{"tokens": ["a"]}'), **COLUMNS)
    assert not parts["test"].labelled


def test_a_split_keeps_equal_texts_together(tmp_path: Path) -> None:
    sentences = [conll(["w", str(number % 80)], ["O", "B-per"]) for number in range(100)]
    parts = read(train=write(tmp_path, "x.conll", "".join(sentences)), split={"validation": 0.3})
    texts = {name: {text.text for text in part.texts} for name, part in parts.items()}
    assert len(parts["train"]) + len(parts["validation"]) == 100
    assert not texts["train"] & texts["validation"]
    assert 10 < len(parts["validation"]) < 50


def test_composed_and_decomposed_types_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, "x.conll", conll(["a", "b"], ["B-caf\u00e9", "B-cafe\u0301"]))
    for configured in ("caf\u00e9", "cafe\u0301"):
        text = read(train=path, labels=[configured])["train"].texts[0]
        assert text.spans == (TaggedSpan(0, 1, "caf\u00e9"), TaggedSpan(1, 2, "caf\u00e9"))
        stored = pyarrow.table({"label": [["B-cafe\u0301", "O"]], "prediction": [["B-caf\u00e9", "O"]]})
        assert TaggedData(train="x", labels=[configured]).stored_scores(stored)["f1"] == 1


def test_a_split_keeps_texts_together_that_cleaning_makes_equal(tmp_path: Path) -> None:
    numbers = [number for number in range(100) for _ in range(2)]
    sentences = [
        conll([("caf\u00e9", "cafe\u0301")[index % 2], str(number)], ["O", "O"]) for index, number in enumerate(numbers)
    ]
    parts = read(train=write(tmp_path, "x.conll", "".join(sentences)), split={"validation": 0.3})
    held = [text.text.split(" ")[1] for text in parts["validation"].texts]
    assert len(held) == 2 * len(set(held))


def test_tags_can_be_listed_in_the_order_of_a_teacher() -> None:
    order = ["B-loc", "I-loc", "B-per", "I-per", "O"]
    data = TaggedData.model_validate({"train": "x", "labels": order})
    assert (data.types, data.classes) == (("loc", "per"), tuple(order))
    data = TaggedData.model_validate({"train": "x", "labels": LABELS, "scheme": "bioes"})
    assert data.classes == ("O", *(f"{prefix}-{type_}" for type_ in LABELS for prefix in "BIES"))


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    (
        "a O\nb\n\nc x O\n",
        {},
        r"2 records(?s:.)*line 2 has 1 columns \(expected 2, as in line 1\); line 4 has 3 columns",
    ),
    ("\tO\n", {"conll": {"separator": "\t"}}, r"line 1 cannot be read: the token is empty"),
    ("a\tO\n \tO\n", {"conll": {"separator": "\t"}}, r"line 2 cannot be read: the token is empty"),
    ("a\t\n", {"conll": {"separator": "\t"}}, r"line 1 cannot be read: the tag is empty"),
    ("a O\n", {"conll": {"tag": 3}}, r"line 1 cannot be read: the tag column is missing"),
    ("a\nb\n", {}, r"line 1 has a single column and therefore no tag"),
    ("a O\nb B-org\n", {}, r"line 2 has the tag 'B-org' of the unknown type 'org'(?s:.)*allowed: per, loc"),
    ("a per\n", {}, r"line 1 has the tag 'per', which is neither `O` nor a prefix, a hyphen and a type"),
    ("a O\nb S-per\n", {}, r"line 2 has the tag 'S-per', whose prefix does not belong to the scheme `bio`"),
    ("\n\n", {}, r"`train` contains no texts"),
]


@pytest.mark.parametrize(("content", "keys", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_of_conll_files(content: str, keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(train=write(tmp_path, "x.conll", content), **keys)


LISTS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": ["a"], "tags": ["O", "O"]}, r"line 1 has 1 words, but 2 tags"),
    ({"tokens": ["a", " "], "tags": ["O", "O"]}, r"line 1 has an empty word \(number 1\)"),
    ({"tokens": "a", "tags": ["O"]}, r"line 1 has no list of words under `tokens`"),
    ({"tokens": ["a"], "tags": [0]}, r"line 1 has no list of tags as text under `tags`"),
    ({"tokens": ["a"], "tags": None}, r"line 1 has no list of tags as text under `tags`"),
    ({"tokens": ["a"]}, r"task.data.train: has no column `tags`"),
    ({"tokens": ["a"], "tags": ["B-org"]}, r"line 1 has the tag 'B-org' of the unknown type 'org'"),
]


@pytest.mark.parametrize(("record", "words"), LISTS, ids=range(len(LISTS)))
def test_mistakes_of_lists(record: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(train=write(tmp_path, "x.jsonl", json.dumps(record)), **COLUMNS)


OF_SPANS: list[tuple[Any, str]] = [
    ("x", r"line 1 has no list of spans"),
    ([{"start": 0, "end": 1}], r"line 1 has a span without `start`, `end` and `label`"),
    ([[0, 1, "per"]], r"line 1 has a span without `start`, `end` and `label`"),
    ([{"start": 0, "end": 4, "label": "per"}], r"has the span 0 to 4, which is not inside its text of 3 characters"),
    ([{"start": 2, "end": 2, "label": "per"}], r"has the span 2 to 2, which is not inside"),
    (
        [{"start": 0, "end": 2, "label": "per"}, {"start": 1, "end": 3, "label": "loc"}],
        r"has spans that overlap: 0 to 2 and 1 to 3",
    ),
    ([{"start": 0, "end": 1, "label": "org"}], r"labels: 1 records(?s:.)*unknown type 'org'(?s:.)*allowed: per, loc"),
]


@pytest.mark.parametrize(("spans", "words"), OF_SPANS, ids=range(len(OF_SPANS)))
def test_mistakes_of_spans(spans: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", json.dumps({"text": "abc", "spans": spans}))
    with pytest.raises(DataError, match=words):
        read(train=path, text="text", spans="spans")


def test_endings_and_columns_in_messages_are_those_of_tagged_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(train=write(tmp_path, "x.xls", "a"), **COLUMNS)
    endings = ".conll, .iob, .iob2, .bio, .bioes, .tsv, .txt, .csv, .jsonl, .ndjson, .json, .parquet"
    assert f"names that end with {endings}, compressed" in str(caught.value)
    with pytest.raises(DataError) as caught:
        read(train=write(tmp_path, "x.jsonl", '{"tokens": ["a"]}'), **COLUMNS)
    assert "has no column `tags`" in str(caught.value)
    assert "name existing columns under `task.data`" in str(caught.value)
    assert "`label`" not in str(caught.value)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_column_of_ids_is_refused_for_conll_files(part: str, tmp_path: Path) -> None:
    record = {"tokens": ["a"], "tags": ["O"], "name": "x"}
    keys = {"id": "name", "train": write(tmp_path, "a.jsonl", json.dumps(record))} | COLUMNS
    assert [text.id for text in read(**keys)["train"].texts] == ["x"]
    with pytest.raises(DataError, match=r"b\.conll: task\.data\.id: (?s:.)*`name`(?s:.)*remove `id`"):
        read(**keys | {part: write(tmp_path, "b.conll", "a O\n")})


def test_lone_surrogates_inside_lists_are_replaced_and_counted(tmp_path: Path) -> None:
    record = {"tokens": ["a\ud800", "b", "\udfff\udfff"], "tags": ["B-per", "O", "O"]}
    report: Counter[str] = Counter()
    (text,) = read(report, train=write(tmp_path, "x.jsonl", json.dumps(record)), **COLUMNS)["train"].texts
    assert [text.text[start:end] for start, end in text.bounds] == ["a\ufffd", "b", "\ufffd\ufffd"]
    assert text.spans == (TaggedSpan(0, 1, "per"),)
    assert report == {"halves of surrogate pairs replaced": 3}


def test_records_need_columns_and_validation_needs_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '{"text": "a"}')
    for keys in ({}, {"text": "text"}):
        with pytest.raises(DataError, match=r"records need the names of their columns(?s:.)*`tokens` and `tags`"):
            read(train=path, **keys)
    train = write(tmp_path, "x.conll", "a O\n")
    with pytest.raises(DataError, match=r"v.conll: task.data.conll(?s:.)*line 1 has a single column"):
        read(train=train, validation=write(tmp_path, "v.conll", "a\n"))


KEYS: list[tuple[dict[str, Any], str]] = [
    ({}, "needs `train`"),
    ({"train": "x", "huggingface": {"path": "y"}}, "not both"),
    ({"huggingface": {"path": "y"}}, "needs the columns `tokens` and `tags`"),
    ({"train": "x", "text": "t", "tokens": "w"}, "not both"),
    ({"train": "x", "tags": "t"}, "`tags` needs `tokens`"),
    ({"train": "x", "validation": "y", "split": {"validation": 0.1}}, "remove it if other splits are given"),
    ({"unlabelled": "x", "split": {"validation": 0.1}}, "`split` divides `train`"),
    ({"train": "x", "labels": ["a", "a"]}, "names a label twice"),
    ({"train": "x", "labels": ["O", "B-a", "I-a", "B-b"]}, "I-b differ"),
    ({"train": "x", "labels": ["O", "B-a", "I-a"], "scheme": "bioes"}, "E-a, S-a differ"),
]


@pytest.mark.parametrize(("keys", "words"), KEYS, ids=range(len(KEYS)))
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TaggedData.model_validate({"labels": LABELS} | keys)
