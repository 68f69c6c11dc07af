"""Training through the real engine: what a run computes does not depend on how it is split, stopped or cast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import kdcore
from kdcore.training.run.run import RunResult

Rows = list[dict[str, Any]]


def rows_of(run: Path) -> Rows:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_of(run: Path) -> list[float]:
    return [row["train/loss"] for row in rows_of(run) if "train/loss" in row]


def held_out_of(run: Path) -> list[float]:
    return [row["held_out/loss"] for row in rows_of(run) if "held_out/loss" in row]


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., RunResult]:
    def run(*overrides: str) -> RunResult:
        return kdcore.train(small_recipe, list(overrides))

    return run


@pytest.fixture
def train_in_processes(small_recipe: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(count: int, overrides: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *overrides]
        command += ["--processes", str(count)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_a_run_leaves_everything_that_was_promised(train: Callable[..., RunResult]) -> None:
    result = train("tracking=[tensorboard, jsonl]")
    folder = result.folder
    assert result.export == folder / "exports" / "final"
    assert result.exit_code == 0
    for name in ("recipe.yaml", "environment.json", "train.log", "metrics.jsonl", "tensorboard", "checkpoints/latest"):
        assert (folder / name).exists(), name
    assert list((folder / "tensorboard").iterdir())
    assert [row["step"] for row in rows_of(folder) if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert held_out_of(folder)[-1] == result.held_out["loss"] < held_out_of(folder)[0]
    assert "torch" in json.loads((folder / "environment.json").read_text(encoding="utf-8"))["packages"]
    assert not [path for path in folder.rglob("*") if "staging" in path.name]


def test_deterministic_algorithms_and_a_teacher_in_half_precision_suit_every_kind_of_signal(
    train: Callable[..., RunResult],
) -> None:
    losses = [f"losses.{name}={{}}" for name in ("masked_lm", "soft_targets", "minilm_v2", "attention_kl")]
    result = train(*losses, "training.deterministic=true", "teacher.dtype=bf16", "training.budget.steps=2")
    assert not torch.are_deterministic_algorithms_enabled()
    assert np.isfinite(losses_of(result.folder)).all()
    assert len(losses_of(result.folder)) == 2


def test_the_exported_student_loads_with_no_missing_key_and_is_what_was_trained(
    train: Callable[..., RunResult], teacher_folder: Path
) -> None:
    export = train().export
    assert export is not None
    student, report = AutoModel.from_pretrained(export, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    _, report = AutoModelForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not report["missing_keys"]
    assert student.dtype == torch.float32
    assert student.config.num_hidden_layers == 2
    teacher = AutoModel.from_pretrained(teacher_folder)
    moved = student.encoder.layer[1].output.dense.weight - teacher.encoder.layer[3].output.dense.weight
    assert 0 < moved.abs().max() < 0.1
    text = "the teacher of abc"
    assert AutoTokenizer.from_pretrained(export)(text) == AutoTokenizer.from_pretrained(teacher_folder)(text)
    assert "hidden_mse" in (export / "README.md").read_text(encoding="utf-8")
    readable = {file.name: oct(file.stat().st_mode & 0o777) for file in export.iterdir()}
    assert len(set(readable.values())) == 1, readable


def test_the_first_loss_is_the_definition_computed_by_hand(
    train: Callable[..., RunResult], small_recipe: Path, teacher_folder: Path
) -> None:
    """float64 NumPy on the plain models' outputs, over the batch that the task gives for step 0."""
    from transformers import AutoModel

    from kdcore.training.loop.sampling import SampleOrder
    from kdcore.training.run.build import make_plan

    logged = losses_of(train("training.budget.steps=1").folder)[0]
    plan = make_plan(kdcore.load_recipe(small_recipe))
    samples, epochs = SampleOrder(plan.task.num_samples("train"), 3).take(0, 8)
    batch = plan.task.batch("train", samples, epochs)
    assert batch.attention_mask is not None, "lengths are ragged"
    teacher = AutoModel.from_pretrained(teacher_folder).eval()
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    with torch.no_grad():
        states = teacher(**inputs, output_hidden_states=True)
        student = AutoModel.from_pretrained(teacher_folder).eval()
        student.encoder.layer = torch.nn.ModuleList([student.encoder.layer[1], student.encoder.layer[3]])
        own = student(**inputs).last_hidden_state
    real = batch.attention_mask.numpy()
    difference = own.numpy().astype(np.float64)[real] - states.hidden_states[4].numpy().astype(np.float64)[real]
    expected = (difference**2).sum() / (real.sum() * 32)
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.sample)])
def test_neither_processes_nor_micro_batches_change_the_losses(
    train: Callable[..., RunResult],
    train_in_processes: Callable[..., subprocess.CompletedProcess[str]],
    stage: int,
) -> None:
    common = [f"training.zero_stage={stage}", "losses.masked_lm={weight: 0.1}", "training.gradient_clipping=1.0"]
    reference = train(*common, "run.id=whole").folder
    split = train(*common, "run.id=split", "training.micro_batch_size=2").folder
    done = train_in_processes(2, [*common, "run.id=two", "training.micro_batch_size=1"])
    assert done.returncode == 0, done.stderr
    two = reference.with_name("two")
    for other in (split, two):
        np.testing.assert_allclose(losses_of(other), losses_of(reference), rtol=1e-5)
        np.testing.assert_allclose(held_out_of(other), held_out_of(reference), rtol=1e-5)
    norms = [[row["train/grad_norm"] for row in rows_of(run) if "train/loss" in row] for run in (reference, split, two)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
    np.testing.assert_allclose(norms[2], norms[0], rtol=1e-4)


@pytest.mark.processes
def test_torchrun_starts_it_too(train: Callable[..., RunResult], small_recipe: Path) -> None:
    reference = train("run.id=one").folder
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "kdcore.commands.main", "train", str(small_recipe), "run.id=two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses_of(reference.with_name("two")), losses_of(reference), rtol=1e-5)


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("fp32", 1), ("bf16", 1), ("fp16", 1), ("fp16", 2)])
def test_a_stopped_run_ends_like_an_undisturbed_one(
    train: Callable[..., RunResult], half_precision: None, precision: str, stage: int
) -> None:
    """Dropout is on, so the random states matter; the stop falls between two rows of metrics."""
    common = [
        f"training.precision={precision}",
        f"training.zero_stage={stage}",
        "student.config.hidden_dropout_prob=0.1",
        "logging.every=2",
        "training.micro_batch_size=4",
        "scheduler.warmup=0.0",
        "training.deepspeed={fp16: {initial_scale_power: 8}}" if precision == "fp16" else "seed=3",
    ]
    whole = train(*common, "run.id=whole", "checkpoints.every=3").folder
    stopped = train(*common, "run.id=stopped", "checkpoints.every=3").folder
    checkpoints = stopped / "checkpoints"
    (checkpoints / "latest").write_text("step-0000003", encoding="utf-8")
    for file in sorted((stopped / "exports").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    again = train(*common, "run.id=stopped", "checkpoints.every=3")
    assert "continued from step-0000003" in (stopped / "train.log").read_text(encoding="utf-8")
    assert losses_of(again.folder) == losses_of(whole)
    assert held_out_of(again.folder)[-1] == held_out_of(whole)[-1]
    exports = [(run / "exports" / "final" / "model.safetensors").read_bytes() for run in (whole, stopped)]
    assert exports[0] == exports[1]


def _scale(power: int) -> str:
    return f"training.deepspeed={{fp16: {{initial_scale_power: {power}, hysteresis: 1}}}}"


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets DeepSpeed train fp16 with the CPU's own half kernels; for users it stays refused."""
    from deepspeed.accelerator import get_accelerator

    kind = type(get_accelerator())
    monkeypatch.setattr(kind, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(kind, "supported_dtypes", lambda self: [torch.float, torch.half, torch.bfloat16])


@pytest.mark.parametrize("stage", [1, 2])
def test_fp16_follows_fp32(train: Callable[..., RunResult], half_precision: None, stage: int) -> None:
    common = ["training.budget.steps=20", "training.micro_batch_size=4"]
    exact = losses_of(train(*common, "run.id=fp32").folder)
    half = train(*common, "run.id=fp16", "training.precision=fp16", f"training.zero_stage={stage}", _scale(10)).folder
    rows = [row for row in rows_of(half) if "train/loss" in row]
    assert rows[-1]["train/skipped_steps"] == 0
    assert exact[-1] < 0.3 * exact[0]
    np.testing.assert_allclose(losses_of(half), exact, rtol=0.02)


def test_fp16_finds_its_loss_scale_from_one_that_overflows(
    train: Callable[..., RunResult], half_precision: None
) -> None:
    rows = rows_of(train("training.precision=fp16", _scale(24), "training.budget.steps=30").folder)
    rows = [row for row in rows if "train/loss" in row]
    skipped = int(rows[-1]["train/skipped_steps"])
    assert 0 < skipped < 15
    # Each overflow halves the scale, and a skipped step leaves the weights alone.
    assert rows[-1]["train/loss_scale"] == 2.0 ** (24 - skipped)
    assert rows[-1]["train/loss"] < 0.4 * rows[0]["train/loss"]


def test_a_loss_scale_at_its_floor_is_a_failed_training(train: Callable[..., RunResult], half_precision: None) -> None:
    with pytest.raises(kdcore.TrainingError, match="loss scale is at its minimum") as caught:
        train(
            "training.precision=fp16", "training.deepspeed={fp16: {initial_scale_power: 26, min_loss_scale: 67108864}}"
        )
    assert caught.value.exit_code == 3


def test_a_student_of_a_type_without_a_description_is_exported(train: Callable[..., RunResult]) -> None:
    config = "student.config={model_type: albert, embedding_size: 16}"
    export = train("student.initialize=null", config).export
    assert export is not None
    student, report = AutoModel.from_pretrained(export, output_loading_info=True)
    assert student.config.model_type == "albert"
    assert not report["missing_keys"]
    assert "token_type_ids" in AutoTokenizer.from_pretrained(export).model_input_names


def test_an_export_of_bf16_training_loads_in_float32_as_it_is_stored(train: Callable[..., RunResult]) -> None:
    export = train("training.precision=bf16").folder / "exports" / "final"
    stored = load_file(export / "model.safetensors")
    loaded = AutoModelForMaskedLM.from_pretrained(export).state_dict()
    shared = stored.keys() & loaded  # a masked-LM model has no pooler
    assert len(shared) > 20
    assert all(torch.equal(loaded[name], stored[name]) for name in shared)
    assert {loaded[name].dtype for name in shared} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in stored.values())


def test_bf16_follows_fp32(train: Callable[..., RunResult]) -> None:
    exact = losses_of(train("training.budget.steps=20", "run.id=fp32").folder)
    half = losses_of(train("training.budget.steps=20", "run.id=bf16", "training.precision=bf16").folder)
    assert half[-1] == pytest.approx(exact[-1], rel=0.05)


def test_fp16_is_refused_in_words_where_the_device_has_none(train: Callable[..., RunResult], tmp_path: Path) -> None:
    with pytest.raises(kdcore.RecipeError, match=r"fp16 is not supported on this device") as caught:
        train("training.precision=fp16")
    assert "bf16, fp32" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_parameters_that_no_loss_reaches_stay_bit_for_bit(
    train: Callable[..., RunResult], teacher_folder: Path
) -> None:
    """Weight decay would move them, for DeepSpeed fills missing gradients with zeros."""
    from transformers import AutoModel, AutoModelForMaskedLM

    folder = train("losses.hidden_mse.layers=[[1, 0]]", "optimizer.weight_decay=0.5").folder
    student = AutoModelForMaskedLM.from_pretrained(folder / "exports" / "final")
    teacher = AutoModelForMaskedLM.from_pretrained(teacher_folder)
    block = student.bert.encoder.layer[1].state_dict()
    for name, before in teacher.bert.encoder.layer[3].state_dict().items():
        assert torch.equal(block[name], before), name
    transform = teacher.cls.predictions.transform.dense.weight
    assert torch.equal(student.cls.predictions.transform.dense.weight, transform)
    changed = AutoModel.from_pretrained(folder / "exports" / "final").encoder.layer[0].output.dense.weight
    assert not torch.equal(changed, teacher.bert.encoder.layer[1].output.dense.weight)
    assert "block 1 is not trained" in (folder / "train.log").read_text(encoding="utf-8")


def test_teacher_and_student_run_only_the_blocks_that_a_loss_reads(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert import modeling_bert

    calls: dict[str, int] = {}

    def count(cls: type[torch.nn.Module]) -> None:
        forward = cls.forward

        def counted(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            side = "teacher" if not torch.is_grad_enabled() else "student"
            if args[0].device.type != "meta":  # a student's sizes are tried without memory and without computing
                calls[f"{side} {cls.__name__}"] = calls.get(f"{side} {cls.__name__}", 0) + 1
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", counted)

    for cls in (modeling_bert.BertLayer, modeling_bert.BertPooler, modeling_bert.BertOnlyMLMHead):
        count(cls)
    # No held-out data, so that without gradients only the teacher runs. Five forward passes: four steps and the one
    # that finds out what the losses reach.
    train(
        "losses.hidden_mse.layers=[[1, 0]]", "training.budget.steps=4", "task.data.held_out=0", "validation.every=never"
    )
    assert calls == {"teacher BertLayer": 5 * 2, "student BertLayer": 5 * 1}


def test_a_teacher_is_loaded_only_as_deep_as_it_is_read(small_recipe: Path) -> None:
    from kdcore.training.run.build import make_plan

    plan = make_plan(kdcore.load_recipe(small_recipe, ["losses.hidden_mse.layers=[[1, 0]]"]))
    (teacher,) = plan.load_teachers().values()
    names = list(teacher.state_dict())
    assert {name.split("layer.")[1].split(".")[0] for name in names if "layer." in name} == {"0", "1"}
    assert not [name for name in names if "pooler" in name or "cls" in name]


def test_no_teacher_is_loaded_when_nothing_reads_it(train: Callable[..., RunResult], small_recipe: Path) -> None:
    from kdcore.training.run.build import make_plan

    overrides = ["losses.hidden_mse=null", "losses.masked_lm={}"]
    assert make_plan(kdcore.load_recipe(small_recipe, overrides)).load_teachers() == {}
    folder = train(*overrides).folder
    assert held_out_of(folder)[-1] < held_out_of(folder)[0]


def test_a_projection_is_trained_and_left_out_of_the_export(train: Callable[..., RunResult]) -> None:
    from safetensors import safe_open

    result = train(
        "student.config.hidden_size=16", "student.initialize=null", "training.budget.steps=30", "optimizer.lr=1e-2"
    )
    losses = losses_of(result.folder)
    assert losses[-1] < 0.8 * losses[0]
    assert result.export is not None
    with safe_open(result.export / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "project" in name or "loss" in name]  # noqa: SIM118


def test_a_finished_run_says_so_and_is_left_alone(
    train: Callable[..., RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    first = train()
    before = (first.folder / "metrics.jsonl").read_text(encoding="utf-8")
    again = train()
    assert again.exit_code == 0
    assert again.export == first.export
    assert (first.folder / "metrics.jsonl").read_text(encoding="utf-8") == before
    assert "is finished" in capsys.readouterr().err


def test_a_longer_budget_continues_a_finished_run(train: Callable[..., RunResult]) -> None:
    folder = train().folder
    train("training.budget.steps=9")
    assert [row["step"] for row in rows_of(folder) if "train/loss" in row] == list(range(1, 10))


def test_a_run_folder_of_another_recipe_is_refused_with_the_differences(train: Callable[..., RunResult]) -> None:
    folder = train().folder
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(kdcore.RecipeError) as caught:
        train("optimizer.lr=0.5", "training.batch_size=16", "training.budget.steps=2", "logging.every=3")
    text = str(caught.value)
    for word in ("optimizer.lr", "0.001", "0.5", "training.batch_size", "training.budget.steps", "run.id=NEW"):
        assert word in text
    assert "logging" not in text
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_time_budget_ends_the_run(train: Callable[..., RunResult]) -> None:
    folder = train("training.budget={hours: 0.0003}", "scheduler.warmup=0.0").folder
    rates = [row["train/lr"] for row in rows_of(folder) if "train/lr" in row]
    assert len(rates) > 1
    assert rates == sorted(rates, reverse=True)
    again = train("training.budget={hours: 0.0003}", "scheduler.warmup=0.0")
    assert again.held_out == {}, "finished"


def test_the_smoke_walk_ends_well_and_leaves_nothing(small_recipe: Path, tmp_path: Path) -> None:
    assert kdcore.train(small_recipe, smoke=True).exit_code == 0
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_export_from_a_checkpoint_equals_the_final_export(train: Callable[..., RunResult], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from kdcore.commands.main import main

    for stage in (0, 1):
        run = train(f"training.zero_stage={stage}", f"run.id=stage{stage}").folder
        assert main(["export", str(run), str(tmp_path / f"out{stage}")]) == 0
        exported = load_file(tmp_path / f"out{stage}" / "model.safetensors")
        final = load_file(run / "exports" / "final" / "model.safetensors")
        assert exported.keys() == final.keys()
        for name, tensor in final.items():
            assert torch.equal(exported[name], tensor), name


def test_a_ruined_run_is_neither_checkpointed_nor_exported(train: Callable[..., RunResult], tmp_path: Path) -> None:
    """The loss is looked at before each checkpoint, not only where a row of metrics is due."""
    with pytest.raises(kdcore.TrainingError, match="not finite") as caught:
        train("optimizer.lr=1e30", "logging.every=1000", "scheduler.warmup=0.0", "training.budget.steps=12")
    assert caught.value.exit_code == 3
    exports = tmp_path / "runs" / "small" / "1" / "exports"
    assert [path.name for path in exports.iterdir()] == ["initial"]
    assert not list((tmp_path / "runs" / "small" / "1").glob("checkpoints/step-*"))


@pytest.mark.processes
def test_a_resume_that_cannot_be_leaves_the_run_folder_as_it_was(
    train: Callable[..., RunResult], train_in_processes: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = train().folder
    before = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "checkpoints" / "step-0000006" / "process-0.json").unlink()
    done = train_in_processes(2, ["training.budget.steps=9"])
    assert done.returncode == 2, done.stderr
    assert "process-0.json is missing" in done.stderr
    assert (folder / "recipe.yaml").read_text(encoding="utf-8") == before


def test_a_default_that_is_said_is_no_difference_on_resume(train: Callable[..., RunResult]) -> None:
    train()
    assert train("training.precision=fp32", "training.zero_stage=0", "training.budget.steps=7").exit_code == 0


OWN_LOSS = """\
from kdcore import register_loss
from kdcore.losses.masked_lm import MaskedLMLoss


@register_loss("own")
class OwnLoss(MaskedLMLoss):
    pass
"""


def test_a_run_goes_on_with_a_copy_of_the_file_that_it_imports_and_with_no_other(
    train: Callable[..., RunResult], tmp_path: Path
) -> None:
    for name in ("own.py", "copy.py"):
        (tmp_path / name).write_text(OWN_LOSS, encoding="utf-8")
    loss = "losses={own: {}}"
    train("imports=[own.py]", loss)
    assert train("imports=[copy.py]", loss, "training.budget.steps=7").exit_code == 0
    (tmp_path / "other.py").write_text(OWN_LOSS.replace("pass", "zero_when_equal = True"), encoding="utf-8")
    with pytest.raises(kdcore.RecipeError, match="imports"):
        train("imports=[other.py]", loss, "training.budget.steps=8")


def test_a_checkpoint_of_an_abandoned_past_does_not_crowd_out_the_new_one(train: Callable[..., RunResult]) -> None:
    common = "checkpoints={every: 2, keep: 1}"
    checkpoints = train(common, "training.budget.steps=4").folder / "checkpoints"
    abandoned = shutil.copytree(checkpoints / "step-0000004", checkpoints / "step-0000009")
    state = json.loads((abandoned / "state.json").read_text(encoding="utf-8"))
    (abandoned / "state.json").write_text(json.dumps(state | {"step": 9}), encoding="utf-8")
    golden.rewrite_manifest(abandoned)
    assert train(common, "training.budget.steps=6").exit_code == 0
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-0000006"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("{zero_optimization: {stage: 2}}", "zero_optimization.stage"),
        ("{fp16: {enabled: true}}", "training.precision"),
        ("{zero_optimization: {allgather_bucket: 5}}", "allgather_bucket"),
    ],
)
def test_deepspeed_keys_that_are_kdcores_or_unknown_are_refused(
    train: Callable[..., RunResult], keys: str, words: str
) -> None:
    with pytest.raises(kdcore.RecipeError, match=words):
        train(f"training.deepspeed={keys}", "training.zero_stage=1")
