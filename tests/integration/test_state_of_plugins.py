"""What losses and optimizers of plugins may keep in a checkpoint; anything else is refused when it is written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kdcore
from kdcore.recipe.loading import load_recipe
from kdcore.training.run.run import train_recipe

STRANGE = """
import torch

from kdcore import Loss, LossConfig, Optimizer, OptimizerConfig, Requests, Signals, register_loss, register_optimizer


class Memory:
    pass


RESTORED = []


@register_loss("strange")
class Strange(Loss):
    class Config(LossConfig):
        pass

    def __init__(self, config, teacher, student):
        super().__init__(config)

    def requests(self):
        return Requests(student=Signals.hidden([1]))

    def counts(self, batch):
        return {"strange": batch.num_tokens}

    def forward(self, student, teacher, batch):
        return {"strange": student.tokens(1).square().sum()}

    def get_extra_state(self):
        return EXTRA

    def set_extra_state(self, state):
        RESTORED.append(state)


class WithMemory(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["memory"] = OPTIMIZER


@register_optimizer("strange")
class StrangeOptimizer(Optimizer):
    class Config(OptimizerConfig):
        pass

    elementwise = True

    def build(self, groups):
        return WithMemory(groups, lr=self.config.lr)
"""


@pytest.fixture
def strange(small_recipe: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a loss and an optimizer that keep these values; gives the overrides that take both."""

    def write(extra: str = "None", optimizer: str = "1") -> list[str]:
        text = STRANGE.replace("EXTRA", extra).replace("OPTIMIZER", optimizer)
        (tmp_path / "strange.py").write_text(text, encoding="utf-8")
        return ["imports=[strange.py]", "losses={strange: {}}", "optimizer={name: strange, lr: 0.001}"]

    return write


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"extra": "Memory()"},
            ["the loss `strange`: its state `losses.strange._extra_state` contains an object", "Memory"],
        ),
        ({"extra": "{'a': [Memory()]}"}, ["the loss `strange`: ", "Memory"]),
        ({"optimizer": "Memory()"}, ["the optimizer StrangeOptimizer: its state `memory` of ", "Memory"]),
        ({"optimizer": "__import__('numpy').float64(1)"}, ["its state `memory` of ", "float64"]),
    ],
    ids=["loss", "within a loss's state", "optimizer", "number of NumPy"],
)
def test_state_that_a_checkpoint_cannot_hold_names_its_owner(strange, small_recipe, tmp_path, values, words, stage):
    with pytest.raises(kdcore.PluginError) as caught:
        kdcore.train(small_recipe, [*strange(**values), f"training.zero_stage={stage}", "checkpoints.every=2"])
    assert caught.value.exit_code == 2
    assert "checkpoint step-0000002 cannot be written" in str(caught.value)
    for word in [*words, "expected tensors, numbers, text, lists and maps"]:
        assert word in str(caught.value)
    if "optimizer" in values:
        owner = "parameter group 0" if stage else "`student.network."
        assert f"its state `memory` of {owner}" in str(caught.value)
    assert not list((tmp_path / "runs" / "small" / "1" / "checkpoints").glob("*"))


def test_plain_state_comes_back(strange, small_recipe):
    overrides = strange(extra="{'a': [1, 2.5, 'x', None, (True,)], 3: torch.ones(2)}", optimizer="[torch.ones(1), 'x']")
    train_recipe(load_recipe(small_recipe, overrides), exit_steps=3)
    kdcore.train(small_recipe, overrides)
    file = str(small_recipe.with_name("strange.py"))
    (module,) = (each for each in [*sys.modules.values()] if str(getattr(each, "__file__", "")) == file)
    (state,) = module.RESTORED
    assert state["a"] == [1, 2.5, "x", None, (True,)]
    assert state[3].tolist() == [1, 1]
