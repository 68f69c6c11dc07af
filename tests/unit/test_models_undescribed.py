"""Encoders of transformers without a description: what works equals the plain models, the rest is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcore_testing import check_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.utils import logging

from kdcore import Architecture, Head, InputError, ScoreMaps, Signals, TransformersModel, load_recipe
from kdcore.training.run.build import make_plan

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
}
OWN_KEYS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 20},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 20},
    "xmod": {"default_language": "en_XX"},
}
WORKING = [
    "albert",
    "bert-generation",
    "deberta",
    "esm",
    "eurobert",
    "flaubert",
    "gte",
    "megatron-bert",
    "nomic_bert",
    "rembert",
    "roc_bert",
    "roformer",
    "xlm",
    "xmod",
]
WITH_ATTENTION = {"albert", "bert-generation", "esm", "eurobert", "gte", "nomic_bert", "roc_bert", "xmod"}
WITHOUT_HEAD = {"bert-generation"}
WITHOUT_CLASSES = {"bert-generation"}
COPIES_BLOCKS = set(WORKING) - {"esm", "flaubert", "xlm"}  # esm: the size of a head depends on the number of blocks
LENGTHS = (13, 4, 20, 9)
PLACES: list[Any] = ["embeddings", 0, 1, 2, 3]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a small encoder with random weights: `folder_of(model_type, auto_class)`."""
    made: dict[Any, Path] = {}

    def save(model_type: str, auto: Any = None, **labels: Any) -> Path:
        if auto is None:
            auto = AutoModel if model_type in WITHOUT_HEAD else AutoModelForMaskedLM
        key = model_type, auto.__name__
        if key not in made:
            network = auto.from_config(
                AutoConfig.for_model(model_type, **SIZES | OWN_KEYS.get(model_type, {}) | labels)
            )
            generator = torch.Generator().manual_seed(len(made))
            with torch.no_grad():
                for parameter in network.parameters():
                    around = 1.0 if parameter.dim() == 1 else 0.0
                    parameter.normal_(around, 0.2, generator=generator)
            made[key] = tmp_path_factory.mktemp(model_type)
            network.save_pretrained(made[key])
        return made[key]

    return save


def teacher_of(folder: Path) -> TransformersModel:
    return TransformersModel(TransformersModel.Config(path=str(folder)), "teacher", None)


def student_of(teacher: TransformersModel | None, **keys: Any) -> TransformersModel:
    return TransformersModel(TransformersModel.Config.model_validate(keys), "student", teacher)


def plain(auto: Any, folder: Path) -> Any:
    logging.set_verbosity_error()
    network, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report["missing_keys"]
    return network.eval()


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4 * other.abs().max().item())


