"""Runs whose student changes half-way equal a plain loop, and resume bit for bit before, at and after the change."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcore
from kdcore.recipe.loading import load_recipe
from kdcore.training.checkpoint.format import checkpoint_folder, read_state
from kdcore.training.engine.engine import Engine
from kdcore.training.engine.module import DistillationModule
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.events import CheckpointEvent, FinishedEvent, StageEvent, StepEvent
from kdcore.training.loop.sampling import SampleOrder
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import run_events, train_recipe

HERE = Path(__file__).parent
IMPORTS = f"imports=[{HERE / 'transforms.py'}]"
BLOCKS = "student.initialize.blocks=[0, 1, 3]"
DROP = [IMPORTS, "stages=[{at: 0.5, name: drop_block, block: 1}]", "student.config.num_hidden_layers=3", BLOCKS]
# The change at step 3 falls between two rows of metrics; the masked-LM head is trained from step 2 on only.
COMMON = [
    *DROP,
    "logging.every=2",
    "training.micro_batch_size=4",
    "losses.masked_lm={weight: 0.1, active: [0.2, 1.0]}",
    "checkpoints={every: 1, keep: 10}",
    "validation.every=never",
]
DROPOUT = "student.config.hidden_dropout_prob=0.1"
# A scale so high that the first steps are skipped: the change has to carry a scale that was lowered.
FP16 = "training.deepspeed={fp16: {initial_scale_power: 20, hysteresis: 2}}"
STOPS = (2, 3, 4, None)  # before the change, exactly at it, after it
LAYOUTS = [("fp32", 0), ("fp32", 1), ("bf16", 1), ("bf16", 2)]
IN_TWO_PROCESSES = [("fp32", 0), ("fp32", 1), ("bf16", 1), ("fp16", 1)]


def layout(precision: str, stage: int) -> list[str]:
    scale = [FP16] if precision == "fp16" else []
    return [*COMMON, DROPOUT, *scale, f"training.precision={precision}", f"training.zero_stage={stage}"]


def losses_of(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(run / "exports" / "final" / "model.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    assert losses_of(one) == losses_of(other)
    expected, found = weights_of(one), weights_of(other)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert np.array_equal(weight, found[name]), name


def blocks_of(weights: Any) -> set[str]:
    return {name.split("encoder.layer.")[1].split(".")[0] for name in weights if "encoder.layer." in name}


@pytest.mark.parametrize(("precision", "stage"), LAYOUTS)
def test_a_resumed_run_equals_the_undisturbed_one(small_recipe: Path, precision: str, stage: int) -> None:
    common = layout(precision, stage)
    whole = train_recipe(load_recipe(small_recipe, [*common, "run.id=whole"])).folder
    for stop in STOPS:
        train_recipe(load_recipe(small_recipe, [*common, "run.id=stopped"]), exit_steps=stop)
    stopped = whole.parent / "stopped"
    log = (stopped / "train.log").read_text(encoding="utf-8")
    for step in (2, 3, 4):
        assert f"continued from step-000000{step}" in log
    assert log.count("stage 1 begins with `drop_block`: 2 blocks") == 1, "a checkpoint of step 3 precedes the change"
    assert [read_state(checkpoint_folder(stopped, step)).stage for step in (2, 3, 4, 6)] == [0, 0, 1, 1]
    assert_equal_runs(whole, stopped)
    assert blocks_of(weights_of(whole)) == {"0", "1"}


def test_two_processes_resume_like_one(small_recipe: Path) -> None:
    jobs: list[list[object]] = []
    for precision, stage in IN_TWO_PROCESSES:
        common, name = layout(precision, stage), f"{precision}-{stage}"
        jobs.append([None, *common, f"run.id=whole-{name}"])
        jobs += [[stop, *common, f"run.id=stopped-{name}"] for stop in STOPS]
    (small_recipe.parent / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(HERE / "pair.py"), str(small_recipe), str(small_recipe.parent / "jobs.json")]
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    messages = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], messages
    runs = small_recipe.parent / "runs" / "small"
    for precision, stage in IN_TWO_PROCESSES:
        assert_equal_runs(runs / f"whole-{precision}-{stage}", runs / f"stopped-{precision}-{stage}")


def halve(module: DistillationModule, optimizer: torch.optim.Optimizer) -> None:
    """Cut weights, and Adam's averages with them, to the first half of the feed-forward layers."""
    for name, parameter in list(module.student.named_parameters()):
        rows = ".intermediate.dense." in name
        if rows or (".output.dense.weight" in name and ".attention." not in name):
            size = parameter.shape[0 if rows else 1] // 2
            cut = (slice(size),) if rows else (slice(None), slice(size))
            smaller = torch.nn.Parameter(parameter.detach()[cut].clone())
            state = optimizer.state.pop(parameter)
            optimizer.state[smaller] = {
                key: value if key == "step" else value[cut].clone() for key, value in state.items()
            }
            for group in optimizer.param_groups:
                group["params"] = [smaller if one is parameter else one for one in group["params"]]
            owner, _, own = name.rpartition(".")
            setattr(module.student.get_submodule(owner), own, smaller)


