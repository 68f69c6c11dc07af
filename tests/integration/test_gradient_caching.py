"""Losses that couple a batch: fixed micro-batches without gradient caching, independent of the split with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kdcore_preparation import train_tokenizer

import kdcore
from kdcore.commands.main import main
from kdcore.training.checkpoint.format import checkpoint_folder
from kdcore.training.engine.engine import float32_weights_of
from kdcore.training.engine.gradient_caching import cache_gradients
from kdcore.training.engine.module import CACHED, DistillationModule, Term
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import train_recipe
from kdcore.training.runtime.distributed import DistributedContext

COUPLED = [
    "losses.contrastive={samples: 200, negatives: 20, embedding_size: 16}",
    "losses.attention_pearson={layers: last, weight: 0.5}",
]
COMMON = ["training.budget.steps=4", "checkpoints.every=4", "validation={every: 4, batch_size: 4}"]
CACHING = "training.gradient_caching=true"


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., Path]:
    """Train the small recipe with coupled losses beside `hidden_mse`: `train(id, processes, *overrides)`."""

    def run(name: str, processes: int, *overrides: str) -> Path:
        arguments = [*COUPLED, *COMMON, f"run.id={name}", *overrides]
        if processes == 1:
            return kdcore.train(small_recipe, arguments).folder
        command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *arguments]
        done = subprocess.run([*command, "--processes", str(processes)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return small_recipe.parent / "runs" / "small" / name

    return run


def rows_of(run: Path, kind: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if f"{kind}/loss" in row]
    return [{name: row[name] for name in row if "/" in name and "per_second" not in name} for row in chosen]


def weights_of(run: Path, stage: int = 0) -> dict[str, torch.Tensor]:
    """All weights and buffers after the last step: of the student, and the losses' own."""
    return float32_weights_of(checkpoint_folder(run, 4), stage)


def assert_equal_runs(one: Path, other: Path, rtol: float, atol: float) -> None:
    for kind in ("train", "held_out"):
        found, expected = (rows_of(run, kind) for run in (one, other))
        assert len(found) == len(expected) > 1
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=rtol), (kind, name)
    mine, theirs = weights_of(one, 0), weights_of(other, 0)
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        if "key.bias" not in name:  # the gradient of a key's bias is 0 but for rounding
            torch.testing.assert_close(mine[name], weight, rtol=0, atol=atol, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    ("processes", "size"),
    [
        (1, 8),
        (1, 4),
        (1, 2),
        pytest.param(2, 4, marks=pytest.mark.processes),
        pytest.param(2, 2, marks=[pytest.mark.processes, pytest.mark.sample]),
    ],
)
def test_with_caching_every_split_gives_the_run_of_one_micro_batch(
    train: Callable[..., Path], processes: int, size: int
) -> None:
    whole = train("whole", 1)
    split = train("split", processes, CACHING, f"training.micro_batch_size={size}")
    assert_equal_runs(split, whole, rtol=2e-5, atol=2e-6)


