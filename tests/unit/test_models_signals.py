"""What encoders of every architecture answer, held against the plain models of transformers."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.utils import logging

from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Signals

LAYERS = 4
LENGTHS = (13, 4, 20, 9)
EVERYTHING = (
    Signals.hidden(["embeddings", *range(LAYERS)])
    | Signals.attention(["query", "key", "value"], range(LAYERS))
    | Signals.predictions("masked")
    | Signals.predictions("all")
)
# Where each architecture's plain attention hands on the weighted values, by the path inside a block.
AFTER_ATTENTION = {
    **dict.fromkeys(ARCHITECTURES, "attention.output.dense"),
    "distilbert": "attention.out_lin",
    "modernbert": "attn.Wo",
    "mpnet": "attention.attn.o",
}

pytestmark = [
    pytest.mark.parametrize("model_type", sorted(ARCHITECTURES)),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def models(saved_model):
    """The described teacher of a model type."""
    return cache(lambda model_type: TransformersModel(config_of(saved_model(model_type)), "teacher", None))


@pytest.fixture(scope="module")
def loaded(models):
    """The whole teacher of a model type, in float64; not to be changed."""
    return cache(lambda model_type: models(model_type).load_teacher(EVERYTHING).eval().double())


@pytest.fixture
def plain(saved_model, monkeypatch):
    """The plain model of a model type, in float64."""
    softmax = torch.nn.functional.softmax
    # ModernBERT's eager attention takes its softmaxes in float32, whatever the model's precision.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))

    def load(model_type, cls=AutoModel):
        logging.set_verbosity_error()
        return cls.from_pretrained(saved_model(model_type), attn_implementation="eager").eval().double()

    return load


def config_of(path):
    return TransformersModel.Config(path=str(path))


def make_student(teacher, request):
    config = TransformersModel.Config.model_validate({"initialize": {"from": "teacher"}})
    return TransformersModel(config, "student", teacher).build_student(request).eval().double()


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20)], ids=["ragged", "full"])
@torch.no_grad()
def test_hidden_states_of_every_block_are_the_plain_models(model_type, lengths, loaded, plain, token_batch):
    batch = token_batch(lengths)
    signals = loaded(model_type)(batch, EVERYTHING)
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    theirs = plain(model_type)(batch.input_ids, attention_mask=mask, output_hidden_states=True)
    for block, states in zip(["embeddings", *range(LAYERS)], theirs.hidden_states, strict=True):
        assert_close(signals.tokens(block), states.flatten(0, 1)[batch.token_index])
        assert_close(signals.first(block), states[:, 0])
    assert_close(signals.tokens(LAYERS - 1), theirs.last_hidden_state.flatten(0, 1)[batch.token_index])


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20)], ids=["ragged", "full"])
@torch.no_grad()
def test_tapped_query_key_and_mask_give_the_plain_models_attention(model_type, lengths, loaded, plain, token_batch):
    batch = token_batch(lengths)
    signals = loaded(model_type)(batch, EVERYTHING)
    network = plain(model_type)
    after = []
    for block in ARCHITECTURES[model_type].block_list(network):
        after_attention = block.get_submodule(AFTER_ATTENTION[model_type])
        after_attention.register_forward_pre_hook(lambda module, args: after.append(args[0]))
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    attentions = network(batch.input_ids, attention_mask=mask, output_attentions=True).attentions
    real = torch.ones_like(batch.input_ids, dtype=torch.bool) if mask is None else batch.attention_mask
    for block in range(LAYERS):
        (query,), (key,), (value,) = (signals.heads(part, block) for part in ("query", "key", "value"))
        scores = query.states @ key.states.transpose(-1, -2) * query.scale
        if query.mask is not None and query.mask.dtype == torch.bool:
            scores = scores.masked_fill(~query.mask, -torch.inf)
        elif query.mask is not None:
            scores = scores + query.mask
        probabilities = scores.softmax(-1)
        assert_close(probabilities.transpose(1, 2)[real], attentions[block].transpose(1, 2)[real])
        weighted = (probabilities @ value.states).transpose(1, 2).flatten(2)
        assert_close(weighted[real], after[block][real])


@torch.no_grad()
def test_logits_are_the_plain_models_at_the_rows_asked_for(model_type, loaded, plain, token_batch):
    batch = token_batch(LENGTHS)
    signals = loaded(model_type)(batch, EVERYTHING)
    logits = plain(model_type, AutoModelForMaskedLM)(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    assert_close(signals.logits("masked"), logits.flatten(0, 1)[batch.masked_index])
    assert_close(signals.logits("all"), logits.flatten(0, 1)[batch.token_index])


@torch.no_grad()
def test_a_truncated_teacher_answers_like_the_whole(model_type, models, loaded, token_batch):
    batch = token_batch(LENGTHS)
    whole = loaded(model_type)(batch, EVERYTHING)
    for depth in range(LAYERS):
        request = Signals.hidden(["embeddings", *range(depth)]) | Signals.attention(["query"], range(depth))
        encoder = models(model_type).load_teacher(request).eval().double()
        assert len(ARCHITECTURES[model_type].block_list(encoder.network)) == depth
        assert encoder.network.base_model is encoder.network, "no head is loaded"
        signals = encoder(batch, request)
        for block in ["embeddings", *range(depth)]:
            assert_close(signals.tokens(block), whole.tokens(block))
        for block in range(depth):
            assert_close(next(signals.heads("query", block)).states, next(whole.heads("query", block)).states)


@torch.no_grad()
def test_padding_changes_nothing(model_type, loaded, token_batch):
    encoder = loaded(model_type)
    padded, further = (encoder(token_batch(LENGTHS, width), EVERYTHING) for width in (None, 37))
    alone = encoder(token_batch(LENGTHS[:1]), EVERYTHING)
    for block in ["embeddings", *range(LAYERS)]:
        assert_close(further.tokens(block), padded.tokens(block))
        assert_close(alone.tokens(block), padded.tokens(block)[: LENGTHS[0]])
    for positions in ("masked", "all"):
        assert_close(further.logits(positions), padded.logits(positions))
    for block in range(LAYERS):
        for part in ("query", "key", "value"):
            longer, shorter = (next(signals.heads(part, block)).states for signals in (further, padded))
            for row, length in enumerate(LENGTHS):
                assert_close(longer[row, :, :length], shorter[row, :, :length])


@torch.no_grad()
def test_no_more_blocks_run_than_asked_for_and_no_head_and_no_pooler(model_type, models, loaded, token_batch):
    ran = Counter()
    encoders = [copy.deepcopy(loaded(model_type)), make_student(models(model_type), EVERYTHING)]
    for encoder in encoders:
        base = encoder.network.base_model
        assert encoder.network is not base
        for name, module in [*encoder.network.named_children(), ("pooler", encoder.pooler)]:
            if module is not None and module is not base:
                module.register_forward_hook(lambda *_, name=name: ran.update([name]))
        for index, block in base.get_submodule(ARCHITECTURES[model_type].blocks)._modules.items():
            block.register_forward_hook(lambda *_, name=f"block {index}": ran.update([name]))
    requests = {
        0: Signals.hidden(["embeddings"]),
        1: Signals.attention(["value"], [0]),
        3: Signals.hidden([0]) | Signals.attention(["key"], [2]),
        4: Signals.hidden([3]),
    }
    for depth, request in requests.items():
        for encoder in encoders:
            ran.clear()
            encoder(token_batch(LENGTHS), request)
            assert ran == Counter(f"block {index}" for index in range(depth))


@torch.no_grad()
def test_no_row_of_a_blocks_mask_is_empty_even_far_in_the_padding(model_type, loaded, token_batch):
    signals = loaded(model_type)(token_batch([3, 37]), EVERYTHING)
    for block in range(LAYERS):
        mask = next(signals.heads("query", block)).mask
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
        assert seen.any(-1).all()


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result the host has to wait for."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation.name() not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), operation
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20), (5, 4)], ids=["ragged", "full", "short"])
@torch.no_grad()
def test_a_forward_pass_never_waits_for_the_device(model_type, lengths, loaded, token_batch):
    encoder, batch = loaded(model_type), token_batch(lengths)
    with NoWaiting():
        encoder(batch, EVERYTHING)


def test_gradients_reach_what_runs_and_nothing_else(model_type, models, token_batch):
    request = Signals.hidden([1])
    encoder = make_student(models(model_type), request).train()
    encoder(token_batch(LENGTHS), request).tokens(1).sum().backward()
    blocks = ARCHITECTURES[model_type].block_list(encoder.network.base_model)._modules
    for index, block in blocks.items():
        for name, parameter in block.named_parameters():
            assert (parameter.grad is not None) == (int(index) <= 1), (index, name)


@torch.no_grad()
def test_a_copied_encoder_answers_for_itself(model_type, loaded, token_batch):
    original, batch = copy.deepcopy(loaded(model_type)), token_batch(LENGTHS)
    expected = original(batch, EVERYTHING)
    other = copy.deepcopy(original)
    for parameter in original.parameters():
        parameter.zero_()
    signals = other(batch, EVERYTHING)
    for block in range(LAYERS):
        assert torch.equal(signals.tokens(block), expected.tokens(block))
        assert torch.equal(next(signals.heads("key", block)).states, next(expected.heads("key", block)).states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_are_cast_but_rotary_frequencies_are_not(model_type, dtype, loaded, saved_model):
    module = torch.nn.ModuleDict({"student": copy.deepcopy(loaded(model_type))}).to(dtype)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    plain = dict(AutoModel.from_pretrained(saved_model(model_type)).named_buffers())
    ours = dict(module["student"].network.base_model.named_buffers())
    assert ours.keys() == plain.keys()
    assert any("inv_freq" in name for name in ours) == (model_type == "modernbert")
    for name, buffer in plain.items():
        assert ours[name].dtype == buffer.dtype
        assert torch.equal(ours[name], buffer)


@torch.no_grad()
def test_a_model_is_described_before_it_is_loaded(model_type, models, loaded, saved_model, token_batch):
    info = models(model_type).info
    longest = 40 if model_type in ("bert", "distilbert", "electra", "ernie", "modernbert") else 38
    assert (info.architecture, info.num_layers, info.hidden_size, info.num_heads) == (model_type, LAYERS, 32, 4)
    assert (info.head_size, info.vocab_size, info.max_length) == (8, 60, longest)
    assert [(head.name, head.level, head.num_outputs) for head in info.heads] == [("masked_lm", "token", 60)]
    loaded(model_type)(token_batch([longest, 3]), EVERYTHING)
    bare = TransformersModel(config_of(saved_model(model_type, head=False)), "teacher", None)
    assert not bare.info.heads
