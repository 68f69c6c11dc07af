"""Gradient checkpointing changes no signal and no gradient, with dropout too, and keeps fewer tensors."""

from __future__ import annotations

import pytest
import torch

from kdcore.errors import InputError, RecipeError
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.base import Encoder
from kdcore.models.transformers import TransformersModel
from kdcore.recipe.schema import TrainingSettings
from kdcore.signals import Signals
from kdcore.training.engine.engine import deepspeed_config

LAYERS = 4
REQUEST = (
    Signals.hidden(["embeddings", 1, LAYERS - 1])
    | Signals.attention(["query", "key", "value"], [0, LAYERS - 1])
    | Signals.predictions("all")
)

pytestmark = pytest.mark.usefixtures("one_thread")


def build(path):
    teacher = TransformersModel(TransformersModel.Config(path=str(path)), "teacher", None)
    section = {"initialize": {"from": "teacher"}}
    student = TransformersModel(TransformersModel.Config.model_validate(section), "student", teacher)
    return student.build_student(REQUEST).train()


def objective(encoder, batch, request):
    """A scalar that depends on every requested signal."""
    signals = encoder(batch, request)
    parts = [signals.tokens(block) for block in request.hidden_blocks]
    parts += [chunk.states for part, block in request.attention_parts for chunk in signals.heads(part, block)]
    parts += [signals.logits(positions) for positions in request.prediction_positions]
    return sum(part.square().mean() for part in parts)


def step(encoder, batch, request=REQUEST):
    torch.manual_seed(3)
    total = objective(encoder, batch, request)
    total.backward()
    return total.detach(), {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@pytest.mark.parametrize("lengths", [(9, 4, 7), (6, 6)], ids=["ragged", "full"])
def test_losses_and_gradients_are_equal_to_the_last_bit(model_type, lengths, saved_model, token_batch):
    path = saved_model(model_type)
    batch = token_batch(lengths)
    plain, other = build(path), build(path)
    other.checkpoint_gradients()
    (wanted, gradients), (found, recomputed) = step(plain, batch), step(other, batch)
    assert torch.equal(wanted, found)
    assert gradients.keys() == recomputed.keys()
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        assert torch.equal(gradient, recomputed[name]), name
    assert any(module.p > 0 for module in plain.modules() if isinstance(module, torch.nn.Dropout)) or model_type in (
        "modernbert",
    )


def kept_bytes(encoder, batch, request):
    """Bytes of all tensors, each storage once, that autograd keeps from the forward pass, besides the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = objective(encoder, batch, request)
    total.backward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_less_is_kept_for_the_backward_pass(model_type, saved_model, token_batch):
    request, batch = Signals.hidden([LAYERS - 1]), token_batch((40, 31, 37))
    plain, other = build(saved_model(model_type)), build(saved_model(model_type))
    other.checkpoint_gradients()
    before, after = kept_bytes(plain, batch, request), kept_bytes(other, batch, request)
    print(f"{model_type}: {before:,} bytes without, {after:,} with gradient checkpointing")
    assert after < 0.35 * before


def test_only_training_steps_are_recomputed(saved_model, token_batch):
    encoder, batch = build(saved_model("bert")), token_batch((9, 4))
    encoder.checkpoint_gradients()
    calls = []
    encoder.network.base_model.encoder.layer[0].register_forward_pre_hook(lambda *_: calls.append(1))
    encoder.eval()
    objective(encoder, batch, REQUEST).backward()
    encoder.train()
    with torch.no_grad():
        encoder(batch, REQUEST)
    assert len(calls) == 2
    objective(encoder, batch, REQUEST).backward()
    assert len(calls) == 4


def test_a_shortened_student_keeps_the_setting(saved_model, token_batch):
    encoder, batch = build(saved_model("bert")), token_batch((9, 4))
    encoder.checkpoint_gradients()
    encoder.keep_blocks([0, 2])
    calls = []
    encoder.network.base_model.encoder.layer[1].register_forward_pre_hook(lambda *_: calls.append(1))
    step(encoder, batch, Signals.hidden([1]))
    assert len(calls) == 2


def test_models_without_it_and_the_key_without_effect_are_refused():
    class Other(Encoder):
        def forward(self, batch, request):
            raise NotImplementedError

        def export(self, folder, weights):
            raise NotImplementedError

    with pytest.raises(InputError, match="does not support gradient checkpointing") as error:
        Other().checkpoint_gradients()
    assert error.value.problems[0].key == "gradient_checkpointing"
    settings = TrainingSettings(
        budget={"steps": 1}, batch_size=8, deepspeed={"activation_checkpointing": {"partition_activations": True}}
    )
    with pytest.raises(RecipeError, match="`activation_checkpointing` has no effect") as error:
        deepspeed_config(settings, 1)
    assert error.value.problems[0].key == "training.deepspeed.activation_checkpointing"
    assert "training.gradient_checkpointing: true" in str(error.value)