def test_without_caching_the_split_changes_the_run(train: Callable[..., Path]) -> None:
    whole, split = train("whole", 1), train("split", 1, "training.micro_batch_size=4")
    for name in ("train/contrastive", "train/attention_pearson/sequences"):
        values = [rows_of(run, "train")[-1][name] for run in (whole, split)]
        assert values[0] != pytest.approx(values[1], rel=1e-3), name
    with pytest.raises(AssertionError):
        assert_equal_runs(split, whole, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_dropout_is_the_same_in_both_forward_passes(train: Callable[..., Path], checkpointing: str) -> None:
    """Over one micro-batch, a run with caching draws the same random numbers as one without."""
    dropout = ["student.config.hidden_dropout_prob=0.2", "student.config.attention_probs_dropout_prob=0.2"]
    whole = train("whole", 1, *dropout)
    cached = train("cached", 1, *dropout, CACHING, f"training.gradient_checkpointing={checkpointing}")
    assert_equal_runs(cached, whole, rtol=2e-5, atol=2e-6)
    without = train("without", 1)
    assert rows_of(without, "train")[0]["train/loss"] != pytest.approx(
        rows_of(whole, "train")[0]["train/loss"], rel=1e-3
    )


@pytest.mark.processes
def test_in_bf16_at_zero_stage_1_the_split_matters_no_more_than_rounding(train: Callable[..., Path]) -> None:
    """bf16 has 8 bits of precision; without caching the losses differ by much more (see the test on fp32)."""
    half = ["training.precision=bf16", "training.zero_stage=1", CACHING]
    whole, split = train("whole", 1, *half), train("split", 2, *half, "training.micro_batch_size=2")
    for mine, theirs in zip(rows_of(split, "train"), rows_of(whole, "train"), strict=True):
        for name in ("train/contrastive", "train/attention_pearson/sequences", "train/hidden_mse", "train/grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-2), name
    mine, theirs = weights_of(split, 1), weights_of(whole, 1)
    for name in ("losses.contrastive.embed_student.weight", "student.network.bert.encoder.layer.1.output.dense.weight"):
        moved = (theirs[name] - weights_of(train("start", 1, *half, "optimizer.lr=0"), 1)[name]).norm()
        assert (mine[name] - theirs[name]).norm() < 0.1 * moved, name


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets DeepSpeed train fp16 with the CPU's own half kernels; for users it stays refused."""
    from deepspeed.accelerator import get_accelerator

    kind = type(get_accelerator())
    monkeypatch.setattr(kind, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(kind, "supported_dtypes", lambda self: [torch.float, torch.half, torch.bfloat16])


def test_in_fp16_cached_gradients_have_the_loss_scale(train: Callable[..., Path], half_precision: None) -> None:
    """Gradients of the losses' parameters would underflow in fp16 without it: their objective is multiplied by 1e-6."""
    half = ["training.precision=fp16", "training.deepspeed={fp16: {initial_scale_power: 16, hysteresis: 1}}"]
    small = ["losses.contrastive.weight=1e-6", "losses.attention_pearson.weight=0", "losses.hidden_mse.weight=1e-6"]
    runs = [
        train("exact", 1, *small),
        train("half", 1, *small, *half, CACHING, "training.micro_batch_size=4"),
        train("start", 1, *small, "optimizer.lr=0"),
    ]
    exact, found, start = (weights_of(run, stage) for run, stage in zip(runs, (0, 1, 0), strict=True))
    name = "losses.contrastive.embed_student.weight"
    assert (found[name] - exact[name]).norm() < 0.3 * (exact[name] - start[name]).norm() > 0
    norms = [[row["train/grad_norm"] for row in rows_of(run, "train")] for run in runs[:2]]
    assert norms[1] == pytest.approx(norms[0], rel=5e-2)


@pytest.mark.processes
@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.sample)])
def test_zero_shards_the_gradients_of_the_losses_own_parameters_too(train: Callable[..., Path], stage: int) -> None:
    """Updates need gradients of every micro-batch of the losses' parameters, on all processes."""
    whole = train("whole", 1)
    split = train("split", 2, CACHING, "training.micro_batch_size=2", f"training.zero_stage={stage}")
    mine, theirs = weights_of(split, stage), weights_of(whole)
    for name in ("losses.contrastive.embed_student.weight", "losses.contrastive.embed_teacher.weight"):
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=2e-6, msg=name)


