"""Folders that `budget_bert` reads and writes: how plain transformers loads them, and what cannot be copied."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcore_budget_bert import BudgetBertForSequenceClassification
from kdcore_budget_bert.model import BudgetBert, save
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

from kdcore import Batch, Encoder, InputError, Signals, TransformersModel

PLAIN = {"norm_position": "post", "norm": "layer_norm", "embedding_norm": True}
PRE = {"norm_position": "pre", "norm": "layer_norm", "embedding_norm": False}
OTHERS = [
    PRE,
    PRE | {"norm": "rms_norm", "embedding_norm": True},
    PLAIN | {"embedding_norm": False},
    PLAIN | {"norm": "rms_norm"},
]
REQUEST = Signals.hidden(["embeddings", 0, 1]) | Signals.predictions("all")


def teacher(path: Path, cls: type[TransformersModel] = BudgetBert) -> TransformersModel:
    return cls(cls.Config(path=str(path)), "teacher", None)


def student(path: Path | None, config: dict[str, Any], initialize: Any = None, cls: Any = BudgetBert) -> BudgetBert:
    section = {"config": config, "initialize": initialize}
    of = None if path is None else teacher(path, TransformersModel)
    return cls(cls.Config.model_validate(section), "student", of)


def shaken(encoder: Encoder) -> Encoder:
    """The encoder with other weights: biases and norms are no longer 0 and 1."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def export(encoder: Encoder, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    encoder.export(folder, {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()})


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = torch.randint(5, 55, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    index = mask.flatten().nonzero().flatten()
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(tokens, mask, mask.sum(1).numpy(), index, none, none)


def answers(network: Any, batch: Batch) -> Any:
    with torch.no_grad():
        return network.eval()(batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)


@torch.no_grad()
def assert_answers_alike(encoder: Encoder, network: Any, batch: Batch) -> None:
    signals, outputs = encoder(batch, REQUEST), answers(network, batch)
    for place, states in zip(("embeddings", 0, 1), outputs.hidden_states, strict=True):
        torch.testing.assert_close(states.flatten(0, 1)[batch.token_index], signals.tokens(place), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        outputs.logits.flatten(0, 1)[batch.token_index], signals.logits("all"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_post_ln_with_layer_norm_is_exported_as_the_bert_that_it_is(
    tied: bool, bert_folder: Path, batch: Batch, tmp_path: Path
) -> None:
    encoder = shaken(
        student(bert_folder, PLAIN | {"num_hidden_layers": 2, "tie_word_embeddings": tied}).build_student(REQUEST)
    )
    export(encoder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    stated = json.loads((tmp_path / "config.json").read_text())
    assert (stated["model_type"], stated["architectures"]) == ("bert", ["BertForMaskedLM"])
    assert not {"auto_map", *PLAIN} & stated.keys()
    assert stated.items() >= {"dtype": "float32", "tie_word_embeddings": tied, "hidden_size": 32}.items()
    network, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(network) is BertForMaskedLM
    assert not report["missing_keys"]
    assert not report["unexpected_keys"] - {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert_answers_alike(encoder, network, batch)
    bare, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(bare) is BertModel
    assert not report["missing_keys"]
    assert not any("kdcore" in path.read_text() for path in tmp_path.glob("*.json"))


@torch.no_grad()
def test_a_classifier_in_that_form_is_saved_as_berts(bert_folder: Path, batch: Batch, tmp_path: Path) -> None:
    config = student(bert_folder, PLAIN).hf_config
    config.num_labels = 3
    network = BudgetBertForSequenceClassification(config).eval()
    save(network, tmp_path, network.state_dict())
    again, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is BertForSequenceClassification
    assert not any(report.values())
    logits = [one(batch.input_ids, attention_mask=batch.attention_mask.long()).logits for one in (network, again)]
    torch.testing.assert_close(*logits)


LOAD_ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("kdcore"):
            raise ModuleNotFoundError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
*folders, given, into = sys.argv[1:]
inputs, found = torch.load(given), []
for folder in folders:
    for cls in (AutoModel, AutoModelForMaskedLM):
        network, report = cls.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not report["missing_keys"], report
        with torch.no_grad():
            found.append(network(**inputs)[0])
    network = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, num_labels=3)
    network(**inputs, labels=torch.tensor([0, 2])).loss.backward()
    assert network.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    network.save_pretrained(folder + "-tuned")
    again = AutoModelForSequenceClassification.from_pretrained(folder + "-tuned", trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, network.eval()(**inputs).logits)
    assert AutoTokenizer.from_pretrained(folder)("ab").input_ids
assert not any(name.startswith("kdcore") for name in sys.modules)
torch.save(found, into)
"""


def test_other_forms_load_and_are_fine_tuned_where_kdcore_is_not_installed(
    bert_folder: Path, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    torch.save(inputs, tmp_path / "inputs.pt")
    expected, folders = [], []
    for number, form in enumerate(OTHERS[::3]):
        encoder = shaken(student(bert_folder, form | {"num_hidden_layers": 2}).build_student(REQUEST))
        folders.append(tmp_path / f"export{number}")
        export(encoder, folders[-1])
        assert sorted(path.name for path in folders[-1].iterdir()) == [
            "config.json",
            "model.safetensors",
            "modeling_budget_bert.py",
        ]
        AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folders[-1])
        with torch.no_grad():
            signals = encoder(batch, REQUEST)
        expected += [signals.tokens(1), signals.logits("all")]
    arguments = [*map(str, folders), str(tmp_path / "inputs.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run([sys.executable, "-c", LOAD_ALONE, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(expected, torch.load(tmp_path / "found.pt"), strict=True):
        torch.testing.assert_close(theirs.flatten(0, 1)[batch.token_index], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [PLAIN, *OTHERS], ids=str)
def test_an_export_is_a_teacher_and_a_students_first_weights(
    form: dict[str, Any], bert_folder: Path, batch: Batch, tmp_path: Path
) -> None:
    encoder = shaken(student(bert_folder, form | {"num_hidden_layers": 2}).build_student(REQUEST))
    export(encoder, tmp_path)
    described = teacher(tmp_path)
    assert described.info == encoder.info
    own = BudgetBert.Config.model_validate({"initialize": {"from": "teacher"}})
    other = student(bert_folder, {}, {"from": str(tmp_path)})
    assert other.source == str(tmp_path)
    with torch.no_grad():
        expected = encoder(batch, REQUEST)
        for again in (
            described.load_teacher(REQUEST),
            BudgetBert(own, "student", described).build_student(REQUEST),
            other.build_student(REQUEST),
        ):
            signals = again.eval()(batch, REQUEST)
            for place in ("embeddings", 0, 1):
                torch.testing.assert_close(signals.tokens(place), expected.tokens(place))
            torch.testing.assert_close(signals.logits("all"), expected.logits("all"))


def test_fine_tuning_loads_an_export_without_trust_where_the_package_is_imported(
    bert_folder: Path, batch: Batch, tmp_path: Path
) -> None:
    encoder = student(bert_folder, PRE | {"num_hidden_layers": 2}).build_student(REQUEST)
    export(encoder, tmp_path)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert type(network).__module__ == "kdcore_budget_bert.modeling_budget_bert"
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    losses = []
    for _ in range(15):
        loss = network.train()(**inputs, labels=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_labels_give_the_mean_cross_entropy_of_what_is_labelled(bert_folder: Path, batch: Batch) -> None:
    network = student(bert_folder, PRE).build_student(REQUEST).get_submodule("network").eval()
    labels = torch.full_like(batch.input_ids, -100)
    labels[0, 2], labels[1, 3] = 7, 9
    outputs = network(batch.input_ids, labels, attention_mask=batch.attention_mask)
    scores = outputs.logits.log_softmax(-1)
    torch.testing.assert_close(outputs.loss, -(scores[0, 2, 7] + scores[1, 3, 9]) / 2)


def test_a_berts_blocks_embeddings_and_head_are_copied(bert_folder: Path, batch: Batch) -> None:
    model = student(bert_folder, {"num_hidden_layers": 2}, {"from": "teacher", "blocks": [1, 3]})
    encoder = model.build_student(REQUEST).eval()
    source = BertForMaskedLM.from_pretrained(bert_folder)
    del source.bert.encoder.layer[2], source.bert.encoder.layer[0]
    assert_answers_alike(encoder, source, batch)
    assert model.vocabulary() == AutoTokenizer.from_pretrained(bert_folder).get_vocab()


def test_a_berts_whole_is_answered_for_alike_by_both_models(bert_folder: Path, batch: Batch) -> None:
    request = Signals.hidden(["embeddings", *range(4)]) | Signals.attention(["key"], [2]) | Signals.predictions("all")
    with torch.no_grad():
        ours, plain = (
            teacher(bert_folder, cls).load_teacher(request).eval()(batch, request)
            for cls in (BudgetBert, TransformersModel)
        )
    for block in ("embeddings", *range(4)):
        torch.testing.assert_close(ours.tokens(block), plain.tokens(block))
    torch.testing.assert_close(next(ours.heads("key", 2)).states, next(plain.heads("key", 2)).states)
    torch.testing.assert_close(ours.logits("all"), plain.logits("all"))


def test_a_student_takes_from_its_teacher_what_is_not_said(bert_folder: Path, tmp_path: Path) -> None:
    config = student(bert_folder, {"num_hidden_layers": 2}).hf_config
    assert {key: getattr(config, key) for key in PLAIN} == PLAIN
    assert (config.hidden_size, config.intermediate_size, config.max_position_embeddings) == (32, 48, 40)
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    RobertaModel(
        RobertaConfig(**sizes, max_position_embeddings=22, pad_token_id=1, intermediate_size=40)
    ).save_pretrained(tmp_path)
    config = student(tmp_path, {}).hf_config
    assert {key: getattr(config, key) for key in PRE} == PRE, "the defaults beside a teacher that is not a BERT"
    assert (config.num_hidden_layers, config.intermediate_size, config.max_position_embeddings) == (3, 40, 20)
    assert config.pad_token_id == 1
    alone = student(None, sizes).hf_config
    assert {key: getattr(alone, key) for key in PRE} == PRE
    assert alone.num_hidden_layers == 3


def test_norms_by_their_old_names_are_read(bert_folder: Path, batch: Batch, tmp_path: Path) -> None:
    """As in Google's own files."""
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    request = Signals.hidden([1])
    with torch.no_grad():
        new, from_old = (
            teacher(path).load_teacher(request)(batch, request).tokens(1) for path in (bert_folder, tmp_path)
        )
    torch.testing.assert_close(new, from_old)


def refused(make: Any, *words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    for word in words:
        assert word in str(error.value), (word, str(error.value))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"norm_positon": "pre"}, ["student.config.norm_positon", "`norm_position`"]),
        ({"norm_position": "before"}, ["norm_position", "pre", "post", "before"]),
        ({"norm": "pytorch"}, ["norm", "layer_norm", "rms_norm", "pytorch"]),
        ({"embedding_norm": "yes"}, ["embedding_norm", "bool"]),
        ({"num_attention_heads": 5}, ["32 is not a multiple", "5"]),
        ({"hidden_act": "gelo"}, ["gelo"]),
        ({"hidden_size": 0}, ["hidden_size", "must be a positive integer"]),
        ({"is_decoder": True}, ["decoder"]),
        ({"model_type": "bert"}, ["student.config.model_type", "`bert` is not supported by this model", "budget-bert"]),
    ],
    ids=str,
)
def test_a_student_that_cannot_be_is_refused_in_words(
    config: dict[str, Any], words: list[str], bert_folder: Path
) -> None:
    refused(lambda: student(bert_folder, config), "student.config", *words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"norm_position": "pre"}, ["student.config.norm_position", '"post" in the source', '"pre" in the student']),
        ({"norm": "rms_norm"}, ["student.config.norm", '"layer_norm" in the source']),
        (
            {"embedding_norm": False},
            ["student.config.embedding_norm", "true in the source", "would produce different results"],
        ),
        ({"tie_word_embeddings": False}, ["student.config.tie_word_embeddings"]),
        ({"hidden_size": 16}, ["in the source", "in the student"]),
        ({"num_attention_heads": 2}, ["student.config.num_attention_heads"]),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_copied_is_refused_before_weights_are_read(
    config: dict[str, Any], words: list[str], bert_folder: Path
) -> None:
    refused(lambda: student(bert_folder, config, {"from": "teacher"}), "student", *words, "or remove `initialize`")


