"""Score maps of real models against the attention that the plain models of transformers return."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModel

from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.transformers import TransformersModel
from kdcore.relations import ScoreMaps
from kdcore.signals import Signals

BLOCKS = (0, 1, 3)


def disturbed(network):
    """The network with other weights, so that student and teacher differ."""
    torch.manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@pytest.mark.usefixtures("one_thread")
def test_attention_kl_of_blocks_has_the_value_and_the_gradients_of_the_plain_models(
    model_type, saved_model, token_batch, monkeypatch
):
    """Windows, rotary embeddings and position biases, which MPNet learns, are the block's own."""
    softmax = torch.nn.functional.softmax
    # ModernBERT's eager attention takes its softmaxes in float32, whatever the model's precision.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
    batch = token_batch((13, 4, 20, 9))
    request = Signals.attention(["query", "key"], BLOCKS)
    model = TransformersModel(TransformersModel.Config(path=str(saved_model(model_type))), "teacher", None)
    teacher = model.load_teacher(request).eval().double()
    student = disturbed(copy.deepcopy(teacher))
    with torch.no_grad():
        theirs = teacher(batch, request)
    own = student(batch, request)
    lean = torch.stack(
        [ScoreMaps.attention(own, block).kl_from(ScoreMaps.attention(theirs, block)) for block in BLOCKS]
    ).sum()

    plain = AutoModel.from_pretrained(saved_model(model_type), attn_implementation="eager").eval().double()
    sides = []
    for network in (plain, copy.deepcopy(plain)):
        if sides:
            network.load_state_dict(student.network.state_dict(), strict=False)
        output = network(batch.input_ids, attention_mask=batch.attention_mask.long(), output_attentions=True)
        sides.append([output.attentions[block].transpose(1, 2)[batch.attention_mask] for block in BLOCKS])
    expected = torch.zeros((), dtype=torch.float64)
    for p, q in zip(*sides, strict=True):
        seen = p > 0
        expected = expected + (p[seen].detach() * (p[seen].detach() / q[seen]).log()).sum()
    torch.testing.assert_close(lean, expected, rtol=1e-8, atol=0)
    lean.backward()
    expected.backward()
    plain_gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    compared = 0
    for name, parameter in student.network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, plain_gradients[name], rtol=1e-6, atol=1e-9)
            compared += 1
    assert compared > 20
    if model_type == "mpnet":
        assert student.network.get_parameter("encoder.relative_attention_bias.weight").grad.any()