def test_with_two_teachers_each_coupled_loss_reads_its_own(
    train: Callable[..., Path], teacher_folder: Path, tmp_path: Path
) -> None:
    from transformers import BertForMaskedLM

    other = BertForMaskedLM.from_pretrained(teacher_folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(teacher_folder / name, tmp_path / "other" / name)
    teachers = [
        "teacher=null",
        f"teachers={{one: {{path: {teacher_folder}}}, other: {{path: {tmp_path / 'other'}}}}}",
        "losses.hidden_mse.teacher=one",
        "losses.contrastive.teacher=other",
        "losses.contrastive.active=[0.5, 1.0]",
        "losses.attention_pearson.teacher=one",
    ]
    whole = train("whole", 1, *teachers)
    assert_equal_runs(train("split", 1, *teachers, CACHING, "training.micro_batch_size=4"), whole, 2e-5, 2e-6)


@pytest.mark.processes
def test_logits_and_tokens_are_gathered_as_well(train: Callable[..., Path], tmp_path: Path) -> None:
    """A loss on the mean of all tokens and of all predictions, which no sum over micro-batches can give."""
    (tmp_path / "mean.py").write_text(MEAN, encoding="utf-8")
    changes = ["imports=[mean.py]", "losses.mean={}"]
    whole = train("whole", 1, *changes)
    for processes, size in ((1, 2), (2, 2)):
        split = train(f"split-{processes}", processes, *changes, CACHING, f"training.micro_batch_size={size}")
        assert_equal_runs(split, whole, 2e-5, 2e-6)
    plain = train("plain", 1, *changes, "training.micro_batch_size=2")
    assert rows_of(plain, "train")[0]["train/mean"] != pytest.approx(rows_of(whole, "train")[0]["train/mean"], rel=1e-3)


MEAN = """
import torch
from kdcore import Loss, LossConfig, Requests, Signals, at_least_float32, register_loss


@register_loss("mean")
class Mean(Loss):
    class Config(LossConfig):
        pass

    couples_batch = True

    def __init__(self, config, teacher, student):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def requests(self):
        asked = Signals.hidden([1]) | Signals.predictions("masked") | Signals.predictions("all")
        return Requests(teacher=asked, student=asked)

    def counts(self, batch):
        return {"mean": 1}

    def forward(self, student, teacher, batch):
        pairs = [(student.tokens(1), teacher.tokens(1))]
        pairs += [(student.logits(at), teacher.logits(at)) for at in ("masked", "all")]
        means = [[at_least_float32(side).mean(0) for side in pair] for pair in pairs]
        return {"mean": self.scale.float().sum() * sum((own - theirs).square().sum() for own, theirs in means)}
"""


@pytest.mark.processes
def test_resuming_with_another_split_is_refused_without_caching_only(
    small_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*COUPLED, *COMMON, "training.micro_batch_size=4"]
    train_recipe(kdcore.load_recipe(small_recipe, arguments), exit_steps=2)
    assert main(["train", str(small_recipe), *arguments, "training.micro_batch_size=2"]) == 2
    error = capsys.readouterr().err
    assert "override `training.micro_batch_size=2`: training.micro_batch_size: the loss `contrastive` couples" in error
    assert "the micro-batch size may not change (found 2, expected 4)" in error
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), *arguments, "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "losses.contrastive: the loss `contrastive` couples" in done.stderr
    assert "the number of processes may not change (found 2, expected 1)" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(["train", str(small_recipe), *arguments, CACHING]) == 2
    assert "training.gradient_caching: differs from the recipe" in capsys.readouterr().err
    assert main(["train", str(small_recipe), *arguments, "validation.batch_size=2"]) == 0

    cached = [*arguments, CACHING, "run.id=cached"]
    train_recipe(kdcore.load_recipe(small_recipe, cached), exit_steps=2)
    assert main(["train", str(small_recipe), *cached, "training.micro_batch_size=2"]) == 0
    whole = train_recipe(kdcore.load_recipe(small_recipe, [*COUPLED, *COMMON, "run.id=whole"]), exit_steps=2).folder
    kdcore.train(small_recipe, [*COUPLED, *COMMON, "run.id=whole"])
    assert_equal_runs(tmp_path / "runs" / "small" / "cached", whole, 2e-5, 2e-6)


def test_a_run_without_coupled_losses_may_change_its_split(small_recipe: Path) -> None:
    train_recipe(kdcore.load_recipe(small_recipe, COMMON), exit_steps=2)
    assert main(["train", str(small_recipe), *COMMON, "training.micro_batch_size=2"]) == 0


def test_caching_that_has_no_effect_is_refused(small_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(small_recipe), CACHING]) == 2
    error = capsys.readouterr().err
    assert "training.gradient_caching: no loss couples the sequences of a batch" in error


