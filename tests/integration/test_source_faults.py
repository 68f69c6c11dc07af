"""Faults of the source that concern training and models; those of single objectives are tested beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcore
from kdcore.models.base import Encoder
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import RunResult


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, list(overrides))

    return run


def test_fault_8_the_teacher_has_no_dropout_whatever_validation_did(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source keeps its dropout on, and puts it back to train mode after each validation."""
    modes: list[bool] = []
    original = FrozenTeachers.__call__

    def recorded(self: FrozenTeachers, batch: kdcore.Batch, requests: dict[str, kdcore.SignalRequest]) -> Any:
        (encoder,) = self._encoders.values()
        assert isinstance(encoder, Encoder)
        modes.extend(module.training for module in encoder.modules())
        first, second = (original(self, batch, requests) for _ in range(2))
        assert torch.equal(first["teacher"].tokens(3), second["teacher"].tokens(3))
        return first

    monkeypatch.setattr(FrozenTeachers, "__call__", recorded)
    train("validation.every=2", "student.config.hidden_dropout_prob=0.1")
    assert len(modes) > 9
    assert not any(modes)


def test_fault_9_the_second_of_two_stages_runs(train: Callable[..., RunResult]) -> None:
    two = ["losses.masked_lm={active: [0.0, 0.5]}", "losses.hidden_mse.active=[0.5, 1.0]"]
    lines = (train(*two).folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    assert ["train/hidden_mse" in row for row in rows] == [False] * 3 + [True] * 3


def test_fault_9_runs_without_teacher_and_without_validation_end_well(train: Callable[..., RunResult]) -> None:
    alone = ["teacher=null", "losses.hidden_mse=null", "losses.masked_lm={}", "student.initialize=null"]
    config = "student.config={model_type: bert, vocab_size: 146, hidden_size: 16, num_hidden_layers: 1, "
    config += "num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 64}"
    assert train(*alone, config, "run.id=no-teacher").exit_code == 0
    assert train("task.data.held_out=0", "validation.every=never", "run.id=no-validation").exit_code == 0


def test_fault_12_predictions_have_the_decoders_bias(small_recipe: Path) -> None:
    plan = make_plan(kdcore.load_recipe(small_recipe, ["losses.masked_lm={}"]))
    student = plan.build_student().eval()
    bias = dict(student.named_parameters())["network.cls.predictions.bias"]
    batch = plan.task.batch("train", *[torch.arange(3).numpy()] * 2)
    request = kdcore.Signals.predictions("all")
    with torch.no_grad():
        before = student(batch, request).logits("all")
        bias += torch.arange(float(len(bias)))
        after = student(batch, request).logits("all")
    torch.testing.assert_close(after - before, torch.arange(float(len(bias))).expand_as(after), rtol=0, atol=1e-3)


def test_fault_12_the_last_hidden_state_of_a_pre_ln_model_is_taken_after_its_final_norm(tmp_path: Path) -> None:
    """ModernBERT is one; an inner block's state is what the block hands on, even as the last one that is loaded."""
    from transformers import AutoModel, ModernBertConfig, ModernBertModel

    from kdcore.models.transformers import TransformersModel

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    ModernBertModel(config).save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    handed_on: list[torch.Tensor] = []
    for layer in plain.layers:
        layer.register_forward_hook(lambda _, __, out: handed_on.append(out if torch.is_tensor(out) else out[0]))
    with torch.no_grad():
        last = plain(ids).last_hidden_state
    assert not torch.allclose(last, handed_on[-1])
    empty = torch.zeros(0, dtype=torch.int64)
    batch = kdcore.Batch(ids, None, torch.full((2,), 6).numpy(), torch.arange(12), empty, empty)
    model = TransformersModel(TransformersModel.Config(path=str(tmp_path)), "teacher", None)
    for block, expected in ((2, last), (1, handed_on[1])):
        request = kdcore.Signals.hidden([block])
        with torch.no_grad():
            states = model.load_teacher(request).eval()(batch, request).tokens(block)
        torch.testing.assert_close(states, expected.reshape(-1, 16), rtol=1e-5, atol=1e-5)
