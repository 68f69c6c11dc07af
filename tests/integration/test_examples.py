"""The programs in `examples/`: losses of kdcore inside other trainers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kdcore_hidden_mse.hidden_mse import HiddenMSE
from transformers import AutoModel, TrainingArguments, default_data_collator

import kdcore
from kdcore.registry import losses

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS, SEQUENCES = 4, 8
BATCHES: list[dict[str, torch.Tensor]] = []


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RecordingMSE(HiddenMSE):
    """Keeps the training batches."""

    def forward(self, student: Any, teacher: Any, batch: kdcore.Batch) -> Any:
        if self.training:
            BATCHES.append({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()})
        return super().forward(student, teacher, batch)


@pytest.fixture
def recording() -> Iterator[str]:
    BATCHES.clear()
    kdcore.register_loss("recording_mse")(RecordingMSE)
    yield "recording_mse"
    del losses._registered["recording_mse"]


def test_the_trainer_of_transformers_reaches_the_losses_of_kdcores_own_loop(
    small_recipe: Path, recording: str, teacher_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    changes = {
        "losses": {"hidden_mse": None, recording: {"layers": "last"}},
        "optimizer.weight_decay": 0.0,
        "scheduler.warmup": 0.0,
    }
    own = kdcore.train(small_recipe, {"training.budget.steps": STEPS, **changes})
    expected = kdcore.open_run(own.folder).metrics()["train/loss"].drop_null().to_pylist()
    batches = BATCHES[-STEPS:]  # the first one is that of an examination of gradients before training
    assert len(expected) == len(batches) == len(BATCHES) - 1 == STEPS

    module, found = example("transformers_trainer"), []

    class Recorded(module.DistillationTrainer):  # type: ignore[name-defined,misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            found.append(loss.item())
            return loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    settings = TrainingArguments(
        str(tmp_path / "trained"),
        max_steps=STEPS,
        per_device_train_batch_size=SEQUENCES,
        learning_rate=1e-3,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        max_grad_norm=0.0,
        lr_scheduler_type="linear",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    samples = [{name: rows[number] for name, rows in batch.items()} for batch in batches for number in range(SEQUENCES)]
    student = AutoModel.from_pretrained(own.folder / "exports" / "initial")
    teacher = AutoModel.from_pretrained(teacher_folder)
    Recorded(student, settings, default_data_collator, samples, teacher=teacher).train()
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


def test_the_example_with_the_trainer_of_transformers_runs(
    teacher_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    example("transformers_trainer").main(str(teacher_folder), str(corpus_file))
    assert "train_loss" in capsys.readouterr().out


def test_the_example_with_the_trainer_of_sentence_transformers_runs(
    teacher_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    module = example("sentence_transformer_trainer")
    module.main(str(teacher_folder), str(corpus_file))
    student = sentence_transformers.SentenceTransformer(str(tmp_path / "trained" / "student"))
    assert student[0].auto_model.config.num_hidden_layers == 1
    assert student.encode("some text").shape == (32,)
