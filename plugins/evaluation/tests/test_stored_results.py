"""Finished runs and results written by commit 755c853, read by the current commands (tests/golden/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kdcore.commands.main import main

GOLDEN = Path(__file__).parents[3] / "tests" / "golden" / "format-1"


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder `finished`, which is the working folder."""
    root = tmp_path / "format-1"
    for part in ("cache", "teacher", "finished"):
        shutil.copytree(GOLDEN / part, root / part)
    for path in root.rglob("*"):
        if path.suffix in (".yaml", ".json", ".jsonl", ".log"):
            path.write_text(path.read_text(encoding="utf-8").replace("@ROOT@", str(root)), encoding="utf-8")
    monkeypatch.setenv("KDCORE_CACHE", str(root / "cache"))
    monkeypatch.chdir(root / "finished")
    return root / "finished"


def table(text: str) -> dict[str, str]:
    """The rows of `kdcore summary`."""
    rows = [line.split("  ", 1) for line in text.splitlines()]
    return {name.strip(): value.strip() for name, value in rows}


def test_the_summary_of_a_classification_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "runs/classification"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["held-out classification"] == "1.1686 at the start, 0.4691 at the end (2.5 times lower)"
    assert rows["held-out accuracy"] == (
        "0.3529 at the start, 0.6471 at the end, 0.6471 at best; without the text: 0.6471"
    )
    assert rows["held-out f1"] == "0.5217 at the start, 0.0000 at the end, 0.0000 at best"
    assert rows["majority-class baseline"] == "0.6471 on 17 held-out texts"
    assert rows["parameters"] == "5,632"
    assert rows["student"].startswith("runs/classification/exports/best  (AutoModelForSequenceClassification")
    assert rows["predictions"] == "runs/classification/predictions"
    assert not any("tensorboard" in text for text in rows.values())


def test_the_summary_of_a_distillation_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "runs/distillation"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["held-out hidden_mse"] == "0.8451 at the start, 0.1552 at the end (5.4 times lower)"
    assert rows["held-out masked_lm"] == "3.3043 at the start, 3.0731 at the end (1.1 times lower)"
    assert rows["blocks"] == "teacher 4, student 2"
    assert rows["parameters"] == "teacher 10,080, student 5,632 (56%)"
    assert rows["embeddings"] == "mean cosine 0.956 to the teacher's"
    assert rows["similarities"] == "rank correlation 0.912, all pairs of 7 texts"
    assert rows["try next"].endswith("run.id=NEW losses.hidden_mse.layers=uniform")


def test_every_trial_of_an_evaluation_is_found_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = finished / "evaluations" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in results.glob("cells/*/result.json")}
    rows = (results / "results.jsonl").read_text(encoding="utf-8")
    assert len(before) == 14
    assert main(["evaluate", "runs/distillation", "--on", "suite.yaml", "--exports", "all"]) == 0
    assert "14 of 14 trials are already finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in results.glob("cells/*/result.json")} == before

    def measured(text: str) -> list[dict[str, object]]:
        return [
            {key: value for key, value in json.loads(line).items() if key != "suite_sha256"}
            for line in text.splitlines()
        ]

    assert measured((results / "results.jsonl").read_text(encoding="utf-8")) == measured(rows)


def test_a_finished_classifier_is_not_fine_tuned_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow import parquet

    suite = (finished / "suite.yaml").read_text(encoding="utf-8").partition("references")[0]
    (finished / "task.yaml").write_text(suite, encoding="utf-8")
    assert main(["evaluate", "runs/classification", "--on", "task.yaml", "--output", "again"]) == 0
    captured = capsys.readouterr()
    assert "runs/classification best: mood: trained on these texts, so its own predictions are scored" in captured.err
    assert "fine-tunings" not in captured.err
    rows = [json.loads(line) for line in (finished / "again" / "results.jsonl").read_text().splitlines()]
    found = {(row["split"], row["metric"]): row["value"] for row in rows if row["role"] == "student"}
    assert {row["kind"] for row in rows if row["role"] == "student"} == {"predictions"}
    for split in ("validation", "test"):
        table = parquet.read_table(
            finished / "runs" / "classification" / "predictions" / f"{split}.parquet"
        ).to_pydict()
        equal = [one == other for one, other in zip(table["label"], table["prediction"], strict=True)]
        assert found[split, "accuracy"] == pytest.approx(sum(equal) / len(equal))
    assert (finished / "runs" / "classification" / "exports" / "best" / "model.safetensors").is_file()


def test_stored_results_are_compared(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = finished / "page.html"
    assert main(["compare", "runs/distillation", "--format", "markdown", "--html", str(page)]) == 0
    header, _, student, teacher, random, _, *below = capsys.readouterr().out.strip().splitlines()
    assert below == [
        "† cosine to the teacher: by construction in favour of hidden_mse, trained on what it measures.",
        "† masked-LM loss: by construction in favour of masked_lm, trained on what it measures.",
    ]
    assert "mood f1" in header
    assert student.startswith("| hidden_mse + masked_lm |")
    assert "| 0.956 (1 seed) † |" in student
    assert "format-1/teacher" in teacher
    assert "random weights (bert, 2 blocks of 16)" in random
    assert "hidden_mse + masked_lm" in page.read_text(encoding="utf-8")


def test_a_stored_checkpoint_is_exported(finished: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    assert main(["export", "runs/classification", "exported"]) == 0
    load = AutoModelForSequenceClassification.from_pretrained
    ours, theirs = load(finished / "exported"), load(finished / "runs" / "classification" / "exports" / "final")
    assert ours.config.id2label == {0: "sad", 1: "glad"}
    for name, values in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], values), name


def test_stored_runs_are_listed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:5] for line in lines] == [
        ["classification", "finished", "12", "of", "12"],
        ["distillation", "finished", "12", "of", "12"],
    ]