def plain_loop(recipe: Path, overrides: list[str], transform: str) -> dict[str, torch.Tensor]:
    """The student after six steps of a loop without DeepSpeed, whose optimizer keeps the state of what stays."""
    plan = make_plan(load_recipe(recipe, overrides))
    teachers = FrozenTeachers(plan.load_teachers(), plan.composites)
    module = DistillationModule(plan.build_student(), plan.stages[0].losses)
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    optimizer = plan.optimizer.build(
        [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    )
    order = SampleOrder(plan.task.num_samples("train"), plan.recipe.settings.seed)
    for step in range(6):
        if step == 3:
            if transform == "drop_block":
                module.student.keep_blocks([0, 2])
            else:
                halve(module, optimizer)
            module = DistillationModule(module.student, plan.stages[1].losses)
        progress = plan.start.at(step, 0.0)
        batch = plan.task.batch("train", *order.take(step * 8, 8))
        active = module.weights_at(progress.fraction)
        counts = module.counts(batch)
        sums = module(batch, teachers(batch, module.requests(active).teachers), active)
        torch.stack([value * active[term.label] / counts[term] for term, value in sums.items()]).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = plan.optimizer.config.lr * plan.scheduler.factor(progress)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: tensor.detach().clone() for name, tensor in module.student.state_dict().items()}


@pytest.mark.parametrize(
    ("transform", "entry"), [("drop_block", "block: 1"), ("halve_intermediate", "")], ids=["drop", "slice"]
)
@pytest.mark.parametrize("stage", [0, 1])
def test_a_change_keeps_the_optimizers_state_of_what_stays(
    small_recipe: Path, transform: str, entry: str, stage: int
) -> None:
    overrides = [*COMMON, f"stages=[{{at: 0.5, name: {transform}, {entry}}}]", f"training.zero_stage={stage}"]
    expected = plain_loop(small_recipe, overrides, transform)
    exported = weights_of(train_recipe(load_recipe(small_recipe, overrides)).folder)
    names = {name.removeprefix("network."): name for name in expected}
    assert blocks_of(exported) == blocks_of(expected)
    for name, weight in exported.items():
        if name in names:
            reference = expected[names[name]].numpy()
            assert weight.shape == reference.shape, name
            np.testing.assert_allclose(weight, reference, rtol=1e-4, atol=2e-6, err_msg=name)


