"""Names and roles of the parameters that optimizers receive."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kdcore
from kdcore.optimizers.adamw import AdamW
from kdcore.optimizers.base import NamedParameter, ParameterGroup
from kdcore.recipe.loading import load_recipe
from kdcore.training.engine.module import DistillationModule
from kdcore.training.run.build import make_plan

LOSSES = [
    "losses.masked_lm={weight: 0.1}",
    "student.config={num_hidden_layers: 2, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
    "student.initialize=null",
]


@pytest.fixture
def roles(small_recipe) -> dict[str, str]:
    plan = make_plan(load_recipe(small_recipe, LOSSES))
    return DistillationModule(plan.build_student(), plan.losses).parameter_roles()


def test_roles_follow_the_use_of_a_parameter(roles):
    base = "student.network.bert."
    block = f"{base}encoder.layer.0."
    expected = {
        f"{base}embeddings.word_embeddings.weight": "embedding",  # tied to the head's matrix
        f"{base}embeddings.position_embeddings.weight": "embedding",
        f"{base}embeddings.LayerNorm.weight": "vector",
        f"{block}attention.self.query.weight": "matrix",
        f"{block}attention.self.query.bias": "vector",
        f"{block}output.dense.weight": "matrix",
        f"{block}output.LayerNorm.weight": "vector",
        "student.network.cls.predictions.transform.dense.weight": "head",
        "student.network.cls.predictions.bias": "head",
        "losses.hidden_mse.project.maps.0": "loss",
    }
    found = {name: role for name, role in roles.items() if name in expected}
    missing = expected.keys() - roles.keys()
    assert not missing, sorted(roles)
    assert found == expected
    assert set(roles.values()) == {"embedding", "matrix", "vector", "head", "loss"}


def test_a_pooler_belongs_to_the_base_model(roles):
    assert roles.get("student.pooler.dense.weight", "matrix") == "matrix"


def test_an_optimizer_receives_each_parameter_once_with_its_role_and_decay(small_recipe, monkeypatch):
    received: list[ParameterGroup] = []
    build = AdamW.build

    def spy(self: AdamW, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        received.extend(groups)
        return build(self, groups)

    monkeypatch.setattr(AdamW, "build", spy)
    kdcore.train(small_recipe, [*LOSSES, "training.budget.steps=1"])
    parameters = [one for group in received for one in group.parameters]
    assert len({one.name for one in parameters}) == len(parameters) > 20
    for group in received:
        assert isinstance(group, dict)
        assert [id(one.parameter) for one in group.parameters] == [id(one) for one in group["params"]]
        assert {one.parameter.ndim >= 2 for one in group.parameters} == {group["weight_decay"] > 0}
    # Roles do not split groups: as in kdcore 0.1, a group is a set of losses, and whether its parameters decay.
    assert len(received) <= 2 * 3
    assert any({"embedding", "matrix"} <= {one.role for one in group.parameters} for group in received)


def test_torch_stores_nothing_but_its_own_keys_of_a_group():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    group = ParameterGroup([NamedParameter("student.weight", "matrix", parameter)], 0.1)
    stored: dict[str, Any] = torch.optim.SGD([group], lr=0.1).state_dict()
    plain = torch.optim.SGD([{"params": [parameter], "weight_decay": 0.1}], lr=0.1).state_dict()
    assert stored == plain
