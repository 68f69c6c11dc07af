"""Vectors computed elsewhere: reading them, refusing invalid ones, and passing them to losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from kdcore_teacher_cache.vector_teacher import VectorTeacher
from kdcore_teacher_cache.vectors import read_vectors
from pyarrow import parquet

import kdcore

RECORDS = [
    {"id": "a", "text": "one", "vector": [1.0, 2.0]},
    {"id": "b", "text": "two", "vector": [3, 4.5]},
    {"id": "c", "text": "one", "vector": [1.0, 2.0]},
]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["v.parquet", "v.jsonl"])
def test_both_formats_give_the_same_vectors(tmp_path: Path, name: str) -> None:
    found = read_vectors(written(tmp_path / name, RECORDS))
    assert (list(found.ids), list(found.texts)) == (["a", "b", "c"], ["one", "two", "one"])
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [[1, 2], [3, 4.5], [1, 2]]
    assert found.values[found.rows(["two", "one"])].tolist() == [[3, 4.5], [1, 2]]
    with pytest.raises(kdcore.DataError, match="no vector for 1 of 2 texts, such as 'three'"):
        found.rows(["one", "three"])


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [{**record, **(values if number == row else {})} for number, record in enumerate(RECORDS)]


@pytest.mark.parametrize("name", ["v.parquet", "v.jsonl"])
@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "a", "text": "one"}], "has no column `vector`"),
        (changed(1, vector=[1.0]), r"record 2 has 1 values \(expected 2\)"),
        (changed(1, vector=[1.0, float("nan")]), "the vector of record 2 is not finite"),
        (changed(1, id="a"), r"the id 'a' appears twice \(record 2\)"),
        (changed(2, vector=[1.0, 3.0]), r"the text 'one' has two vectors \(records 1 and 3\)"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, name: str, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(kdcore.DataError, match=message):
        read_vectors(written(tmp_path / name, records))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("missing.jsonl", None, "no such file"),
        ("v.csv", "id,text,vector", "is not a file of vectors"),
        ("empty.jsonl", "", "contains no vectors"),
        ("torn.jsonl", '{"id": "a", "text": "o', "cannot be read"),
        (
            "text.jsonl",
            '{"id": "a", "text": "o", "vector": "1 2"}\n',
            "line 1 lacks an id, a text or a list of numbers",
        ),
        ("torn.parquet", "PAR1 no", "is damaged or not a Parquet file"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(kdcore.DataError, match=message):
            read_vectors(tmp_path / name)


@pytest.mark.parametrize("key", ["id", "text", "vector"])
def test_records_that_repeat_a_key_that_is_read_are_refused(tmp_path: Path, key: str) -> None:
    first, second, third = (json.dumps(record) for record in RECORDS)
    path = tmp_path / "v.jsonl"
    repeated = f'{second[:-1]}, "{key}": {json.dumps(RECORDS[1][key])}}}'
    path.write_text("\n".join([first, repeated, third]), encoding="utf-8")
    with pytest.raises(kdcore.DataError, match=f"line 2 has the key `{key}` more than once"):
        read_vectors(path)
    harmless = f'{second[:-1]}, "note": 1, "note": {{"{key}": 1, "{key}": 2}}}}'
    path.write_text("\n".join([first, harmless, third]), encoding="utf-8")
    assert list(read_vectors(path).ids) == ["a", "b", "c"]


def test_columns_of_other_types_are_refused_and_lists_of_one_width_are_read(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    base: dict[str, Any] = {"id": "a", "text": "one", "vector": [1.0, 2.0]}
    for values, message in (
        ({"vector": ["a", "b"]}, "does not contain lists of numbers"),
        ({"vector": [[1.0], [2.0]]}, "does not contain lists of numbers"),
        ({"vector": 1.0}, "does not contain lists of numbers"),
        ({"text": 5}, "the column `text` does not contain texts"),
    ):
        with pytest.raises(kdcore.DataError, match=message):
            read_vectors(written(path, [{**base, **values}]))
    numbers = pyarrow.list_(pyarrow.float32(), 2)
    schema = pyarrow.schema([("id", pyarrow.string()), ("text", pyarrow.string()), ("vector", numbers)])
    parquet.write_table(pyarrow.Table.from_pylist([base], schema=schema), path)
    assert read_vectors(path).values.tolist() == [[1, 2]]
    for number, message in (("1" + "0" * 400, "not numbers"), ("1e300", "record 1 is not finite")):
        lines = tmp_path / "v.jsonl"
        lines.write_text(f'{{"id": 1, "text": "x", "vector": [{number}, 1]}}\n', encoding="utf-8")
        with pytest.raises(kdcore.DataError, match=message):
            read_vectors(lines)


class Texts(kdcore.Task):
    """Texts whose tokens do not matter."""

    masks_tokens = False

    def __init__(self, texts: dict[str, list[str]]) -> None:
        super().__init__(kdcore.ComponentConfig(), 0, Path())
        self._texts = texts

    @property
    def fingerprint(self) -> str:
        return "texts"

    def check(self, student: kdcore.Model, teacher: kdcore.Model | None) -> None: ...

    def save_tokenizer(self, folder: Path) -> None: ...

    def num_samples(self, split: str) -> int:
        return len(self._texts.get(split, ()))

    def texts(self, split: str, samples: np.ndarray) -> list[str]:
        return [self._texts[split][sample] for sample in samples]

    def batch(self, split: str, samples: np.ndarray, epochs: np.ndarray) -> kdcore.Batch:
        lengths = samples + 2
        real = np.arange(lengths.max()) < lengths[:, None]
        tokens, none = torch.ones(real.shape, dtype=torch.long), torch.zeros(0, dtype=torch.long)
        index = torch.from_numpy(np.flatnonzero(real))
        return kdcore.Batch(tokens, torch.from_numpy(real), lengths, index, none, none)


EMBEDDING = kdcore.Signals.head("embedding")


def test_a_loss_receives_the_vector_of_each_text(tmp_path: Path) -> None:
    path = written(tmp_path / "v.jsonl", RECORDS)
    teacher = VectorTeacher(VectorTeacher.Config(path=str(path)), "teacher", None)
    assert teacher.info.head("embedding").num_outputs == 2
    task = Texts({"train": ["two", "one", "one"], "held_out": ["two"]})
    teacher.check_task(task, {"train": EMBEDDING, "held_out": EMBEDDING | kdcore.Signals.hidden([0])})
    encoder = teacher.load_teacher(EMBEDDING)
    batch = task.draw("train", np.array([2, 0]), np.array([5, 6]))
    signals = encoder(batch, EMBEDDING)
    assert signals.outputs("embedding").tolist() == [[1, 2], [3, 4.5]]
    assert signals.tokens(0).tolist() == [[1, 2]] * 4 + [[3, 4.5]] * 2
    held_out = task.draw("held_out", np.array([0]), np.array([0]))
    assert encoder(held_out, EMBEDDING).outputs("embedding").tolist() == [[3, 4.5]]
    assert list(teacher.file_hashes()) == ["v.jsonl"]


def test_texts_without_vectors_and_other_signals_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.jsonl", RECORDS)
    teacher = VectorTeacher(VectorTeacher.Config(path=str(path)), "teacher", None)
    requests = {"train": EMBEDDING, "held_out": EMBEDDING}
    with pytest.raises(kdcore.DataError, match="no vector for 1 of 2 texts, such as 'changed'"):
        teacher.check_task(Texts({"train": ["one", "changed"]}), requests)
    with pytest.raises(kdcore.InputError, match="vectors have no hidden states"):
        teacher.check_task(Texts({"train": ["one"]}), {**requests, "train": kdcore.Signals.hidden([0])})
    task = Texts({"train": ["one"]})
    task.texts = lambda split, samples: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(kdcore.InputError, match="the task has no texts"):
        teacher.check_task(task, requests)