def test_commands_compute_cached_losses_over_the_whole_batch(
    train: Callable[..., Path], small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("cached", 1, CACHING, "training.micro_batch_size=2")
    logged = rows_of(run, "train")[0]["train/attention_pearson/sequences"]
    capsys.readouterr()
    assert main(["debug", "batch", str(run), "1"]) == 0, capsys.readouterr().err
    blocks = capsys.readouterr().out.split("\n\n")
    (whole,) = [block for block in blocks if block.startswith("the whole batch")]
    (shown,) = [line for line in whole.splitlines() if "attention_pearson/sequences" in line]
    assert float(shown.split()[1]) == pytest.approx(logged, rel=1e-4)
    assert "hidden_mse" not in whole
    assert not [block for block in blocks if block.startswith("process 0") and "contrastive" in block]
    overrides = [*COUPLED, CACHING, "training.micro_batch_size=2"]
    assert main(["profile", str(small_recipe), *overrides, "--steps", "1"]) == 0, capsys.readouterr().err
    assert "backward" in capsys.readouterr().out


def test_a_loss_over_the_whole_batch_that_is_not_finite_is_named(
    small_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = MEAN.replace("self.scale.float().sum() *", "float('nan') *")
    (tmp_path / "mean.py").write_text(broken, encoding="utf-8")
    arguments = ["imports=[mean.py]", "losses={hidden_mse: {}, mean: {}}", CACHING, "training.micro_batch_size=2"]
    arguments += ["validation.every=never"]
    assert main(["train", str(small_recipe), *arguments]) == 3
    assert "first seen in step 1 in mean, over the whole batch" in capsys.readouterr().err


def test_cached_gradients_are_those_of_one_graph_over_all_micro_batches_with_dropout(
    small_recipe: Path, tmp_path: Path
) -> None:
    """The reference keeps the graphs of all micro-batches, which draw the same random numbers, and needs no caching."""
    (tmp_path / "mean.py").write_text(MEAN, encoding="utf-8")
    dropout = ["student.config.hidden_dropout_prob=0.3", "student.config.attention_probs_dropout_prob=0.3"]
    plan = make_plan(kdcore.load_recipe(small_recipe, ["imports=[mean.py]", "losses.mean={}", *dropout]))
    module = DistillationModule(plan.build_student(), {"mean": plan.losses["mean"]}).train()
    teachers = FrozenTeachers(plan.load_teachers(), plan.composites)
    samples = np.arange(9)
    whole = plan.task.batch("train", samples, np.zeros_like(samples))
    parts = [plan.task.batch("train", part, np.zeros_like(part)) for part in np.split(samples, 3)]
    requests = module.requests(["mean"])
    reads = (lambda side: side.tokens(1), lambda side: side.logits("masked"), lambda side: side.logits("all"))

    torch.manual_seed(5)
    own = [module.student(part, requests.student) for part in parts]
    theirs = [teachers(part, requests.teachers)["teacher"] for part in parts]
    means = [[torch.cat([read(part) for part in side]).mean(0) for side in (own, theirs)] for read in reads]
    loss = module.losses["mean"].scale.sum() * sum((mine - its).square().sum() for mine, its in means)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    module.zero_grad(set_to_none=True)

    torch.manual_seed(5)
    processes = DistributedContext(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    factors = {Term("mean", "mean"): 1.0}
    sums, cached = cache_gradients(module, teachers, parts, whole, factors, ["mean"], processes, 1.0)
    for part, gradients in zip(parts, cached, strict=True):
        torch.rand(3)  # what other losses draw must not matter
        module(part, {}, [], gradients)[CACHED].backward()
    assert sums[Term("mean", "mean")].item() == pytest.approx(loss.item(), rel=1e-5)
    assert expected.keys() == {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    for name, gradient in expected.items():
        found = module.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_a_teacher_with_its_own_tokenizer_is_gathered_in_its_own_tokens(
    small_recipe: Path, corpus_file: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """`contrastive` reads first tokens; `units` below reads units, of which both models have the same number."""
    train_tokenizer(
        corpus_file.read_text(encoding="utf-8").splitlines(),
        tmp_path / "own",
        kind="byte_level_bpe",
        vocabulary=300,
    )
    (tmp_path / "units.py").write_text(UNITS, encoding="utf-8")
    config = {"model_type": "bert", "num_hidden_layers": 2, "vocab_size": 300, "max_position_embeddings": 48}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    arguments = [
        "student.initialize=null",
        *(f"student.config.{key}={value}" for key, value in (config | dropout).items()),
        f"task.data.tokenizer={tmp_path / 'own'}",
        f"task.data.teacher_tokenizer={teacher_folder}",
        "task.data.teacher_sequence_length=64",
        "imports=[units.py]",
        "losses={hidden_mse: {unit: aligned}, units: {}}",
        COUPLED[0],
        *COMMON,
    ]
    whole = kdcore.train(small_recipe, [*arguments, "run.id=whole"]).folder
    split = kdcore.train(small_recipe, [*arguments, "run.id=split", CACHING, "training.micro_batch_size=2"]).folder
    assert_equal_runs(split, whole, 2e-5, 2e-6)


UNITS = """
from kdcore import Loss, LossConfig, Requests, Signals, register_loss


@register_loss("units")
class MeansOfUnits(Loss):
    class Config(LossConfig):
        pass

    couples_batch = True
    compares_tokens = False

    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(teacher=Signals.hidden([3]), student=Signals.hidden([1]))

    def counts(self, batch):
        return {"units": 1}

    def forward(self, student, teacher, batch):
        own, theirs = student.units(1), teacher.units(3)
        assert own.shape == theirs.shape == (batch.num_units, 32)
        return {"units": (own * theirs).mean(0).square().sum()}
"""
