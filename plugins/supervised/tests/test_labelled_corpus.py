"""The training texts of labelled data as raw text."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation import DataRecipe, prepare
from kdcore_supervised import LabelledData, read_labelled
from kdcore_supervised.labelled_corpus import LabelledCorpus

from kdcore import DataError, PreparedData

COLUMNS = {"text": "text", "label": "label", "labels": ["no", "yes"]}


def csv(folder: Path, name: str, texts: list[str], label: str = "yes") -> str:
    (folder / name).write_text("".join(f"{line}\n" for line in ["text,label", *(f"{one},{label}" for one in texts)]))
    return str(folder / name)


def read(**settings: Any) -> tuple[dict[str, str], dict[str, int]]:
    corpus = LabelledCorpus(LabelledCorpus.Config(**settings))
    return {document.id: document.text for document in corpus.documents()}, dict(corpus.report)


def test_texts_of_other_parts_are_left_out_in_any_spelling(tmp_path: Path) -> None:
    data = {
        **COLUMNS,
        "train": csv(tmp_path, "train.csv", ["Good day", "so so", "", "BAD day!"]),
        "validation": csv(tmp_path, "validation.csv", ["good  day."]),
        "test": csv(tmp_path, "test.csv", ["bad day", "other"]),
    }
    documents, report = read(data=data)
    assert documents == {"1": "so so"}
    assert report["texts of other parts left out"] == 2
    assert report["empty documents skipped"] == 1


def test_the_part_is_that_of_the_split_and_texts_are_spread_over_it(tmp_path: Path) -> None:
    texts = [f"text number {number}" for number in range(400)]
    data = {**COLUMNS, "train": csv(tmp_path, "all.csv", texts), "split": {"validation": 0.1, "test": 0.3}}
    parts = {part.name: part.texts[0] for part in read_labelled(LabelledData(**data), Counter())}
    assert list(read(data=data)[0].values()) == parts["train"]
    some = list(read(data=data, texts=10)[0].values())
    places = [parts["train"].index(text) for text in some]
    assert len(places) == 10
    assert places[0] == 0
    gaps = {later - earlier for earlier, later in itertools.pairwise(places)}
    assert gaps <= {len(parts["train"]) // 10, len(parts["train"]) // 10 + 1}


def test_texts_of_a_pair_are_two_documents_of_one_record(tmp_path: Path) -> None:
    rows = [{"a": f"left {number}", "b": f"right {number}", "label": "no"} for number in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {**COLUMNS, "train": str(tmp_path / "pairs.jsonl"), "text": ["a", "b"]}
    documents, _ = read(data=data, texts=1)
    assert documents == {"0": "left 0", "0:1": "right 0"}


def test_glue_and_datasets_name_the_files_of_their_training_part(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "SST-2" / f"{name}.tsv").write_text(f"sentence\tlabel\n{name} of it\t1\n")
    (tmp_path / "SST-2" / "test.tsv").write_text("index\tsentence\n0\ttest of it\n")
    data = {"glue": {"folder": str(tmp_path), "task": "sst2"}}
    corpus = LabelledCorpus(LabelledCorpus.Config(data=data))
    assert dict(corpus.files()) == {"train.tsv": tmp_path / "SST-2" / "train.tsv"}
    assert [document.text for document in corpus.documents()] == ["train of it"]
    hub = LabelledCorpus(LabelledCorpus.Config(data={**COLUMNS, "huggingface": {"dataset": "a/b"}}))
    assert dict(hub.files()) == {}


def test_prepared_data_is_found_again_wherever_the_file_is(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = [f"good of {number}" for number in range(30)]
    fingerprints = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        data = {**COLUMNS, "train": csv(tmp_path / name, "all.csv", texts), "split": {"validation": 0.1, "test": 0.2}}
        recipe = DataRecipe(
            corpora=[{"name": "labelled", "data": data}],
            tokenizer=str(tokenizer_folder),
            sequence_length=16,
            held_out=0.2,
        )
        prepare(recipe, tmp_path / f"prepared-{name}")
        fingerprints.append(PreparedData.open(tmp_path / f"prepared-{name}").fingerprint)
    assert fingerprints[0] == fingerprints[1]


def test_errors_name_the_file_and_no_key_of_another_section(tmp_path: Path) -> None:
    data = {**COLUMNS, "train": csv(tmp_path, "train.csv", ["one"], label="maybe")}
    with pytest.raises(DataError, match="line 2 is labelled 'maybe'") as caught:
        read(data=data)
    assert str(tmp_path / "train.csv") in str(caught.value)
    assert "task.data" not in str(caught.value).partition("Hint")[0]
