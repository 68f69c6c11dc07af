"""The source's example command, scaled down, becomes a recipe that trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcore.commands.main import main

COMMAND = (Path(__file__).parents[1] / "source-command.sh").read_text(encoding="utf-8")
SMALLER = {
    "--hidden_size 768": "--hidden_size 32",
    "--num_hidden_layers 6": "--num_hidden_layers 2",
    "--num_attention_heads 12": "--num_attention_heads 4",
    "--intermediate_size 3072": "--intermediate_size 64",
    "--layer_selection 11": "--layer_selection 3",
    "--max_steps 100000": "--max_steps 40",
    "--train_batch_size 1024": "--train_batch_size 8",
    "--train_micro_batch_size_per_gpu 256": "--train_micro_batch_size_per_gpu 4",
    "--print_steps 100": "--print_steps 1",
    "--validation_micro_batch 64": "--validation_micro_batch 8",
    "--validation_begin_proportion 0.01": "--validation_begin_proportion 0.25",
    "--validation_epochs_begin 5": "--validation_epochs_begin 1",
    "    --fp16 \n": "",
}
"""What a machine without a GPU, and a teacher of four blocks, need otherwise; all else stays as it is printed."""


@pytest.fixture
def small_command(teacher_folder: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example for the small teacher, its run folder below the working folder."""
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    command = COMMAND
    paths = {
        "models/teachers/bert-base-uncased": str(teacher_folder),
        "~/code/academic-budget-bert/training-out": str(tmp_path / "training-out"),
        "bert-base-uncased": str(teacher_folder),
    }
    for printed, smaller in {**SMALLER, **paths}.items():
        assert printed in command
        command = command.replace(printed, smaller)
    return command


@pytest.fixture
def small_data(teacher_folder: Path, corpus_file: Path) -> str:
    """The override that puts prepared text in the place of the source's shards."""
    corpora = f"[{{name: text, path: {corpus_file}, documents: lines}}]"
    return f"task.data={{tokenizer: {teacher_folder}, sequence_length: 48, held_out: 0.1, corpora: {corpora}}}"


def test_the_example_trains_validates_and_exports_as_it_says(small_command: str, small_data: str) -> None:
    assert main(["recipe", "import", "--command", small_command, "--shards", "10", "--output", "recipe.yaml"]) == 0
    assert main(["train", "recipe.yaml", small_data]) == 0
    folder = Path("training-out/hidden_mse_init/1")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 41))
    marks = [f"budget-{number / 20:g}" for number in range(1, 20)]
    assert sorted(path.name for path in (folder / "exports").iterdir()) == sorted([*marks, "final"])
    losses = {row["step"]: row["held_out/loss"] for row in rows if "held_out/loss" in row}
    validated = list(losses)
    begin, rest = [step for step in validated if step <= 10], [step for step in validated if step > 10]
    assert validated[0] == 0
    assert validated[-1] == 40
    assert len(begin) / 10 > 3 * len(rest) / 30, "five times as often in the first quarter"
    assert losses[40] < losses[0]
