"""Padded batches computed on their real tokens only, held against the padded computation."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.packing import Packing
from kdcore.models.transformers import TransformersModel
from kdcore.relations import ScoreMaps
from kdcore.signals import Head, Signals

LENGTHS = (13, 4, 4, 20, 1, 9)
EVERYTHING = (
    Signals.hidden(["embeddings", 0, 3])
    | Signals.attention(["query", "key", "value"], [0, 3])
    | Signals.predictions("masked")
    | Signals.predictions("all")
)

pytestmark = [
    pytest.mark.parametrize("model_type", sorted(ARCHITECTURES)),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def student(saved_model):
    """A student of a model type in float64 that copies a teacher without dropout, with a head for three classes."""

    def make(model_type, request, classes=False):
        path = saved_model(model_type)
        teacher = TransformersModel(TransformersModel.Config(path=str(path)), "teacher", None)
        config = TransformersModel.Config.model_validate({"initialize": {"from": "teacher"}})
        model = TransformersModel(config, "student", teacher)
        if classes:
            model.set_heads((Head.sequence_classes(("a", "b", "c")),))
        torch.manual_seed(2)
        return model.build_student(request).eval().double()

    return make


def answers(signals):
    """Every answer to EVERYTHING, of real tokens."""
    found = {("hidden", block): signals.tokens(block) for block in ("embeddings", 0, 3)}
    found |= {("first", block): signals.first(block) for block in ("embeddings", 3)}
    found |= {("logits", positions): signals.logits(positions) for positions in ("masked", "all")}
    for block in (0, 3):
        for part in ("query", "key", "value"):
            (chunk,) = signals.heads(part, block)
            real = chunk.states.transpose(1, 2)
            found[part, block] = real[torch.arange(real.shape[1]) < torch.as_tensor(chunk.lengths)[:, None]]
    return found


def losses(signals, teacher):
    """Objectives on every kind of signal."""
    found = {}
    for block in (0, 3):
        found["hidden", block] = (signals.tokens(block) - teacher.tokens(block)).square().sum()
        found["first", block] = (signals.first(block) - teacher.first(block)).square().sum()
        found["attention", block] = ScoreMaps.attention(signals, block).kl_from(ScoreMaps.attention(teacher, block))
        for part in ("query", "value"):
            own, theirs = (ScoreMaps.relations(side, part, block, 2) for side in (signals, teacher))
            found["relations", part, block] = own.kl_from(theirs)
        own, theirs = (ScoreMaps.attention(side, block) for side in (signals, teacher))
        found["scores", block] = own.squared_error_from(theirs)
    for positions in ("masked", "all"):
        own, theirs = (side.logits(positions).log_softmax(-1) for side in (signals, teacher))
        found["logits", positions] = (theirs.exp() * (theirs - own)).sum()
    return found


def assert_close(packed, padded, what):
    atol = 1e-8 * padded.abs().max().item() + 1e-12
    torch.testing.assert_close(packed, padded, rtol=1e-8, atol=atol, msg=lambda text: f"{what}: {text}")


def test_packed_answers_losses_and_gradients_are_the_padded_ones(model_type, student, token_batch):
    encoder, batch = student(model_type, EVERYTHING), token_batch(LENGTHS, 24)
    teacher = copy.deepcopy(encoder)
    torch.manual_seed(3)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    results = []
    for packs in (True, False):
        teacher.packs = encoder.packs = packs
        with torch.no_grad():
            theirs = teacher(batch, EVERYTHING)
        own = encoder(batch, EVERYTHING)
        values = losses(own, theirs)
        torch.stack([value / value.item() for value in values.values()]).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        results.append((answers(own), values, gradients))
        encoder.zero_grad(set_to_none=True)
    for packed, padded, what in zip(*results, ("answers", "losses", "gradients"), strict=True):
        assert packed.keys() == padded.keys()
        for name, value in padded.items():
            assert_close(packed[name], value, f"{what}: {name}")


def test_packed_classes_are_the_padded_ones(model_type, student, token_batch):
    encoder = student(model_type, Signals.head("sequence_classes"), classes=True)
    batch = token_batch(LENGTHS)
    batch = replace(batch, token_types=(torch.arange(20) % 2).expand(len(LENGTHS), -1))
    results = []
    for packs in (True, False):
        encoder.packs = packs
        logits = encoder(batch, Signals.head("sequence_classes")).outputs("sequence_classes")
        logits.square().sum().backward()
        results.append({"logits": logits} | {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
        encoder.zero_grad(set_to_none=True)
    packed, padded = results
    assert packed.keys() == padded.keys()
    for name, value in padded.items():
        assert_close(packed[name], value, name)


@torch.no_grad()
def test_a_padded_batch_costs_its_real_tokens_only(model_type, student, token_batch):
    encoder, seen = student(model_type, EVERYTHING), []
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    encoder(token_batch(LENGTHS, 37), Signals.hidden([3]))
    assert set(seen) == {sum(LENGTHS)}


@torch.no_grad()
def test_attention_with_padding_only_inside_is_the_one_sequence_by_sequence(
    model_type, student, token_batch, monkeypatch
):
    """As devices compute it whose kernels take no ragged sequences."""
    encoder, batch = student(model_type, EVERYTHING), token_batch(LENGTHS, 24)
    one = answers(encoder(batch, EVERYTHING))
    monkeypatch.setattr(Packing, "_attend_in_turn", Packing._attend_padded)
    for name, value in answers(encoder(batch, EVERYTHING)).items():
        assert_close(one[name], value, name)


def test_ends_of_sequences_are_what_kernels_for_ragged_ones_take(model_type, token_batch):
    packing = Packing(token_batch(LENGTHS, 24))
    assert packing._ends.tolist() == [0, *np.cumsum(LENGTHS)]
    assert packing._longest == max(LENGTHS)