def test_files_of_a_run_with_stages_have_the_structure_of_their_step(small_recipe: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    from kdcore.commands.summary import summarise
    from kdcore.training.run.batch_report import batch_report
    from kdcore.training.run.export import export_run

    overrides = [*COMMON, "checkpoints={every: 1, keep: 10, export_at: [0.5]}"]
    events = list(run_events(load_recipe(small_recipe, overrides)))
    folder = events[-1].result.folder
    assert isinstance(events[-1], FinishedEvent)
    kinds = [type(event) for event in events]
    (change,) = (event for event in events if isinstance(event, StageEvent))
    assert (change.progress.step, change.stage, change.transform, change.info.num_layers) == (3, 1, "drop_block", 2)
    before = events[kinds.index(StageEvent) - 1]
    assert isinstance(before, CheckpointEvent)
    assert before.progress.step == 3
    for step, blocks in [(3, 3), (4, 2)]:
        model = AutoModel.from_pretrained(export_run(folder, tmp_path / f"export-{step}", step))
        assert len(model.encoder.layer) == model.config.num_hidden_layers == blocks
    assert AutoModel.from_pretrained(folder / "exports" / "budget-0.5").config.num_hidden_layers == 3
    assert AutoModel.from_pretrained(folder / "exports" / "final").config.num_hidden_layers == 2
    for step in (3, 6):
        assert "the losses of all samples are finite" in list(batch_report(folder, step))[-1]
    assert "teacher 4, student 2" in summarise(folder)


@pytest.mark.parametrize(("precision", "stage"), LAYOUTS)
def test_a_change_releases_the_engine_before(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stage: int
) -> None:
    engines: list[tuple[weakref.ref[Any], list[torch.nn.Parameter]]] = []
    build = Engine.__init__

    def watched(self: Engine, *arguments: Any) -> None:
        build(self, *arguments)
        engines.append((weakref.ref(self._base_optimizer), list(self.module.parameters())))

    monkeypatch.setattr(Engine, "__init__", watched)
    recipe = load_recipe(small_recipe, layout(precision, stage))
    for event in run_events(recipe):
        if isinstance(event, FinishedEvent):
            gc.collect()
            (before, old), (after, new) = engines
            assert before() is None
            assert after() is not None
            assert not any(parameter.untyped_storage().nbytes() for parameter in old)
            assert all(parameter.untyped_storage().nbytes() for parameter in new)
    assert len(engines) == 2


def test_closing_the_events_leaves_a_run_that_continues(small_recipe: Path) -> None:
    overrides = [*COMMON, DROPOUT]
    whole = train_recipe(load_recipe(small_recipe, [*overrides, "run.id=whole"])).folder

    def consume(last: int) -> None:
        for event in run_events(load_recipe(small_recipe, [*overrides, "run.id=closed"])):
            if isinstance(event, StepEvent) and event.progress.step == last:
                raise ZeroDivisionError("the consumer's own fault")

    for last in (2, 4):
        with pytest.raises(ZeroDivisionError):
            consume(last)
    closed = train_recipe(load_recipe(small_recipe, [*overrides, "run.id=closed"])).folder
    assert "continued from step-0000003" in (closed / "train.log").read_text(encoding="utf-8")
    assert_equal_runs(whole, closed)


@pytest.fixture
def refused(small_recipe: Path) -> Callable[..., str]:
    def check(*overrides: str) -> str:
        with pytest.raises(kdcore.InputError) as caught:
            train_recipe(load_recipe(small_recipe, [IMPORTS, *overrides]))
        assert not (small_recipe.parent / "runs" / "small" / "1" / "checkpoints").exists(), "nothing was trained"
        return str(caught.value)

    return check


def test_what_cannot_work_is_refused_before_training(refused: Callable[..., str]) -> None:
    message = refused("stages=[{at: 0.5, name: drop_block, block: 1}]", "losses.hidden_mse.layers=[[3, 1]]")
    assert "after the transform `drop_block` (stages.0)" in message
    assert "losses.hidden_mse" in message
    message = refused("stages=[{at: 0.5, name: drop_block, block: 2}]")
    assert "stages.0.block: the student has 2 blocks" in message
    message = refused("stages=[{at: 0.5, name: drop_block, block: 1}, {at: 0.5, name: drop_block, block: 0}]")
    assert "stages.1.at: the stage begins at 0.5, but the stage before it at 0.5" in message
    assert "`at` is missing" in refused("stages=[{name: drop_block, block: 1}]")
    assert "stages.0.name: `name` is missing" in refused("stages=[{at: 0.5}]")
    assert "unknown transform `drop_blocks`" in refused("stages=[{at: 0.5, name: drop_blocks}]")
    assert "changes the student's vocab_size" in refused("stages=[{at: 0.5, name: liar, vocabulary: true}]")
    assert "the transform `liar` returned a student that differs from its description" in refused(
        "stages=[{at: 0.5, name: liar}]"
    )


def test_patience_is_refused_together_with_stages(refused: Callable[..., str]) -> None:
    message = refused(*DROP[1:], "early_stopping={patience: 2, metric: hidden_mse}")
    assert "early_stopping.patience" in message
    assert "cannot be combined with `stages`" in message
    assert "remove `early_stopping.patience` or `stages`" in message


def test_a_loss_may_end_where_the_student_no_longer_fits_it(small_recipe: Path) -> None:
    overrides = [
        *COMMON,
        "losses={hidden_mse: {layers: [[3, 2]], active: [0.0, 0.5]}, masked_lm: {active: [0.5, 1.0]}}",
    ]
    run = train_recipe(load_recipe(small_recipe, overrides)).folder
    assert blocks_of(weights_of(run)) == {"0", "1"}


def test_a_budget_cannot_grow_past_the_beginning_of_the_stage(small_recipe: Path) -> None:
    train_recipe(load_recipe(small_recipe, COMMON), exit_steps=4)
    with pytest.raises(kdcore.RecipeError, match=r"in stage 1, which begins at 0\.5 of the budget"):
        train_recipe(load_recipe(small_recipe, [*COMMON, "training.budget.steps=60"]))
