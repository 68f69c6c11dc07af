"""`kdcore debug batch`: the sample that ruins a run is found among those of its step."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import kdcore
from kdcore.commands.main import main
from kdcore.training.loop.sampling import SampleOrder
from kdcore.training.run.build import make_plan

RUN = Path("runs", "small", "1")
BREAKING = """
import os

from kdcore import Loss, LossConfig, Requests, Signals, register_loss


@register_loss("breaking")
class Breaking(Loss):
    class Config(LossConfig):
        pass

    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(student=Signals.hidden([1]), columns=frozenset({"sample_ids"}))

    def counts(self, batch):
        return {"breaking": batch.num_tokens}

    def forward(self, student, teacher, batch):
        broken = (batch.columns["sample_ids"] == int(os.environ["BROKEN_SAMPLE"])).any()
        return {"breaking": student.tokens(1).square().sum() / (1 - broken.float())}
"""


@pytest.fixture
def broken(small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A sample of step 4 for which a loss divides by zero; the run has failed there."""
    task = make_plan(kdcore.load_recipe(small_recipe)).task
    sample = int(SampleOrder(task.num_samples("train"), 3).take(8 * 3, 8)[0][5])
    monkeypatch.setenv("BROKEN_SAMPLE", str(sample))
    (tmp_path / "breaking.py").write_text(BREAKING, encoding="utf-8")
    overrides = ["imports=[breaking.py]", "losses={breaking: {weight: 0.01}}", "training.micro_batch_size=4"]
    with pytest.raises(kdcore.TrainingError) as caught:
        kdcore.train(small_recipe, [*overrides, "checkpoints.every=2"])
    assert f"`kdcore debug batch {RUN} 4`" in str(caught.value)
    return sample


def test_the_sample_that_breaks_a_loss_is_found(broken, small_recipe, capsys):
    assert main(["debug", "batch", str(RUN), "4"]) == 0
    out = capsys.readouterr().out
    assert "losses with step-0000002 in float32" in out
    assert out.splitlines()[-1] == f"samples with non-finite losses: {broken}"
    block = out[out.index(f"sample {broken}, epoch 0: ") :]
    assert re.search(r"^    breaking inf over \d+  <-- not finite$", block, re.MULTILINE)
    # Text, lengths and counts are those of the very batch that the step was trained with.
    task = make_plan(kdcore.load_recipe(small_recipe)).task
    batch = task.batch("train", np.array([broken]), np.array([0]))
    assert block.startswith(
        f"sample {broken}, epoch 0: {batch.num_tokens} tokens, {batch.num_masked} to predict\n    hidden_mse "
    )
    assert f" over {batch.num_tokens * 32}\n" in block
    text = block.splitlines()[3]
    assert text.count(" as ") == batch.num_masked
    assert text.strip().startswith("[CLS]")
    # The fifth to eighth sample are those of the second micro-batch.
    assert out.index("process 0, micro-batch 2") < out.index(f"sample {broken},")


def test_a_step_before_the_first_checkpoint_is_looked_at_with_the_first_weights(broken, capsys):
    assert main(["debug", "batch", str(RUN), "1"]) == 0
    out = capsys.readouterr().out
    assert "losses with its initial weights" in out
    assert out.splitlines()[-1] == "the losses of all samples are finite"
    hidden_mse = [float(value) for value in re.findall(r"^  hidden_mse (\S+) over", out, re.MULTILINE)]
    counts = [int(value) for value in re.findall(r"^  hidden_mse \S+ over (\d+)", out, re.MULTILINE)]
    logged = (RUN / "metrics.jsonl").read_text(encoding="utf-8")
    in_training = float(re.findall(r'"train/hidden_mse": ([^,}]+)', logged)[0])
    assert np.average(hidden_mse, weights=counts) == pytest.approx(in_training, rel=1e-4)


def test_what_is_not_there_is_said(broken, capsys):
    for arguments, words in (
        (["nowhere", "1"], "the folder contains no run"),
        ([str(RUN), "0"], "STEP: must be at least 1 (found 0)"),
    ):
        assert main(["debug", "batch", *arguments]) == 2
        assert words in capsys.readouterr().err
