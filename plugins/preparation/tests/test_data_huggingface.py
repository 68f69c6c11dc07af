from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from kdcore_preparation.readers import huggingface
from kdcore_preparation.readers.huggingface import HuggingFaceCorpus

from kdcore.errors import DataError
from kdcore.recipe.checking import check
from kdcore.recipe.yaml import Origin


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def corpus_of(**settings: Any) -> HuggingFaceCorpus:
    return HuggingFaceCorpus(HuggingFaceCorpus.Config(**settings))


def read(**settings: Any) -> tuple[dict[str, str], dict[str, int]]:
    corpus = corpus_of(**settings)
    return {document.id: document.text for document in corpus.documents()}, dict(corpus.report)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rows = datasets.Dataset.from_dict(
        {"id": [*range(50)], "text": [f"text {number}" for number in range(48)] + ["", None]}
    )
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_dataset_is_read_split_by_split_and_in_parts(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, report = read(path=str(saved))
    assert documents == {str(row): f"text {row}" for row in range(48)}
    assert report == {"empty documents skipped": 2}
    assert read(path=str(saved), split="test")[0] == {str(row): f"text {row}" for row in range(3)}
    monkeypatch.setattr(huggingface, "PART_BYTES", 200)
    corpus = corpus_of(path=str(saved))
    parts = corpus.parts()
    assert len(parts) > 3
    assert {document.id: document.text for part in parts for document in corpus.read(part)} == documents
    assert corpus.files()


@pytest.fixture
def data_files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps({"body": f"file {number} row {row}"}) for row in range(4)]
        (folder / f"train-{number}.jsonl").write_text("\n".join(lines))
    return folder


def test_a_streamed_dataset_is_read_file_by_file(data_files: Path) -> None:
    # The library handles a folder of data files like a name on the hub.
    for settings in ({"path": str(data_files)}, {"dataset": str(data_files)}):
        corpus = corpus_of(column="body", **settings)
        assert len(corpus.parts()) == 3
        documents = {document.id: document.text for document in corpus.documents()}
        assert documents == {f"{file}:{row}": f"file {file} row {row}" for file in range(3) for row in range(4)}
    assert corpus.files() == {}


def test_a_missing_column_or_split_is_refused_with_those_there_are(saved: Path, data_files: Path) -> None:
    with pytest.raises(DataError, match=r"no column `body`\n.*allowed: id, text\n.*set `column`"):
        read(path=str(saved), column="body")
    with pytest.raises(DataError, match=r"the dataset has no column `text`\n.*allowed: body"):
        read(path=str(data_files))
    with pytest.raises(DataError, match=r"column `id` holds a int, not text"):
        read(path=str(saved), column="id")
    with pytest.raises(DataError, match=r"no split `dev`\n.*allowed: train, test"):
        read(path=str(saved), split="dev")
    with pytest.raises(DataError, match=r"cannot be read \((.|\n)*dev"):
        read(path=str(data_files), split="dev")


def test_a_dataset_that_is_not_there_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        corpus_of(path=str(tmp_path / "nowhere")).files()
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read(path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"dataset no/such: the dataset cannot be read(.|\n)*save_to_disk"):
        read(dataset="no/such")


@pytest.mark.parametrize("settings", [{}, {"path": "a", "dataset": "b"}])
def test_exactly_one_place_must_be_given(settings: dict[str, str]) -> None:
    problems = check(HuggingFaceCorpus.Config, settings, ("corpora", 0), lambda _: Origin(Path("d.yaml")))
    assert isinstance(problems, list)
    assert "either `path` (a folder) or `dataset`" in str(problems[0])


def test_without_the_package_the_error_says_how_to_get_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"needs the package `datasets`\n.*pip install 'kdcore-preparation\[datasets\]'"
    ):
        read(path=str(saved))
