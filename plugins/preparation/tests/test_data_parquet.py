from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kdcore_preparation.readers import file_corpus, parquet
from kdcore_preparation.readers.parquet import ParquetCorpus
from pyarrow import parquet as pq

from kdcore.errors import DataError


def corpus_of(path: Path, **settings: Any) -> ParquetCorpus:
    return ParquetCorpus(ParquetCorpus.Config(path=str(path), **settings))


def read(path: Path, **settings: Any) -> tuple[dict[str, str], dict[str, int]]:
    corpus = corpus_of(path, **settings)
    return {document.id: document.text for document in corpus.documents()}, dict(corpus.report)


def write(path: Path, *, row_group_size: int = 10, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_each_row_gives_the_text_of_one_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=[1, 2, 3, 4], body=["one", None, "  ", "fo\0ur"])
    assert read(path, column="body") == (
        {"a.parquet:0": "one", "a.parquet:3": "four"},
        {"empty documents skipped": 2, "control characters removed": 1},
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_string_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", text=pa.array(["one", "two"]).cast(kind))
    assert list(read(path)[0].values()) == ["one", "two"]


def test_groups_of_rows_are_parts_and_rows_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number}" for number in range(95)]
    path = write(tmp_path / "a.parquet", text=texts)
    for size, count in ((1, 10), (10**6, 1)):
        monkeypatch.setattr(parquet, "PART_BYTES", size)
        corpus = corpus_of(path)
        parts = corpus.parts()
        assert len(parts) == count
        found = [document for part in parts for document in corpus.read(part)]
        assert [document.text for document in found] == texts
        assert [document.id for document in found] == [f"a.parquet:{row}" for row in range(95)]


def test_a_very_long_text_is_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_corpus, "MAX_DOCUMENT_BYTES", 100)
    documents, _ = read(write(tmp_path / "a.parquet", text=["word " * 30]))
    assert list(documents) == ["a.parquet:0", "a.parquet:0#2"]


def test_a_missing_column_or_one_of_numbers_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=[1], body=["a"])
    with pytest.raises(DataError, match=r"a\.parquet: has no column `text`\n.*allowed: id, body\n.*set `column`"):
        read(path)
    with pytest.raises(DataError, match=r"the column `id` holds int64, not text\n.*allowed: body"):
        read(path, column="id")


def test_a_file_that_is_damaged_or_none_is_refused_when_its_part_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", text=["good"])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no such thing")
    corpus = corpus_of(tmp_path)
    good, bad = corpus.parts()
    with pytest.raises(DataError, match=r"b\.parquet: is damaged or not a Parquet file"):
        list(corpus.read(bad))
    assert [document.text for document in corpus.read(good)] == ["good"]


def test_what_came_before_damage_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=[f"text {number} " * 50 for number in range(2000)], row_group_size=500)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    kept: list[str] = []
    with pytest.raises(DataError, match=r"a\.parquet: is damaged or not a Parquet file after row \d+"):
        kept.extend(document.text for document in corpus_of(path).documents())
    assert len(kept) >= 500
