from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation.readers import file_corpus, json_lines
from kdcore_preparation.readers.json_lines import JsonLinesCorpus
from kdcore_preparation.readers.json_records import json_record

from kdcore.errors import DataError


def corpus_of(path: Path, **settings: Any) -> JsonLinesCorpus:
    return JsonLinesCorpus(JsonLinesCorpus.Config(path=str(path), **settings))


def read(path: Path, **settings: Any) -> tuple[dict[str, str], dict[str, int]]:
    corpus = corpus_of(path, **settings)
    return {document.id: document.text for document in corpus.documents()}, dict(corpus.report)


def read_damaged(path: Path, **settings: Any) -> tuple[list[str], str]:
    kept: list[str] = []
    with pytest.raises(DataError) as caught:
        kept.extend(document.text for document in corpus_of(path, **settings).documents())
    return kept, str(caught.value)


def test_each_object_gives_the_text_of_one_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "no", "body": "Zu\\u0308rich\\nis"}\n\n{"body": "last"}')
    assert read(path, field="body") == (
        {"a.jsonl:1": "Zürich\nis", "a.jsonl:3": "last"},
        {"documents brought into Unicode normal form C": 1},
    )


def test_texts_that_are_empty_or_null_are_skipped_and_broken_characters_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": ""}\n{"text": null}\n{"text": "a\xff\\ud800\\u0000"}\n')
    assert read(path) == (
        {"a.jsonl:3": "a\ufffd\ufffd"},
        {
            "empty documents skipped": 2,
            "broken UTF-8 replaced": 1,
            "halves of surrogate pairs replaced": 1,
            "control characters removed": 1,
        },
    )


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_are_read(tmp_path: Path, suffix: str) -> None:
    import pyarrow

    content = b'{"text": "one"}\n{"text": "two"}\n'
    packed = gzip.compress(content) if suffix == "gz" else pyarrow.compress(content, codec="zstd", asbytes=True)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed)
    assert list(read(path)[0].values()) == ["one", "two"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"text": "cut', "line 2 is not JSON: Unterminated string"),
        ("[1]", "line 2 is not a JSON object (found list)"),
        ('{"txt": "a", "id": 1}', 'line 2 has no field "text", only txt, id'),
        ('{"text": ["a"]}', 'line 2 has no text under "text" (found list)'),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"text": "a", "text": "b"}', "line 2 has the key `text` more than once"),
        ('{"text": "a", "id": {"text": 1}, "\\u0074ext": "a"}', "line 2 has the key `text` more than once"),
        ('{"text": null, "text": "b"}', "line 2 has the key `text` more than once"),
        ('{"text": "a", "text": null}', "line 2 has the key `text` more than once"),
        ('{"text": {"x": 1, "x": 2}}', "line 2 has the key `x` more than once"),
    ],
)
def test_lines_that_are_no_such_object_cost_no_other_one_and_are_an_error_in_the_end(
    tmp_path: Path, bad: str, words: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{bad}\n{{"text": "three"}}\n{bad}\n')
    kept, message = read_damaged(path)
    assert kept == ["one", "three"]
    assert words in message
    assert "a.jsonl: " in message
    assert "and 1 more like it" in message
    assert "set `field`" in message


def test_repeated_keys_that_are_not_read_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "id": 2, "text": "one", "meta": {"a": 1, "a": 2}}\n{"text": "two"}\n')
    assert list(read(path)[0].values()) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "a"),
        ('{"a": [1, {"x": 1, "x": 2}]}', "x"),
        ('{"a": {"y": {"z": 1, "z": 1}}}', "z"),
        ('{"b": 1, "b": 2, "a": 1}', None),
        ('{"a": [{"x": 1}, {"x": 2}], "b": {"x": 1, "x": 2}}', None),
    ],
)
def test_records_that_repeat_a_key_in_what_is_read_are_refused(line: str, key: str | None) -> None:
    if key is None:
        assert json_record(line, ["a", "c"]) == json.loads(line)
    else:
        with pytest.raises(ValueError, match=f"has the key `{key}` more than once"):
            json_record(line, ["a", "c"])


def test_a_wrong_field_is_found_without_reading_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a"}\n' * 5000)
    kept, message = read_damaged(path)
    assert kept == []
    assert 'line 1 has no field "text", only body, and 99 more like it' in message


def test_a_line_beyond_all_measure_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_RECORD_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{{"text": "{"x " * 500}"}}\n{{"text": "three"}}\n')
    kept, message = read_damaged(path)
    assert kept == ["one", "three"]
    assert "line 2 is longer than 64 MiB" in message
    assert "more" not in message


def test_a_very_long_text_is_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "word " * 50}))
    documents, report = read(path)
    assert list(documents) == ["a.jsonl:1", "a.jsonl:1#2", "a.jsonl:1#3"]
    assert " ".join(documents.values()).split() == ["word"] * 50
    assert report == {"documents continued as another one, being very long": 2}


def test_a_mistake_far_into_a_file_is_named_by_its_line_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "PART_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 20 + "bad\n")
    corpus = corpus_of(path)
    *before, last = corpus.parts()
    assert sum(len(list(corpus.read(part))) for part in before) > 15
    with pytest.raises(DataError, match="line 21 is not JSON"):
        list(corpus.read(last))