@pytest.mark.parametrize("model_type", WORKING)
@torch.no_grad()
def test_hidden_states_and_predictions_of_a_teacher_are_the_plain_models(model_type, folder_of, token_batch):
    folder, batch = folder_of(model_type), token_batch(LENGTHS)
    teacher = teacher_of(folder)
    request = Signals.hidden(PLACES)
    if model_type not in WITHOUT_HEAD:
        request |= Signals.predictions("masked") | Signals.predictions("all")
    signals = teacher.load_teacher(request).eval()(batch, request)
    network = plain(AutoModel if model_type in WITHOUT_HEAD else AutoModelForMaskedLM, folder)
    outputs = network(batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
    for place, states in zip(PLACES, outputs.hidden_states, strict=True):
        assert_close(signals.tokens(place), states.flatten(0, 1)[batch.token_index])
        assert_close(signals.first(place), states[:, 0])
    if model_type not in WITHOUT_HEAD:
        assert_close(signals.logits("masked"), outputs.logits.flatten(0, 1)[batch.masked_index])
        assert_close(signals.logits("all"), outputs.logits.flatten(0, 1)[batch.token_index])


@pytest.mark.parametrize("model_type", sorted(WITH_ATTENTION))
@torch.no_grad()
def test_attention_signals_give_the_plain_models_attention(model_type, folder_of, token_batch):
    folder, batch = folder_of(model_type), token_batch(LENGTHS)
    request = Signals.attention(["query", "key"], range(4))
    signals = teacher_of(folder).load_teacher(request).eval()(batch, request)
    network = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()  # its pooler is random
    mask = batch.attention_mask
    attentions = network(batch.input_ids, attention_mask=mask.long(), output_attentions=True).attentions
    for block in range(4):
        (query,), (key,) = (signals.heads(part, block) for part in ("query", "key"))
        scores = query.states @ key.states.transpose(-1, -2) * query.scale
        found = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
        assert_close(found.transpose(1, 2)[mask], attentions[block].transpose(1, 2)[mask])
    itself = ScoreMaps.attention(signals, 3).kl_from(ScoreMaps.attention(signals, 3))
    assert abs(itself) < 1e-4


@pytest.mark.parametrize("model_type", sorted(set(WORKING) - WITH_ATTENTION))
def test_attention_that_a_network_does_not_show_is_refused(model_type, folder_of):
    teacher = teacher_of(folder_of(model_type))
    assert not teacher.info.attention
    with pytest.raises(InputError, match=f"query, key or value, which the teacher's `{model_type}` does not provide"):
        teacher.load_teacher(Signals.attention(["query"], [0]))


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_loss_on_attention_is_refused_with_its_line_before_data_is_prepared(side, folder_of, saved_model, tmp_path):
    teacher, model_type = (folder_of("rembert"), "bert") if side == "teacher" else (saved_model("bert"), "rembert")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""\
run: {{name: test}}
teacher: {{path: {teacher}}}
student: {{config: {{model_type: {model_type}}}}}
task: {{name: masked_lm, data: {{tokenizer: nowhere, corpora: [{{name: text, path: nowhere.txt}}]}}}}
losses:
  hidden_mse: {{}}
  attention_kl: {{layers: last}}
training: {{budget: {{steps: 1}}, batch_size: 2}}
"""
    )
    with pytest.raises(InputError) as error:
        make_plan(load_recipe(recipe))
    assert f"{recipe}:7: losses.attention_kl: `attention_kl` reads query, key or value" in str(error.value)
    assert f"the {side} does not provide: transformers' `rembert`" in str(error.value)


@pytest.mark.parametrize("model_type", WORKING)
def test_requirements_on_every_model(model_type, folder_of):
    copies = {"initialize": {"from": "teacher", "blocks": [1, 3]}} if model_type in COPIES_BLOCKS else {}
    student = {"config": {"num_hidden_layers": 2}, **copies}
    check_model("transformers", teacher={"path": str(folder_of(model_type))}, student=student)


@pytest.mark.parametrize("model_type", sorted(set(WORKING) - WITHOUT_HEAD))
@torch.no_grad()
def test_an_exported_student_predicts_as_before(model_type, folder_of, token_batch, tmp_path):
    batch = token_batch(LENGTHS)
    student = student_of(teacher_of(folder_of(model_type)), config={"num_hidden_layers": 2})
    request = Signals.hidden([1]) | Signals.predictions("all")
    encoder = student.build_student(request).eval()
    encoder.export(tmp_path, {name: one.detach().clone() for name, one in encoder.state_dict().items()})
    network = plain(AutoModelForMaskedLM, tmp_path)
    plain(AutoModel, tmp_path)
    logits = network(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    assert_close(encoder(batch, request).logits("all"), logits.flatten(0, 1)[batch.token_index])


@pytest.mark.parametrize(
    ("head", "auto"),
    [
        (Head.sequence_classes(("a", "b", "c")), AutoModelForSequenceClassification),
        (Head.token_classes(("a", "b", "c")), AutoModelForTokenClassification),
    ],
    ids=["sequence", "token"],
)
@pytest.mark.parametrize("model_type", sorted(set(WORKING) - WITHOUT_CLASSES))
def test_heads_for_classes_are_transformers(head, auto, model_type, folder_of, token_batch, tmp_path):
    batch = token_batch(LENGTHS)
    student = student_of(teacher_of(folder_of(model_type)), config={"num_hidden_layers": 2})
    student.set_heads([head])
    if student.info.head(head.name) is None:
        pytest.skip(f"transformers has no {auto.__name__} for {model_type}")
    request = Signals.head(head.name)
    encoder = student.build_student(request).eval()
    outputs = encoder(batch, request).outputs(head.name)
    outputs.square().sum().backward()
    assert any(one.grad is not None and one.grad.abs().max() > 0 for one in encoder.parameters())
    encoder.export(tmp_path, {name: one.detach().clone() for name, one in encoder.state_dict().items()})
    with torch.no_grad():
        logits = plain(auto, tmp_path)(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    expected = logits if head.level == "sequence" else logits.flatten(0, 1)[batch.token_index]
    assert_close(outputs.detach(), expected)


def test_albert_shares_its_blocks_with_a_student_of_any_depth(folder_of, token_batch):
    """A student that copies the teacher's weights is the teacher with fewer repetitions of its block."""
    teacher, batch = teacher_of(folder_of("albert")), token_batch(LENGTHS)
    student = student_of(teacher, config={"num_hidden_layers": 2}, initialize={"from": "teacher", "blocks": "first"})
    request = Signals.hidden(["embeddings", 0, 1])
    own, theirs = student.build_student(request).eval(), teacher.load_teacher(request).eval()
    assert sum(one.numel() for one in own.parameters()) == sum(
        one.numel() for one in student_of(teacher, initialize={"from": "teacher"}).build_student(request).parameters()
    )
    with torch.no_grad():
        for place in ("embeddings", 0, 1):
            assert_close(own(batch, request).tokens(place), theirs(batch, request).tokens(place))


@pytest.mark.parametrize(
    ("model_type", "words", "keys"),
    [
        (
            "funnel",
            "its configuration has no max_position_embeddings",
            {"n_head": 4, "block_sizes": [2, 2]},
        ),
        ("xlnet", "its configuration has no max_position_embeddings", {"n_layer": 2}),
        ("convbert", "hidden state 1 of real tokens depends on the length of the padding", SIZES),
        ("nystromformer", "hidden state 1 of real tokens depends on the length of the padding", SIZES),
        ("fnet", "has no argument `attention_mask`", SIZES),
        ("bart", "encoder with a decoder", {}),
        ("gpt2", "do not depend on the tokens after it, as in a decoder", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("canine", "the number of its hidden states is 7", SIZES),
        ("vit", "its configuration has no vocab_size", {}),
        ("bros", "bbox", SIZES),
    ],
)
def test_models_that_are_no_encoders_of_independent_rows_are_refused_by_name(model_type, words, keys, tmp_path):
    AutoConfig.for_model(model_type, **keys).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        teacher_of(tmp_path)
    assert f"`{model_type}`" in str(error.value)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_blocks_that_are_not_in_one_list_cannot_be_copied(folder_of):
    keys = {"config": {"num_hidden_layers": 2}, "initialize": {"from": "teacher", "blocks": [1, 3]}}
    with pytest.raises(InputError, match="exists in only one of source and student"):
        student_of(teacher_of(folder_of("xlm")), **keys)


def test_an_examination_leaves_the_random_numbers_alone(folder_of):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    teacher_of(folder_of("gte"))
    assert torch.equal(torch.rand(3), expected)


def test_the_kit_counts_the_blocks_that_an_architecture_lists_and_the_network_runs(folder_of):
    """ALBERT's network has one block, which it runs four times; the documented route lists what it has."""

    class Described(TransformersModel):
        architectures = {  # noqa: RUF012
            "albert": Architecture(
                "albert",
                blocks="encoder.albert_layer_groups",
                lm_head=lambda network, rows: network.predictions(rows),
                lm_head_classes=("AlbertForMaskedLM",),
            )
        }

    with pytest.raises(AssertionError, match="the teacher's forward pass ran 1 of the 4 listed blocks"):
        check_model(Described, teacher={"path": str(folder_of("albert"))}, student={"config": {}})
