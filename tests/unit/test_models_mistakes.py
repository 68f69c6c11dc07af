"""Impossible models: errors before any data is prepared."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdcore.errors import DataError, InputError
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Signals


def teacher(path):
    return TransformersModel(TransformersModel.Config(path=str(path)), "teacher", None)


def student(path, config=None, initialize=None):
    section = {"config": config or {}, "initialize": initialize}
    return TransformersModel(
        TransformersModel.Config.model_validate(section), "student", None if path is None else teacher(path)
    )


@pytest.fixture
def folder(saved_model, tmp_path):
    """A BERT's folder that may be spoilt."""
    return Path(shutil.copytree(saved_model("bert"), tmp_path / "model"))


def state(folder, **changes):
    """Change the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(words, make):
    with pytest.raises(InputError) as error:
        make()
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_an_unsupported_model_type_is_answered_with_those_that_are_and_how_to_add_one(folder):
    words = [*ARCHITECTURES, "`mine` is not supported", "kdcore.Model", "`kdcore.models`"]
    state(folder, model_type="mine")
    refused([str(folder), *words], lambda: teacher(folder))
    refused(["student.config.model_type", *words], lambda: student(None, {"model_type": "mine"}))


def test_an_unknown_model_type_with_code_of_its_own_runs_nothing(folder, tmp_path):
    state(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(["`mine` is not supported"], lambda: teacher(folder))
    assert not (tmp_path / "ran").exists()


OWN_CODE = """
from pathlib import Path

from transformers import BertModel

Path({ran!r}).touch()


class Model(BertModel):
    def forward(self, *arguments, **keywords):
        Path({ran!r}).write_text(f"forward of {{tuple(keywords['input_ids'].shape)}}")
        return super().forward(*arguments, **keywords)
"""


@pytest.fixture
def with_code(folder, tmp_path, monkeypatch):
    """A BERT's folder whose config.json names a class in a file beside it, which leaves a trace when it is run."""
    (folder / "mine.py").write_text(OWN_CODE.format(ran=str(tmp_path / "ran")))
    state(folder, auto_map={"AutoModel": "mine.Model"})
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def teacher_that(trusts, path):
    return TransformersModel(TransformersModel.Config(path=str(path), trust_remote_code=trusts), "teacher", None)


def test_code_that_comes_with_weights_is_neither_run_nor_silently_replaced(with_code, tmp_path):
    words = [
        "mine.Model",
        "teacher.trust_remote_code",
        "requires an explicit",
        "`true`",
        "`false` uses the installed `bert`",
    ]
    refused([str(with_code), *words], lambda: teacher(with_code))
    words = ["mine.Model", "student.trust_remote_code"]
    refused([str(with_code), *words], lambda: student(None, initialize={"from": str(with_code)}))
    teacher_that(False, with_code).load_teacher(Signals.hidden([0]))
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_weights_is_run_if_the_recipe_says_so(with_code, tmp_path, token_batch):
    trusted = teacher_that(True, with_code)
    trusted.load_teacher(Signals.hidden([0]))(token_batch([5, 3]), Signals.hidden([0]))
    assert (tmp_path / "ran").read_text() == "forward of (2, 5)", "rows are not packed for code that may not know them"
    section = {"initialize": {"from": "teacher"}}
    pupil = TransformersModel(TransformersModel.Config.model_validate(section), "student", trusted)
    assert not hasattr(pupil.hf_config, "auto_map"), "an export would name code that does not come with it"
    assert type(pupil.build_student(Signals.hidden([0])).network).__module__.startswith("transformers.")


def test_trust_without_weights_to_trust_is_refused(folder):
    section = {"initialize": {"from": "teacher"}, "trust_remote_code": True}
    config = TransformersModel.Config.model_validate(section)
    refused(["student.trust_remote_code"], lambda: TransformersModel(config, "student", teacher(folder)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, ["config.json has no model_type"]),
        ({"hidden_size": "32"}, ["cannot be read", "hidden_size"]),
        ({"hidden_size": 30}, ["hidden_size 30 is not a multiple of num_attention_heads 4"]),
        ({"is_decoder": True}, ["decoder"]),
        ({"position_embedding_type": "relative_key"}, ["relative_key", "absolute"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "must be a positive integer"]),
        ({"hidden_size": 16}, ["`bert.embeddings.LayerNorm.", "(32,)", "(16,)", "config.json"]),
        ({"vocab_size": 61}, ["word_embeddings.weight", "(60, 32)", "(61, 32)"]),
        ({"model_type": "distilbert"}, ["weights are missing", "`distilbert`"]),
        ({"model_type": "roberta"}, ["weights are missing", "`roberta`"]),
    ],
)
def test_a_teacher_whose_config_is_not_its_own_is_refused(changes, words, folder):
    state(folder, **changes)
    refused([str(folder), *words], lambda: teacher(folder))


def test_a_teacher_with_fewer_blocks_than_its_config_promises_is_refused(folder):
    state(folder, num_hidden_layers=6)
    model = teacher(folder)
    model.load_teacher(Signals.hidden([3]))
    refused(["encoder.layer.4"], lambda: model.load_teacher(Signals.hidden([5])))


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_a_teacher_without_weights_is_refused(content, folder):
    (folder / "model.safetensors").unlink()
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    refused([str(folder), "weights cannot be loaded", "model.safetensors"], lambda: teacher(folder))


