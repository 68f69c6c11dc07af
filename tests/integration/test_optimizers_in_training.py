"""Optimizers inside the engine: equal to the same ones in a plain PyTorch loop, and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore.optimizers.base import Optimizer
from kdcore.recipe.loading import load_recipe
from kdcore.training.checkpoint.format import checkpoint_folder
from kdcore.training.engine.engine import float32_student_of
from kdcore.training.engine.module import DistillationModule
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.sampling import SampleOrder
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import train_recipe

Weights = dict[str, torch.Tensor]
STEPS = 6
# masked_lm, and with it the head, comes late: its parameters' state has to begin with their first gradient.
COMMON = [
    "losses.masked_lm={active: [0.5, 1.0]}",
    "scheduler={warmup: 0.4}",
    "checkpoints={every: 1, keep: 10}",
    "optimizer.weight_decay=0.1",
    "task.data.held_out=0",
    "validation.every=never",
    f"training.budget.steps={STEPS}",
]


def sections(optimizer: dict[str, Any]) -> list[str]:
    return [*(f"optimizer.{key}={value}" for key, value in optimizer.items() if key == "name"), *COMMON] + [
        f"optimizer.{key}={value}" for key, value in optimizer.items() if key != "name"
    ]


def plain_loop(recipe: Path, overrides: list[str]) -> list[Weights]:
    """The student after each step of a loop that knows nothing of DeepSpeed."""
    plan = make_plan(load_recipe(recipe, overrides))
    teachers = FrozenTeachers(plan.load_teachers(), plan.composites)
    module = DistillationModule(plan.build_student(), plan.losses)
    torch.manual_seed(plan.recipe.settings.seed)
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    optimizer: Optimizer = plan.optimizer
    built = optimizer.build(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
    )
    order = SampleOrder(plan.task.num_samples("train"), plan.recipe.settings.seed)
    weights = []
    for step in range(STEPS):
        progress = plan.start.at(step, 0.0)
        batch = plan.task.batch("train", *order.take(step * 8, 8))
        active = module.weights_at(progress.fraction)
        counts = {term: count for term, count in module.counts(batch).items() if term.label in active}
        factors = {term: active[term.label] / count for term, count in counts.items()}
        sums = module(batch, teachers(batch, module.requests(active).teachers), active)
        torch.stack([value * factors[term] for term, value in sums.items()]).sum().backward()
        for group in built.param_groups:
            group["lr"] = optimizer.config.lr * plan.scheduler.factor(progress)
        built.step()
        built.zero_grad(set_to_none=True)  # what no loss reaches has no gradient, and is left alone
        weights.append({name: tensor.detach().clone() for name, tensor in module.student.state_dict().items()})
    return weights


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [
        *(({"name": "adam"}, stage) for stage in (0, 1, 2)),
        *(({"name": "adamw"}, stage) for stage in (0, 1, 2)),
        ({"name": "adam", "bias_correction": "false"}, 1),
        *(({"name": "adamw", "bias_correction": "false"}, stage) for stage in (0, 2)),
        ({"name": "lamb", "lr": 0.02}, 0),
        ({"name": "adafactor"}, 0),
    ],
    ids=lambda value: "-".join(str(part) for part in value.values()) if isinstance(value, dict) else f"zero{value}",
)
def test_the_engine_takes_the_steps_of_a_plain_loop(small_recipe: Path, optimizer: dict[str, Any], stage: int) -> None:
    overrides = sections({"lr": 0.003} | optimizer)
    expected = plain_loop(small_recipe, overrides)
    folder = train_recipe(load_recipe(small_recipe, [*overrides, f"training.zero_stage={stage}"])).folder
    for step, weights in enumerate(expected, start=1):
        trained = float32_student_of(checkpoint_folder(folder, step), stage)
        moved = 0
        for name, tensor in weights.items():
            torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{name} after step {step}")
            moved += bool((tensor - expected[0][name]).abs().max() > 1e-3)
        assert moved > 20 or step == 1
    (name,) = [name for name in expected[0] if name.endswith("cls.predictions.transform.dense.weight")]
    head = [weights[name] for weights in expected]
    assert torch.equal(head[0], head[STEPS // 2 - 1])
    assert not torch.equal(head[STEPS // 2 - 1], head[STEPS // 2])


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_a_stopped_run_of_a_whole_tensor_optimizer_ends_bit_for_bit_like_an_undisturbed_one(
    small_recipe: Path, name: str
) -> None:
    overrides = sections({"name": name, "lr": 0.003})
    whole = train_recipe(load_recipe(small_recipe, [*overrides, "run.id=whole"])).folder
    stopped = load_recipe(small_recipe, [*overrides, "run.id=stopped"])
    train_recipe(stopped, exit_steps=4)
    folder = train_recipe(stopped).folder
    assert "continued from step-0000004" in (folder / "train.log").read_text(encoding="utf-8")
    expected = float32_student_of(checkpoint_folder(whole, STEPS), 0)
    for weight, tensor in float32_student_of(checkpoint_folder(folder, STEPS), 0).items():
        assert torch.equal(tensor, expected[weight]), weight
