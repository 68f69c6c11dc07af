"""The source's example command, scaled down, becomes a recipe that trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcore.commands.main import main

COMMAND = (Path(__file__).parents[3] / "tests" / "source-command.sh").read_text(encoding="utf-8")
SMALLER = {
    "--hidden_size 768": "--hidden_size 32",
    "--num_hidden_layers 6": "--num_hidden_layers 2",
    "--num_attention_heads 12": "--num_attention_heads 4",
    "--intermediate_size 3072": "--intermediate_size 48",
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
"""Changes for a machine without a GPU and for a small teacher; everything else is as it is printed."""


SHARDS = 10


def write_shard(path: Path, tokenizer: Any, sequences: int, random: np.random.Generator) -> None:
    """Write a shard like those of academic-budget-bert: ordered random letters, every seventh to be predicted."""
    import h5py

    width, predictions = 40, 20
    letters = tokenizer.convert_tokens_to_ids(list("abcdefgh"))
    columns = {name: np.zeros((sequences, width), np.int32) for name in ("input_ids", "input_mask", "segment_ids")}
    columns |= {name: np.zeros((sequences, predictions), np.int32) for name in ("masked_lm_positions", "masked_lm_ids")}
    for row in range(sequences):
        length = int(random.integers(10, width + 1))
        starts = int(random.integers(0, 8)) + np.arange(length - 2)
        tokens = [tokenizer.cls_token_id, *(letters[start % 8] for start in starts), tokenizer.sep_token_id]
        for number, place in enumerate(range(1 + row % 7, length - 1, 7)):
            columns["masked_lm_positions"][row, number] = place
            columns["masked_lm_ids"][row, number] = tokens[place]
            tokens[place] = tokenizer.mask_token_id
        columns["input_ids"][row, :length] = tokens
        columns["input_mask"][row, :length] = 1
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)


@pytest.fixture(scope="module")
def shards(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the source, for the small teacher's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    folder = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(3)
    for number in range(SHARDS):
        write_shard(folder / f"train_shard_{number}.hdf5", tokenizer, 11, random)
    write_shard(folder / "test_shard_0.hdf5", tokenizer, 16, random)
    return folder


@pytest.fixture
def small_command(bert_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example for the small teacher and data, with its run folder below the working folder."""
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    command = COMMAND
    paths = {
        "models/teachers/bert-base-uncased": str(bert_folder),
        "bert-base-uncased": str(bert_folder),
        "~/data/budget/masked": str(shards),
        "~/code/academic-budget-bert/training-out": str(tmp_path / "training-out"),
    }
    for printed, smaller in {**SMALLER, **paths}.items():
        assert printed in command
        command = command.replace(printed, smaller)
    return command


def test_the_example_trains_validates_and_exports_as_its_flags_state(small_command: str) -> None:
    assert main(["recipe", "import", "--command", small_command, "--output", "recipe.yaml"]) == 0
    assert main(["train", "recipe.yaml", "task.data.sequence_length=40"]) == 0
    folder = Path("training-out/hidden_mse_init/1")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 41))
    marks = [f"budget-{number / 20:g}" for number in range(1, 20)]
    assert sorted(path.name for path in (folder / "exports").iterdir()) == sorted([*marks, "initial", "final"])
    losses = {row["step"]: row["held_out/loss"] for row in rows if "held_out/loss" in row}
    steps_in_a_shard = 11 / 8
    due = {math.ceil(number * steps_in_a_shard - 1e-9) for number in range(1, 41)}
    begin = {step for step in due if step <= 10}
    rest = {math.ceil(number * 5 * steps_in_a_shard - 1e-9) for number in range(1, 8)}
    assert set(losses) == {0, 40} | begin | {step for step in rest if 10 < step <= 40}
    assert losses[40] < losses[0]