def test_a_folder_or_name_that_leads_nowhere_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(["neither an existing folder nor a model on the hub"], lambda: teacher(tmp_path / "nowhere"))
    (folder / "config.json").write_text("{")
    refused(["config.json: is not valid JSON"], lambda: teacher(folder))
    (folder / "config.json").unlink()
    refused(["config.json is missing"], lambda: teacher(folder))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_read_as_weights_only(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    teacher(folder).load_teacher(Signals.hidden([3]))

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(weights | {"code": Code()}, folder / "pytorch_model.bin")
    message = refused(["pytorch_model.bin", "objects other than weights"], lambda: teacher(folder))
    assert "weights_only" not in message
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    refused([str(folder)], lambda: teacher(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layer": 2}, ["student.config.num_hidden_layer", "`num_hidden_layers`"]),
        ({"num_hidden_layers": "2"}, ["num_hidden_layers", "expected int", "'2'"]),
        ({"num_hidden_layers": 2.0}, ["num_hidden_layers"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "must be a positive integer", "0"]),
        ({"hidden_size": -32}, ["hidden_size", "must be a positive integer", "-32"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_attention_heads": 0}, ["num_attention_heads"]),
        ({"num_attention_heads": 5}, ["not a multiple"]),
        ({"intermediate_size": 0}, ["intermediate_size"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings"]),
        ({"vocab_size": [60]}, ["vocab_size"]),
        ({"pad_token_id": 60}, ["pad_token_id 60 is outside the vocabulary"]),
        ({"hidden_act": "gelo"}, ["gelo"]),
        ({"is_decoder": True}, ["decoder"]),
        ({"model_type": "roberta", "pad_token_id": 50}, ["positions of `roberta` start after its pad_token_id"]),
        ({"model_type": "roberta", "pad_token_id": None}, ["requires a pad_token_id"]),
        ({"model_type": "modernbert", "num_hidden_layers": "x"}, ["num_hidden_layers"]),
        ({"model_type": "modernbert", "layer_types": ["full_attention"]}, ["layer_types"]),
        ({"model_type": "modernbert", "layer_types": "local"}, ["layer_types"]),
        (
            {"model_type": "modernbert", "hidden_size": 36},
            ["network cannot be built"],
        ),  # heads of 9 cannot be rotated by halves
        ({"model_type": "modernbert", "global_attn_every_n_layers": 0}, ["student.config"]),
        ({"model_type": "distilbert", "n_layers": 0}, ["must be a positive integer"]),
    ],
    ids=str,
)
def test_a_student_that_cannot_be_is_refused_in_words(config, words, saved_model):
    refused(["student.config", *words], lambda: student(saved_model("bert"), config))


def test_a_student_without_a_teacher_must_say_its_architecture():
    refused(["student.config", "model_type: bert"], lambda: student(None, {"hidden_size": 32}))
    refused(["student.initialize.from", "no teacher"], lambda: student(None, {}, {"from": "teacher"}))


@pytest.mark.parametrize(
    ("config", "blocks", "words"),
    [
        (
            {"model_type": "distilbert"},
            "first",
            ["a `distilbert` student cannot be initialised from the blocks of a `bert`"],
        ),
        ({"num_hidden_layers": 3}, "uniform", ["multiple", "for example"]),
        ({"num_hidden_layers": 5}, "last", ["only 4"]),
        ({"num_hidden_layers": 2}, [0], ["listed blocks, 1, differs from the student's 2"]),
        ({"num_hidden_layers": 2}, [0, 4], ["source block 4 does not exist", "0 to 3"]),
        ({"hidden_size": 16}, "first", ["(60, 32) in the source", "(60, 16) in the student"]),
        ({"max_position_embeddings": 20}, "first", ["position_embeddings", "(40, 32)", "(20, 32)"]),
        ({"num_attention_heads": 2}, "first", ["num_attention_heads is 4", "2 in the student"]),
        ({"tie_word_embeddings": False}, "first", ["tie_word_embeddings is true"]),
    ],
    ids=str,
)
def test_copying_that_does_not_fit_is_refused_before_weights_are_read(config, blocks, words, saved_model):
    initialize = {"from": "teacher", "blocks": blocks}
    refused(["student.", *words], lambda: student(saved_model("bert"), config, initialize))


def test_biases_that_only_one_side_has_are_told(saved_model):
    initialize = {"from": "teacher", "blocks": "first"}
    refused(
        ["in only one of source and student", "bias"],
        lambda: student(saved_model("modernbert"), {"norm_bias": True}, initialize),
    )


def test_predictions_are_refused_of_a_teacher_without_a_head(saved_model):
    request = Signals.predictions("masked")
    refused(["no masked-LM head"], lambda: teacher(saved_model("bert", head=False)).load_teacher(request))


def test_outputs_that_a_config_asks_for_are_left_out(folder, token_batch):
    state(folder, output_attentions=True, output_hidden_states=True, return_dict=False)
    encoder = teacher(folder).load_teacher(Signals.hidden([3]))
    assert encoder(token_batch([4, 2]), Signals.hidden([3])).tokens(3).shape == (6, 32)


def test_the_vocabulary_is_that_of_the_tokenizer_beside_the_weights(folder, tokenizer_folder, saved_model):
    assert teacher(folder).vocabulary() is None
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder)
    vocabulary = teacher(folder).vocabulary()
    assert vocabulary is not None
    assert vocabulary["[MASK]"] == 4
    assert student(folder).vocabulary() is None, "random weights mean nothing yet"
    assert student(folder, {}, {"from": "teacher"}).vocabulary() == vocabulary
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer cannot be loaded"):
        teacher(folder).vocabulary()
