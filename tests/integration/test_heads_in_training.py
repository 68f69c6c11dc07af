"""Heads, columns and their refusals in whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kdcore
from kdcore.commands.main import main
from kdcore.training.checkpoint.format import latest_checkpoint

FILE = '''
from dataclasses import dataclass, replace

import torch
from torch import nn

from kdcore import Head, Loss, LossConfig, MaskedLM, Requests, Signals, at_least_float32, register_loss, register_task


@dataclass(frozen=True)
class Parity(Head):
    def module(self, info):
        return nn.Linear(info.hidden_size, self.num_outputs)


@register_task("parity")
class ParityTask(MaskedLM):
    """Whether the number of a token is even, in a column of the batch's length."""

    columns = {**MaskedLM.columns, "even": "token"}

    class Config(MaskedLM.Config):
        """No more keys."""

    @classmethod
    def heads(cls, config):
        return (Parity("parity", "token", 1),)

    def batch(self, split, samples, epochs):
        batch = super().batch(split, samples, epochs)
        return replace(batch, columns={**batch.columns, "even": (batch.input_ids % 2 == 0).float()})


class Reading(Loss):
    zero_when_equal = False
    column = "even"

    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(student=Signals.head("parity"), columns=frozenset({self.column}))

    def counts(self, batch):
        return {"parity": batch.num_tokens}

    def forward(self, student, teacher, batch):
        found = at_least_float32(student.outputs("parity"))[:, 0]
        return {"parity": (found - batch.token_column(self.column)).square().sum()}


@register_loss("parity")
class ParityLoss(Reading):
    """Squared error of the head."""


@register_loss("odd")
class OddLoss(Reading):
    """Reads a column that no task has."""

    column = "evens"


class Undeclared(ParityTask):
    columns = None


@register_task("undeclared")
class UndeclaredTask(Undeclared):
    """Does not state its columns."""
'''


@pytest.fixture
def recipe(small_recipe: Path) -> Path:
    (small_recipe.parent / "parity.py").write_text(FILE, encoding="utf-8")
    with small_recipe.open("a", encoding="utf-8") as file:
        file.write("imports: [parity.py]\n")
    return small_recipe


def with_task(recipe: Path, name: str) -> Path:
    text = recipe.read_text(encoding="utf-8").replace("  name: masked_lm", f"  name: {name}")
    recipe.write_text(text, encoding="utf-8")
    return recipe


LOSSES = "losses={hidden_mse: {layers: last}, parity: {}}"


def test_a_head_of_its_own_module_is_trained_checkpointed_resumed_and_exported(recipe: Path) -> None:
    with_task(recipe, "parity")
    whole = kdcore.train(recipe, [LOSSES, "run.id=whole", "checkpoints.every=3"])
    with pytest.raises(KeyboardInterrupt):
        interrupted(recipe)
    again = kdcore.train(recipe, [LOSSES, "run.id=again", "checkpoints.every=3"])
    rows = [
        [
            (row["step"], row["train/parity"])
            for row in map(json.loads, (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            if "train/parity" in row
        ]
        for run in (whole, again)
    ]
    assert rows[0] == rows[1]
    assert rows[0][-1][1] < rows[0][0][1], "it learns"
    assert whole.export is not None
    assert again.export is not None
    weights = [load_file(run.export / "head_parity.safetensors") for run in (whole, again)]
    assert set(weights[0]) == {"weight", "bias"}
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
    assert latest_checkpoint(whole.folder) is not None


def interrupted(recipe: Path) -> None:
    for event in kdcore_events(recipe):
        if event.progress.step == 4:
            raise KeyboardInterrupt


def kdcore_events(recipe: Path):  # type: ignore[no-untyped-def]
    from contextlib import closing

    from kdcore.recipe.loading import load_recipe
    from kdcore.training.run.run import run_events

    with closing(run_events(load_recipe(recipe, [LOSSES, "run.id=again", "checkpoints.every=3"]))) as events:
        yield from events


def test_one_process_and_two_micro_batches_give_the_same_head(recipe: Path) -> None:
    with_task(recipe, "parity")
    one = kdcore.train(recipe, [LOSSES, "run.id=one"])
    two = kdcore.train(recipe, [LOSSES, "run.id=two", "training.micro_batch_size=4"])
    assert one.export is not None
    assert two.export is not None
    weights = [load_file(run.export / "head_parity.safetensors")["weight"].numpy() for run in (one, two)]
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("task", ["parity", "undeclared"])
def test_a_column_that_no_batch_has_is_refused_with_the_line(
    recipe: Path, task: str, capfd: pytest.CaptureFixture[str]
) -> None:
    losses = "losses={hidden_mse: {layers: last}, odd: {}}"
    assert main(["train", str(with_task(recipe, task)), losses]) == 2
    error = capfd.readouterr().err
    assert f"losses.odd: `odd` reads the column `evens`, which batches of the task `{task}` do not have" in error
    assert "even, sample_ids" in error
    assert "Did you mean `even`?" in error
    assert not (recipe.parent / "runs").exists()


def test_a_head_that_no_task_trains_is_refused_with_the_line(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = recipe.read_text(encoding="utf-8").replace("  hidden_mse: {layers: last}", "  parity: {}")
    recipe.write_text(text, encoding="utf-8")
    line = 1 + text.splitlines().index("  parity: {}")
    assert main(["train", str(recipe)]) == 2
    error = capfd.readouterr().err
    assert f"{recipe.name}:{line}" in error
    assert "the loss reads the head `parity`, which the student does not have" in error
    assert "masked_lm" in error


def test_a_student_with_two_heads_trains_both_and_exports_the_tasks_one(
    recipe: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Classes beside the teacher's predictions over the vocabulary."""
    from transformers import AutoModelForSequenceClassification

    lines = [f"{'abc' if number % 2 else 'xyz'} {number},{'glad' if number % 2 else 'sad'}" for number in range(40)]
    (tmp_path / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    data = "{train: mood.csv, split: {validation: 0.2}, text: text, label: mood, labels: [sad, glad], max_length: 32}"
    result = kdcore.train(
        recipe,
        [
            f"task={{name: sequence_classification, data: {data}}}",
            "losses={classification: {}, soft_targets: {positions: all}}",
            "optimizer.lr=5e-3",
            "training.budget.steps=12",
            "validation.every=3",
        ],
    )
    log = (result.folder / "train.log").read_text(encoding="utf-8")
    assert "exports leave out the head `masked_lm`" in log
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("held_out/classification", "held_out/soft_targets"):
        values = [row[name] for row in rows if name in row]
        assert values[-1] < values[0], name
    assert result.export is not None
    network, report = AutoModelForSequenceClassification.from_pretrained(result.export, output_loading_info=True)
    assert not report["missing_keys"]
    assert network.config.id2label == {0: "sad", 1: "glad"}
    card = (result.export / "README.md").read_text(encoding="utf-8")
    assert "| predicts (`sequence_classes`) | sad, glad |" in card
    assert "| heads left out | masked_lm |" in card
