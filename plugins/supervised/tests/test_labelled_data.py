"""Labelled texts from every kind of file, and mistakes in files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from kdcore_supervised.data.labelled import LabelledData, LabelledTexts, overlap, read_labelled
from pyarrow import parquet
from pydantic import ValidationError

from kdcore import DataError

LABELS = ["neg", "pos"]


def write(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def read(report: Counter[str] | None = None, **keys: Any) -> dict[str, LabelledTexts]:
    keys = {"text": "text", "label": "label", "labels": LABELS} | keys
    keys = {key: value for key, value in keys.items() if value is not None}
    return {part.name: part for part in read_labelled(LabelledData(**keys), Counter() if report is None else report)}


def glue(folder: Path, task: str, report: Counter[str] | None = None) -> dict[str, LabelledTexts]:
    return read(report, glue={"folder": str(folder), "task": task}, text=None, label=None, labels=None)


ROWS = [("I like it", "pos"), ('say "no", twice', "neg"), ("ein Tab\tnicht", "neg"), ("two\nlines", "pos")]


def records(rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"text": text, "more": 1, "label": label} for text, label in rows]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "huggingface"])
def test_every_form_gives_the_same_texts(form: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {}
    if form == "csv":
        lines = [",".join(f'"{value}"' for value in (text.replace('"', '""'), 1, label)) for text, label in ROWS]
        keys["train"] = write(tmp_path, "train.csv", "\ufefftext,more,label\r\n" + "\r\n".join(lines))
    elif form == "jsonl":
        keys["train"] = write(tmp_path, "train.jsonl", "\n".join(json.dumps(row) for row in records(ROWS)))
    elif form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records(ROWS)), tmp_path / "train.parquet")
        keys["train"] = str(tmp_path / "train.parquet")
    else:
        import datasets

        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
        )
        rows = [{"text": text, "label": label} for text, label in ROWS]
        train = datasets.Dataset.from_list(rows, features=features)
        datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "saved")
        keys["huggingface"] = {"path": str(tmp_path / "saved"), "validation": None}
    part = read(**keys)["train"]
    assert part.texts == ([text for text, _ in ROWS],)
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 0, 1]
    assert part.ids == ["0", "1", "2", "3"]


def test_tsv_is_never_quoted_and_pairs_have_two_columns(tmp_path: Path) -> None:
    lines = ["premise\thypothesis\tlabel", '"open\tstill, open\tpos', "a\u2028b\x85c\td\tneg"]
    part = read(train=write(tmp_path, "x.tsv", "\n".join(lines) + "\n"), text=["premise", "hypothesis"])["train"]
    assert part.texts == (['"open', "a\nb\nc"], ["still, open", "d"])


def test_compressed_files_and_several_of_them(tmp_path: Path) -> None:
    import gzip

    write(tmp_path, "d/1.csv.gz", gzip.compress(b"text,label\none,pos\n"))
    write(tmp_path, "d/2.csv", "label,text\nneg,two\n")
    part = read(train=str(tmp_path / "d"))["train"]
    assert part.texts == (["one", "two"],)


def test_what_was_repaired_is_counted(tmp_path: Path) -> None:
    report: Counter[str] = Counter()
    path = write(tmp_path, "x.csv", b"text,label\ncaf\xe9 \xff,pos\n,neg\n")
    assert read(report, train=path)["train"].texts == (["caf\ufffd \ufffd", ""],)
    write(tmp_path, "x.jsonl", '{"text": "\\ud800", "label": "pos"}\n')
    assert read(report, train=str(tmp_path / "x.jsonl"))["train"].texts == (["\ufffd"],)
    assert report == {"broken UTF-8 replaced": 2, "empty texts": 1, "halves of surrogate pairs replaced": 1}


def test_labels_are_compared_as_they_are_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": 1}, {"text": "b", "label": 0.0}, {"text": "c", "label": True}]
    path = write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows)))
    part = read(train=path, labels=[0, 1, True])["train"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 2]
    numbers = read(train=write(tmp_path, "y.csv", "text,label\na,1\nb,-2.5\n"), labels=None, regression=True)["train"]
    assert numbers.labels is not None
    assert (numbers.labels.dtype, numbers.labels.tolist()) == (np.float32, [1.0, -2.5])


def test_a_split_is_by_the_text_alone(tmp_path: Path) -> None:
    texts = [f"text {number % 900}" for number in range(1000)]
    lines = "".join(f"{text},{LABELS[index % 2]}\n" for index, text in enumerate(texts))
    keys: dict[str, Any] = {"split": {"validation": 0.2, "test": 0.1}}
    parts = read(train=write(tmp_path, "x.csv", "text,label\n" + lines), **keys)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == pytest.approx([700, 200, 100], rel=0.25)
    assert sorted(int(one) for part in parts.values() for one in part.ids) == list(range(1000))
    assert not set(parts["train"].texts[0]) & set(parts["validation"].texts[0]), "equal texts stay together"
    turned = "".join(f"{text},pos\n" for text in reversed(texts))
    again = read(train=write(tmp_path, "y.csv", "text,label\n" + turned), **keys)
    assert {name: sorted(part.texts[0]) for name, part in again.items()} == {
        name: sorted(part.texts[0]) for name, part in parts.items()
    }


def test_texts_are_compared_after_cleaning(tmp_path: Path) -> None:
    clean = [f"caf\u00e9 number {number}" for number in range(100)]
    variants = [f"cafe\u0301\x07 number {number} " for number in range(100)]

    def parts(texts: list[str]) -> list[LabelledTexts]:
        lines = "".join(f"{text},{LABELS[index % 2]}\n" for index, text in enumerate(texts))
        path = write(tmp_path, "x.csv", "text,label\n" + lines)
        return list(read(train=path, split={"validation": 0.3}).values())

    found, expected = parts(clean + variants), parts(clean + clean)
    assert not set(found[0].texts[0]) & set(found[1].texts[0])
    assert [list(part.content()) for part in found] == [list(part.content()) for part in expected]
    keys: dict[str, Any] = {
        "train": write(tmp_path, "t.csv", "text,label\n" + "".join(f"{text},pos\n" for text in clean))
    }
    keys["validation"] = write(tmp_path, "v.csv", "text,label\n" + "".join(f"{text},pos\n" for text in variants))
    assert overlap(list(read(**keys).values()), "validation")[:2] == (100, clean[0])


def test_texts_of_which_cleaning_leaves_nothing_are_empty(tmp_path: Path) -> None:
    report: Counter[str] = Counter()
    part = read(report, train=write(tmp_path, "x.csv", "text,label\n\x07,pos\n \ufeff ,neg\na,neg\n"))["train"]
    assert part.texts == (["", "", "a"],)
    assert report["empty texts"] == 2


def test_a_test_split_may_lack_labels_and_a_column_names_records(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", "text,label,name\na,pos,x\n")
    for content in ("text,name\nb,y\n", "text,name,label\nb,y,-1\n"):
        parts = read(train=train, test=write(tmp_path, "test.csv", content), id="name")
        assert parts["test"].labels is None
        assert parts["test"].ids == ["y"]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "huggingface"])
def test_texts_can_have_lists_of_labels(form: str, tmp_path: Path) -> None:
    rows = [("a", ["pos"]), ("b", []), ("c", ["pos", "neg"])]
    keys: dict[str, Any] = {"multi_label": True}
    lists: list[dict[str, Any]] = [{"text": text, "label": labels} for text, labels in rows]
    if form == "jsonl":
        keys["train"] = write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, lists)))
    elif form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(lists), tmp_path / "x.parquet")
        keys["train"] = str(tmp_path / "x.parquet")
    else:
        import datasets

        label = datasets.List(datasets.ClassLabel(names=["pos", "neg"]))
        features = datasets.Features({"text": datasets.Value("string"), "label": label})
        train = datasets.Dataset.from_list(lists, features=features)
        datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "saved")
        keys["huggingface"] = {"path": str(tmp_path / "saved"), "validation": None}
    labels = read(**keys)["train"].labels
    assert labels is not None
    assert (labels.dtype, labels.tolist()) == (np.float32, [[0, 1], [0, 0], [1, 1]])


def test_mistakes_of_lists_of_labels(tmp_path: Path) -> None:
    report: Counter[str] = Counter()
    lines = ['{"text": "a", "label": ["pos", "pos"]}', '{"text": "b", "label": ["neg"]}']
    part = read(report, train=write(tmp_path, "x.jsonl", "\n".join(lines)), multi_label=True)["train"]
    assert part.labels is not None
    assert part.labels.tolist() == [[0, 1], [1, 0]]
    assert report == {"labels stated twice": 1}
    for line, words in (
        ('{"text": "c", "label": "pos"}', r"line 3 has no list of labels \(found 'pos'\)(?s:.)*use jsonl or parquet"),
        ('{"text": "c", "label": null}', r"line 3 has no list of labels \(found None\)"),
        ('{"text": "c", "label": ["pos", "odd"]}', r"task.data.labels(?s:.)*line 3 has the label 'odd'(?s:.)*neg, pos"),
    ):
        with pytest.raises(DataError, match=words):
            read(train=write(tmp_path, "y.jsonl", "\n".join([*lines, line])), multi_label=True)
    with pytest.raises(DataError, match=r"line 2 has no list of labels \(found 'pos'\)"):
        read(train=write(tmp_path, "z.csv", "text,label\na,pos\n"), multi_label=True)


@pytest.mark.parametrize("labels", [["0", "1"], [0, 1], [0.0, 1.0], ["0.0", "1.0"], ["false", "true"], [False, True]])
def test_labels_of_csv_and_parquet_have_the_same_classes(labels: list[Any], tmp_path: Path) -> None:
    texts = ["a", "b", "c"]
    boolean = str(labels[0]).lower() == "false"
    parquet.write_table(
        pyarrow.table({"text": texts, "label": [True, False, True] if boolean else [1.0, 0.0, 1.0]}),
        tmp_path / "x.parquet",
    )
    found = [read(train=str(tmp_path / "x.parquet"), labels=labels)["train"].labels]
    for one, zero in (
        [("true", "false"), ("True", "False"), ("TRUE", "FALSE")] if boolean else [("1", "0"), ("1.0", "0.0")]
    ):
        path = write(tmp_path, "x.csv", f"text,label\na,{one}\nb, {zero}\nc,{one} \n")
        found.append(read(train=path, labels=labels)["train"].labels)
    assert [one.tolist() for one in found if one is not None] == [[1, 0, 1]] * (4 if boolean else 3)


@pytest.mark.parametrize("configured", ["caf\u00e9", "cafe\u0301"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_composed_and_decomposed_labels_are_the_same_class(form: str, configured: str, tmp_path: Path) -> None:
    labels = ["caf\u00e9", "cafe\u0301", "bar"]
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    content = "\n".join(map(json.dumps, rows))
    if form == "csv":
        content = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
    part = read(train=write(tmp_path, f"x.{form}", content), labels=["bar", configured])["train"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 1, 0]
    with pytest.raises(ValidationError, match="names a class twice"):
        LabelledData(train="x", text="text", label="label", labels=labels[:2])


def test_scores_are_read_of_predictions_that_name_decomposed_classes() -> None:
    outputs = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    for multi_label in (False, True):
        data = LabelledData(
            train="x", text="text", label="label", labels=["bar", "cafe\u0301"], multi_label=multi_label
        )
        names = ["bar", "cafe\u0301", "caf\u00e9", "bar"]
        column = [[name] for name in names] if multi_label else names
        scores = data.stored_scores(pyarrow.table({"label": column, "outputs": outputs}))
        assert scores["f1_micro" if multi_label else "accuracy"] == pytest.approx(3 / 4)


def test_classes_that_differ_in_spelling_only_stay_apart(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "text,label\na,1\nb,1.0\nc,True\nd,true\n")
    part = read(train=path, labels=["1", "1.0", "True", "true"])["train"]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"line 2 is labelled '1\.5'(?s:.)*allowed: 1, 2"):
        read(train=write(tmp_path, "y.csv", "text,label\na,1.5\n"), labels=[1, 2])


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("text,label\na,pos\nb,bad\nc,\n", {}, r"2 records cannot be used: line 3 is labelled 'bad'; line 4 has no label"),
    ("text,label\na,pos\nb,worse\n", {}, r"allowed: neg, pos"),
    ("words,label\na,pos\n", {}, r"has no column `text`(?s:.)*allowed: words, label"),
    ("text,etikett\na,pos\n", {}, r"task.data.train: has no column `label`"),
    ("", {}, r"has no column `text`(?s:.)*the file has no columns"),
    ("text,label\na,pos\nb,pos,more\nc\n", {}, r"2 records(?s:.)*line 3 has 3 fields, the header 2; line 4 has 1"),
    ("text,label\n", {}, r"`train` contains no texts"),
    ("text,label\na,pos\n", {"split": {"validation": 0.01}}, r"`validation` contains no texts(?s:.)*increase the frac"),
    ("text,label\na,many\n", {"labels": None, "regression": True}, r"line 2 has a label .* number \(found 'many'\)"),
    ("text,label\na,nan\n", {"labels": None, "regression": True}, r"not a number(?s:.)*for classes list `labels`"),
]


@pytest.mark.parametrize(("content", "keys", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_a_file_is_told_with_its_line(
    content: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        read(train=write(tmp_path, "x.csv", content), **keys)


def test_validation_without_labels_says_that_there_is_no_score(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", "text,label\na,pos\n")
    with pytest.raises(DataError, match=r"task.data.validation: has no column `label`"):
        read(train=train, validation=write(tmp_path, "v.csv", "text\nb\n"))


def test_mistakes_of_json_lines_and_unknown_formats(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "pos"}', "{", "[1]", '{"text": "b"}']
    with pytest.raises(
        DataError, match=r"3 records(?s:.)*line 2 is not JSON(?s:.)*line 3(?s:.)*line 4 has no key `label`"
    ):
        read(train=write(tmp_path, "x.jsonl", "\n".join(lines)))
    with pytest.raises(DataError, match=r"the file name does not end with a known format(?s:.)*\.csv, \.tsv"):
        read(train=write(tmp_path, "x.xls", "a"))
    with pytest.raises(DataError, match="Parquet"):
        read(train=write(tmp_path, "x.parquet", "a"))
    with pytest.raises(DataError, match="no such file"):
        read(train=str(tmp_path / "nowhere.csv"))


def test_records_with_repeated_keys_are_refused_where_a_value_would_be_lost(tmp_path: Path) -> None:
    lines = ['{"x": 1, "x": 2, "text": "a", "label": "pos"}', '{"text": "b", "label": "pos", "label": "neg"}']
    part = read(train=write(tmp_path, "x.jsonl", lines[0]))["train"]
    assert part.texts == (["a"],)
    with pytest.raises(DataError, match=r"line 2 has the key `label` more than once(?s:.)*each of them once"):
        read(train=write(tmp_path, "y.jsonl", "\n".join(lines)))


def test_ids_are_kept_as_they_are_written(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    report: Counter[str] = Counter()
    train = write(tmp_path, "x.csv", f"text,label,name\na,pos,{composed}\nb,neg,{decomposed}\n")
    assert read(report, train=train, id="name")["train"].ids == [composed, decomposed]
    assert report == {}


KEYS: list[tuple[dict[str, Any], str]] = [
    ({}, "needs one of `train`"),
    ({"train": "x", "glue": {"folder": "g", "task": "rte"}}, "needs one of `train`"),
    ({"train": "x"}, "needs `text`"),
    ({"train": "x", "text": "t", "label": "l"}, "needs either `labels`"),
    ({"train": "x", "text": "t", "label": "l", "labels": ["a", "b"], "regression": True}, "needs either `labels`"),
    ({"train": "x", "text": "t", "label": "l", "labels": ["a", "a"]}, "names a class twice"),
    ({"train": "x", "text": "t", "label": "l", "regression": True, "multi_label": True}, "are mutually exclusive"),
    ({"glue": {"folder": "g", "task": "rte"}, "multi_label": True}, "`multi_label` is defined by GLUE's task"),
    ({"glue": {"folder": "g", "task": "rte"}, "labels": ["a", "b"]}, "`labels` is defined by GLUE's task"),
    ({"train": "x", "text": "t", "label": "l", "labels": ["a", "b"], "validation": "v", "split": {"validation": 0.1}},
     "remove it if other splits are given"),
    ({"train": "x", "text": "t", "label": "l", "labels": ["a", "b"], "split": {"validation": 0.6, "test": 0.4}},
     "leave nothing to train on"),
    ({"huggingface": {"path": "a", "dataset": "b"}, "text": "t", "label": "l", "labels": ["a", "b"]}, "either `path`"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "words"), KEYS, ids=range(len(KEYS)))
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LabelledData.model_validate(keys)


def tsv(*rows: list[str]) -> str:
    return "\n".join("\t".join(row) for row in rows) + "\n"


def test_cola_has_no_header_but_in_its_test_file(tmp_path: Path) -> None:
    write(tmp_path, "CoLA/train.tsv", tsv(["gj04", "1", "", 'He said "hi.'], ["gj04", "0", "*", "Him runs."]))
    write(tmp_path, "CoLA/dev.tsv", tsv(["gj04", "1", "", "Fine."]))
    write(tmp_path, "CoLA/test.tsv", tsv(["index", "sentence"], ["0", "Who?"], ["1", "sentence"]))
    for folder in (tmp_path, tmp_path / "CoLA"):
        parts = glue(folder, "cola")
        assert parts["train"].texts == (['He said "hi.', "Him runs."],)
        assert parts["train"].labels is not None
        assert parts["train"].labels.tolist() == [1, 0]
        assert (parts["test"].texts, parts["test"].ids, parts["test"].labels) == (
            (["Who?", "sentence"],),
            ["0", "1"],
            None,
        )


def test_qqps_broken_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    rows = [["7", "1", "2", "A?", 'B "?', "1"], ["8", "1", "2", "A?"], ["9", "3", "4", "C?", "D?", ""]]
    write(tmp_path, "QQP/train.tsv", tsv(header, *rows))
    write(tmp_path, "QQP/dev.tsv", tsv(header, ["1", "5", "6", "E?", "F?", "0"]))
    write(tmp_path, "QQP/test.tsv", tsv(["id", "question1", "question2"], ["0", "G?", "H?"], ["1", "I?"]))
    report: Counter[str] = Counter()
    parts = glue(tmp_path, "qqp", report)
    assert parts["train"].texts == (["A?"], ['B "?'])
    assert parts["test"].texts == (["G?", "I?"], ["H?", ""]), "each test line needs a prediction"
    assert report["lines without a text or a label left out"] == 2
    assert report["broken lines kept"] == 1


def test_mnli_has_two_validation_and_test_parts_and_a_diagnostic_one(tmp_path: Path) -> None:
    head = ["index", "promptID", "genre", "sentence1", "sentence2", "label1"]
    write(tmp_path, "MNLI/train.tsv", tsv([*head, "gold_label"], ["0", "1", "g", "P", "H", "x", "neutral"]))
    agreed = ["0", "1", "g", "P1", "H1", "neutral", "l2", "contradiction"]
    disputed = ["1", "1", "g", "P2", "H2", "neutral", "l2", "-"]
    for part in ("matched", "mismatched"):
        write(tmp_path, f"MNLI/dev_{part}.tsv", tsv([*head, "label2", "gold_label"], agreed, disputed))
        write(tmp_path, f"MNLI/test_{part}.tsv", tsv(head[:5], [f"{len(part)}", "1", "g", "P", "H"]))
    write(tmp_path, "AX/AX.tsv", tsv(["index", "sentence1", "sentence2"], ["0", "P", "H"]))
    parts = glue(tmp_path, "mnli")
    assert list(parts) == [
        "train",
        "validation",
        "validation_mismatched",
        "test",
        "test_mismatched",
        "test_diagnostic",
    ]
    assert parts["validation_mismatched"].texts == (["P1"], ["H1"])
    assert parts["validation"].labels is not None
    assert parts["validation"].labels.tolist() == [2]
    assert parts["test_mismatched"].ids == ["10"]


def test_sts_b_has_numbers_and_mrpc_a_byte_order_mark(tmp_path: Path) -> None:
    head = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
    row = ["0", "g", "f", "2012", "1", "s", "s", "A plane.", "A kite."]
    for part in ("train", "dev"):
        write(tmp_path, f"STS-B/{part}.tsv", tsv([*head, "score"], [*row, "3.250"]))
        write(tmp_path, f"MRPC/{part}.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA\tB\r\n")
    labels = glue(tmp_path, "stsb")["train"].labels
    assert labels is not None
    assert labels.tolist() == [3.25]
    assert glue(tmp_path, "mrpc")["train"].texts == (["A"], ["B"])


def test_mistakes_about_glues_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither train.tsv nor RTE/train.tsv"):
        glue(tmp_path, "rte")
    write(tmp_path, "RTE/train.tsv", "sentence1\tlabel\n")
    with pytest.raises(DataError, match=r"has no column `sentence2`"):
        glue(tmp_path, "rte")
    write(tmp_path, "SST-2/train.tsv", "sentence\tlabel\nfine\t2\n")
    with pytest.raises(DataError, match=r"line 2 is labelled '2'(?s:.)*allowed: 0, 1"):
        glue(tmp_path, "sst2")


def test_huggingface_splits_and_numbers_of_classes(tmp_path: Path) -> None:
    import datasets

    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = {"train": [0, 1], "dev": [1], "test": [-1, -1]}
    saved = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"text": ["t"] * len(labels), "label": labels}, features=features)
            for name, labels in rows.items()
        }
    )
    saved.save_to_disk(tmp_path / "saved")
    source = {"path": str(tmp_path / "saved"), "validation": "dev"}
    for labels in (LABELS, [0, 1]):
        parts = read(huggingface=source, labels=labels)
        assert parts["validation"].labels is not None
        assert parts["validation"].labels.tolist() == [1]
        assert parts["test"].labels is None
    with pytest.raises(DataError, match=r"has no split `validation`(?s:.)*train, dev, test"):
        read(huggingface={"path": str(tmp_path / "saved")})
    with pytest.raises(DataError, match="has no column `words`"):
        read(huggingface=source, text="words")
    with pytest.raises(DataError, match="no such folder"):
        read(huggingface={"path": str(tmp_path / "nowhere")})


def test_a_dataset_that_cannot_be_read_is_told_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path, "files/train.jsonl", '{"text": "no end\n')
    with pytest.raises(DataError, match=r"task\.data\.huggingface: the dataset cannot be read \((?s:.)*save_to_disk"):
        read(huggingface={"path": str(tmp_path / "files")})
