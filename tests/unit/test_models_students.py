"""Students of every architecture: their sizes, their first weights, and what AutoModel makes of their exports."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.utils import logging

from kdcore.errors import InputError
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.initialization import fitting_blocks
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Signals

MODEL_TYPES = sorted(ARCHITECTURES)
HIDDEN = Signals.hidden(["embeddings", 0, 1])
PREDICTIONS = HIDDEN | Signals.predictions("masked")
BLOCKS = {"modernbert": [0, 2]}  # global, local; the others: [1, 3]

pytestmark = pytest.mark.usefixtures("one_thread")


def teacher(path):
    return TransformersModel(TransformersModel.Config(path=str(path)), "teacher", None)


def student(path, config=None, initialize=None):
    section = {"config": config or {}, "initialize": initialize}
    return TransformersModel(
        TransformersModel.Config.model_validate(section), "student", None if path is None else teacher(path)
    )


def copied(path, model_type, **changes):
    blocks = BLOCKS.get(model_type, [1, 3])
    return student(path, {"num_hidden_layers": 2} | changes, {"from": "teacher", "blocks": blocks}), blocks


def float32_weights(encoder):
    """As the engine gives them: one tensor a name, none shared."""
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


def load_export(cls, folder):
    logging.set_verbosity_error()
    network, report = cls.from_pretrained(folder, output_loading_info=True)
    return network.eval(), report


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_chosen_blocks_embeddings_and_head_are_copied_exactly(model_type, saved_model):
    path = saved_model(model_type)
    model, blocks = copied(path, model_type)
    encoder = model.build_student(HIDDEN)
    source = AutoModelForMaskedLM.from_pretrained(path)
    where = f"{source.base_model_prefix}.{ARCHITECTURES[model_type].blocks}."
    state = encoder.network.state_dict()
    compared = 0
    for name, tensor in source.state_dict().items():
        if name.startswith(where):
            number, rest = name.removeprefix(where).split(".", 1)
            if int(number) not in blocks:
                continue
            name = f"{where}{blocks.index(int(number))}.{rest}"
        assert torch.equal(state[name], tensor), name
        compared += 1
    assert compared == len([name for name in state if ".pooler." not in name])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.no_grad()
def test_an_export_loads_with_no_missing_key_and_answers_alike(model_type, saved_model, token_batch, tmp_path):
    model, _ = copied(saved_model(model_type), model_type)
    encoder, batch = model.build_student(PREDICTIONS).eval(), token_batch([9, 5])
    signals = encoder(batch, PREDICTIONS)
    encoder.export(tmp_path, float32_weights(encoder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert "kdcore" not in (tmp_path / "config.json").read_text()
    for cls in (AutoModel, AutoModelForMaskedLM):
        network, report = load_export(cls, tmp_path)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        states = network.base_model(batch.input_ids, attention_mask=batch.attention_mask)[0]
        torch.testing.assert_close(states.flatten(0, 1)[batch.token_index], signals.tokens(1))
    logits = network(batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(logits.flatten(0, 1)[batch.masked_index], signals.logits("masked"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_tied_head_stays_tied_when_copied_exported_and_loaded(model_type, saved_model, tmp_path):
    model, _ = copied(saved_model(model_type), model_type)
    encoder = model.build_student(HIDDEN)
    assert encoder.network.get_output_embeddings().weight is encoder.network.get_input_embeddings().weight
    encoder.export(tmp_path, float32_weights(encoder))
    stored = load_file(tmp_path / "model.safetensors").values()
    assert sum(tensor.shape[0] == 60 and tensor.dim() == 2 for tensor in stored) == 1, "stored once"
    network, _ = load_export(AutoModelForMaskedLM, tmp_path)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_an_untied_head_keeps_its_own_weights(saved_model, tmp_path):
    model, _ = copied(saved_model("bert", tie_word_embeddings=False), "bert")
    encoder = model.build_student(HIDDEN)
    head = encoder.network.get_output_embeddings().weight
    assert not torch.equal(head, encoder.network.get_input_embeddings().weight)
    encoder.export(tmp_path, float32_weights(encoder))
    network, report = load_export(AutoModelForMaskedLM, tmp_path)
    assert not report["missing_keys"]
    assert torch.equal(network.get_output_embeddings().weight, head)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_student_without_a_head_exports_what_automodel_needs(model_type, saved_model, tmp_path):
    encoder = student(saved_model(model_type, head=False), {"num_hidden_layers": 2}).build_student(HIDDEN)
    encoder.export(tmp_path, float32_weights(encoder))
    network, report = load_export(AutoModel, tmp_path)
    assert not report["missing_keys"]
    has_pooler = model_type not in ("distilbert", "electra", "modernbert")
    assert (getattr(network, "pooler", None) is not None) == has_pooler
    assert any("pooler" in name for name in load_file(tmp_path / "model.safetensors")) == has_pooler


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("teacher_type", ["bert", "roberta", "modernbert"])
def test_a_student_of_any_architecture_takes_the_teachers_sizes(teacher_type, model_type, saved_model, token_batch):
    pads = {"pad_token_id": 0} if teacher_type == "bert" else {}
    model = student(saved_model(teacher_type, **pads), {"model_type": model_type})
    theirs = teacher(saved_model(teacher_type, **pads)).info
    ours = model.info
    assert ours.architecture == model_type
    for size in ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_length"):
        assert getattr(ours, size) == getattr(theirs, size), size
    assert getattr(model.hf_config, ARCHITECTURES[model_type].intermediate_size) == 48
    if model_type != "mpnet":
        assert model.hf_config.pad_token_id == pads.get("pad_token_id", 1)
    encoder = model.build_student(PREDICTIONS)
    assert encoder(token_batch([ours.max_length, 3]), PREDICTIONS).logits("masked").shape[1] == 60


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_student_may_be_narrower_and_shallower_than_its_teacher(model_type, saved_model, token_batch):
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = student(saved_model(model_type), config).build_student(HIDDEN)
    assert (encoder.info.num_layers, encoder.info.hidden_size, encoder.info.head_size) == (2, 16, 8)
    assert encoder(token_batch([7, 3]), HIDDEN).tokens("embeddings").shape == (10, 16)


def test_every_architecture_can_be_made_without_a_teacher(token_batch):
    for model_type in MODEL_TYPES:
        sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
        special = {"vocab_size": 60, "pad_token_id": 1, "max_position_embeddings": 40}
        encoder = student(None, {"model_type": model_type} | sizes | special).build_student(HIDDEN)
        assert encoder(token_batch([7, 3]), HIDDEN).tokens(1).shape == (10, 16)


def test_a_modernbert_of_another_depth_keeps_the_rhythm_of_global_and_local_attention(saved_model):
    path = saved_model("modernbert", num_hidden_layers=9)
    every_third = ["full_attention", "sliding_attention", "sliding_attention"]
    for depth in (2, 6, 12):
        model = student(path, {"num_hidden_layers": depth})
        assert model.hf_config.layer_types == (every_third * 4)[:depth]
    own = student(path, {"num_hidden_layers": 4, "global_attn_every_n_layers": 2})
    assert own.hf_config.layer_types == ["full_attention", "sliding_attention"] * 2


@pytest.mark.parametrize("blocks", ["uniform", "last", [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 4, 5, 6], [3, 4, 5, 6, 7, 8]])
def test_copying_that_breaks_the_rhythm_is_refused_with_blocks_that_would_do(blocks, saved_model):
    path = saved_model("modernbert", num_hidden_layers=9)
    with pytest.raises(InputError, match=r"student\.initialize\.blocks") as refused:
        student(path, {"num_hidden_layers": 6}, {"from": "teacher", "blocks": blocks})
    if blocks != [0, 1, 2, 3, 4, 5, 6]:
        assert "global and local" in str(refused.value)
        hint = str(refused.value).split("use blocks: ")[1]
        student(path, {"num_hidden_layers": 6}, {"from": "teacher", "blocks": json.loads(hint)})


def test_fitting_blocks_are_spread_evenly_and_of_the_right_kinds():
    kinds = ["first", *("llg" * 7)]
    assert fitting_blocks(kinds, ["first", *"llg"]) == [0, 7, 14, 21]
    assert fitting_blocks(kinds, kinds) == list(range(22))
    assert fitting_blocks(kinds, [*kinds, "l"]) is None
    assert fitting_blocks(["b"] * 12, ["b"] * 6) == [0, 2, 4, 7, 9, 11]


def test_a_student_may_start_from_a_folder_of_its_own_architecture(saved_model):
    folder = saved_model("distilbert", num_hidden_layers=2)
    model = student(saved_model("bert"), {}, {"from": str(folder), "blocks": "first"})
    assert (model.info.architecture, model.info.num_layers, model.source) == ("distilbert", 2, str(folder))
    state = model.build_student(HIDDEN).network.base_model.state_dict()
    for name, tensor in AutoModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_student_that_loses_a_block_computes_what_transformers_computes_of_its_export(
    model_type, saved_model, token_batch, tmp_path
):
    encoder = student(saved_model(model_type), {}, {"from": "teacher"}).build_student(HIDDEN).eval()
    before = {name: id(parameter) for name, parameter in encoder.named_parameters()}
    encoder.keep_blocks([0, 2, 3])
    assert {id(parameter) for parameter in encoder.parameters()} < set(before.values()), "parameters stay the same"
    assert encoder.info.num_layers == 3
    batch = token_batch([7, 4])
    with torch.no_grad():
        signals = encoder(batch, Signals.hidden(["embeddings", 0, 1, 2]))
        encoder.export(tmp_path, float32_weights(encoder))
        network, report = load_export(AutoModel, tmp_path)
        answers = network(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    assert not report["missing_keys"]
    assert network.config.num_hidden_layers == 3
    states = [*answers.hidden_states[:-1], answers.last_hidden_state]
    for block, expected in zip(["embeddings", 0, 1, 2], states, strict=True):
        real = expected[batch.attention_mask.bool()]
        torch.testing.assert_close(signals.tokens(block), real, rtol=1e-4, atol=1e-5)


def test_blocks_to_keep_that_make_no_student_are_refused(saved_model):
    encoder = student(saved_model("bert"), {}, {"from": "teacher"}).build_student(HIDDEN)
    for blocks in ([], [1, 0], [0, 0], [0, 4], [-1, 0]):
        with pytest.raises(InputError, match="must be increasing numbers from 0 to 3"):
            encoder.keep_blocks(blocks)
    modernbert = student(saved_model("modernbert"), {}, {"from": "teacher"}).build_student(HIDDEN)
    with pytest.raises(InputError, match="requires its first block"):
        modernbert.keep_blocks([1, 2])
