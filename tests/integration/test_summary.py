"""`kdcore summary`: the table at the end of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kdcore
from kdcore.commands.main import main


def test_it_tells_what_the_run_measured_and_what_the_models_are(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModel

    result = kdcore.train(small_recipe)
    assert main(["summary", str(result.folder)]) == 0
    rows = {line[:17].strip(): line for line in capsys.readouterr().out.splitlines() if line}
    metrics = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row["held_out/hidden_mse"] for row in metrics if "held_out/hidden_mse" in row]
    (loss,) = [line for line in rows.values() if line.startswith("held-out hidden_mse")]
    assert f"{held_out[0]:.4f} before, {held_out[-1]:.4f} after" in loss
    assert result.export is not None
    parameters = sum(parameter.numel() for parameter in AutoModel.from_pretrained(result.export).parameters())
    text = "\n".join(rows.values())
    assert f"student {parameters:,}" in text
    assert "teacher 4, student 2" in text
    assert str(result.export) in text
    assert "losses.hidden_mse.layers=uniform" in text
    with (result.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "held_out/hid')  # as a process that is killed leaves it
    assert main(["summary", str(result.folder)]) == 0
    assert f"{held_out[0]:.4f} before, {held_out[-1]:.4f} after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.data.held_out=0", "validation.every=never"], "needs held-out text"),
        (
            ["losses.hidden_mse=null", "losses.masked_lm={}", "teacher=null", "student.initialize=null"],
            "needs a teacher",
        ),
    ],
)
def test_runs_that_it_cannot_compare_are_told(
    small_recipe: Path, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "student.config={model_type: bert, vocab_size: 146, hidden_size: 16, num_hidden_layers: 1, "
    config += "num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 64}"
    folder = kdcore.train(small_recipe, [*overrides, *([config] if "teacher=null" in overrides else [])]).folder
    assert main(["summary", str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_without_metrics_and_with_a_loss_that_has_no_layers_the_table_is_shorter(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["tracking=[]", "losses.hidden_mse=null", "losses.soft_targets={}"]
    folder = kdcore.train(small_recipe, overrides).folder
    assert main(["summary", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "held-out" not in table
    assert "try next" not in table