def test_folders_of_other_models_are_refused_with_those_that_are_read(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | {"model_type": "roberta"}))
    words = ["`roberta` is not supported by this model", "bert", "budget-bert"]
    refused(lambda: teacher(tmp_path), *words)
    refused(lambda: student(bert_folder, {}, {"from": str(tmp_path)}), *words)


def test_a_budget_bert_beside_the_model_transformers_is_told_to_say_what_it_shall_be(
    bert_folder: Path, tmp_path: Path
) -> None:
    export(student(bert_folder, PRE | {"num_hidden_layers": 2}).build_student(REQUEST), tmp_path)
    described = teacher(tmp_path)

    def plain(config: dict[str, Any]) -> TransformersModel:
        return TransformersModel(TransformersModel.Config(config=config), "student", described)

    refused(lambda: plain({}), "student.config", "cannot have the teacher's `budget-bert`", "model_type: bert")
    config = plain({"model_type": "bert"}).hf_config
    assert isinstance(config, BertConfig)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (32, 2, 48)
    refused(lambda: teacher(tmp_path, TransformersModel), "`budget-bert` is not supported by the model `transformers`")


def test_weights_that_are_not_of_the_form_in_the_configuration_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    export(student(bert_folder, PRE | {"num_hidden_layers": 2}).build_student(REQUEST), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "final_norm" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: student(bert_folder, {}, {"from": str(tmp_path)}), str(tmp_path), "final_norm")
