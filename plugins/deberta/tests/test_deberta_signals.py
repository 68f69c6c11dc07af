"""Signals of `deberta`, compared with the plain models of transformers; exports, and keys that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_deberta.deberta import Deberta
from kdcore_testing import check_model
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from kdcore import Batch, Head, InputError, ScoreMaps, Signals, TransformersModel

FORMS = ["v3", "v2-xlarge", "own-projections", "c2p-only", "p2c-only", "unknown-term", "absolute"]
LENGTHS = (13, 4, 30, 1)
PLACES: list[Any] = ["embeddings", 0, 1, 2, 3]
EVERYTHING = (
    Signals.hidden(PLACES)
    | Signals.attention(["query", "key", "value"], range(4))
    | Signals.predictions("masked")
    | Signals.predictions("all")
)
Folder = Callable[..., Path]


def batch_of(*lengths: int, width: int | None = None) -> Batch:
    """Make sequences whose tokens depend only on their positions."""
    width = width or max(lengths)
    tokens = np.random.default_rng(3).integers(5, 60, (len(lengths), 40))[:, :width]
    real = np.arange(width) < np.asarray(lengths)[:, None]
    masked = real & (np.arange(width) % 3 == 0)
    return Batch(
        input_ids=torch.from_numpy(np.where(real, tokens, 0)),
        attention_mask=None if real.all() else torch.from_numpy(real),
        lengths=real.sum(1),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.from_numpy(np.flatnonzero(masked)),
        masked_labels=torch.from_numpy(tokens[masked]),
    )


def teacher_of(folder: Path) -> Deberta:
    return Deberta(Deberta.Config(path=str(folder)), "teacher", None)


def student_of(teacher: TransformersModel | None, **keys: Any) -> Deberta:
    return Deberta(Deberta.Config.model_validate(keys), "student", teacher)


def plain(cls: Any, folder: Path) -> Any:
    return cls.from_pretrained(folder, attn_implementation="eager").eval().double()


def assert_close(one: Tensor, other: Tensor) -> None:
    """transformers rounds the scale of the scores to float32, whatever the precision of the model."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20)], ids=["ragged", "full"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_hidden_states_and_predictions_are_those_of_transformers(
    form: str, lengths: tuple[int, ...], deberta_folder: Folder
) -> None:
    folder, batch = deberta_folder(form), batch_of(*lengths)
    signals = teacher_of(folder).load_teacher(EVERYTHING).eval().double()(batch, EVERYTHING)
    network = plain(AutoModelForMaskedLM, folder)
    # transformers' convolution subtracts the mask from 1, which a bool mask does not support.
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
    outputs = network(batch.input_ids, attention_mask=mask, output_hidden_states=True)
    for place, states in zip(PLACES, outputs.hidden_states, strict=True):
        assert_close(signals.tokens(place), states.flatten(0, 1)[batch.token_index])
    assert_close(signals.logits("masked"), outputs.logits.flatten(0, 1)[batch.masked_index])
    assert_close(signals.logits("all"), outputs.logits.flatten(0, 1)[batch.token_index])


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_query_key_scale_and_bias_give_the_attention_of_transformers(form: str, deberta_folder: Folder) -> None:
    folder, batch = deberta_folder(form), batch_of(*LENGTHS)
    signals = teacher_of(folder).load_teacher(EVERYTHING).eval().double()(batch, EVERYTHING)
    assert batch.attention_mask is not None
    network = plain(AutoModel, folder)
    attentions = network(batch.input_ids, attention_mask=batch.attention_mask.long(), output_attentions=True).attentions
    for block in range(4):
        (query,), (key,), (value,) = (signals.heads(part, block) for part in ("query", "key", "value"))  # type: ignore[arg-type]
        assert query.pattern is not None
        assert (query.pattern.bias is None) == (form == "absolute")
        scores = query.states @ key.states.transpose(-1, -2) * query.scale
        if query.pattern.bias is not None:
            scores = scores + query.pattern.bias
        scores = scores.masked_fill(~batch.attention_mask[:, None, None, :], -torch.inf)
        found = scores.softmax(-1).transpose(1, 2)[batch.attention_mask]
        assert_close(found, attentions[block].transpose(1, 2)[batch.attention_mask])
        projection = network.encoder.layer[block].attention.self.value_proj
        states = signals.tokens(block - 1 if block else "embeddings")
        assert_close(value.states.transpose(1, 2).flatten(2)[batch.attention_mask], projection(states))


def test_gradients_of_an_attention_loss_reach_the_positions(deberta_folder: Folder) -> None:
    """The reference is the divergence of transformers' own probabilities, with gradients by autograd."""
    folder, batch = deberta_folder("own-projections"), batch_of(9, 5)
    request = Signals.attention(["query", "key"], [0, 1])
    teacher = teacher_of(folder)
    theirs = teacher.load_teacher(request).eval().double()
    student = student_of(teacher, initialize={"from": "teacher"}).build_student(request).eval().double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected = ScoreMaps.attention(theirs(batch, request), 1)
    loss = ScoreMaps.attention(student(batch, request), 1).kl_from(expected)
    loss.backward()
    own = plain(AutoModel, folder)
    weights = {name.removeprefix("network.deberta."): tensor for name, tensor in student.state_dict().items()}
    own.load_state_dict({name: weights[name] for name in own.state_dict()})
    assert batch.attention_mask is not None
    mask = batch.attention_mask.long()
    seen = batch.attention_mask[:, None, :, None] & batch.attention_mask[:, None, None, :]
    own_logs, target_logs = (
        network(batch.input_ids, attention_mask=mask, output_attentions=True).attentions[1].masked_fill(~seen, 1).log()
        for network in (own, plain(AutoModel, folder))
    )
    divergences = target_logs.detach().exp() * (target_logs.detach() - own_logs)
    reference = divergences.masked_fill(~seen, 0).sum()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-7)
    reference.backward()
    gradients = {name.removeprefix("network.deberta."): one.grad for name, one in student.named_parameters()}
    for name, parameter in own.named_parameters():
        if parameter.grad is not None and "layer.0" in name:
            found = gradients[name]
            assert found is not None
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)
    assert own.encoder.rel_embeddings.weight.grad.abs().max() > 0
    found = gradients["encoder.rel_embeddings.weight"]
    torch.testing.assert_close(found, own.encoder.rel_embeddings.weight.grad, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_embeddings_alone_run_no_block(deberta_folder: Folder) -> None:
    folder, batch = deberta_folder("v2-xlarge"), batch_of(4, 2)
    request = Signals.hidden(["embeddings"])
    found = teacher_of(folder).load_teacher(request).eval()(batch, request).tokens("embeddings")
    assert batch.attention_mask is not None
    mask = batch.attention_mask.long()
    states = AutoModel.from_pretrained(folder).eval()(batch.input_ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(found, states.hidden_states[0].flatten(0, 1)[batch.token_index])


@pytest.mark.parametrize("form", FORMS)
def test_requirements_on_every_model(form: str, deberta_folder: Folder) -> None:
    initialize = {"from": "teacher", "blocks": [0, 2]}
    student = {"config": {"num_hidden_layers": 2}, "initialize": initialize}
    check_model("deberta", teacher={"path": str(deberta_folder(form))}, student=student)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_an_export_loads_with_its_auto_classes(form: str, deberta_folder: Folder, tmp_path: Path) -> None:
    teacher, batch = teacher_of(deberta_folder(form)), batch_of(*LENGTHS)
    student = student_of(teacher, config={"num_hidden_layers": 3}, initialize={"from": "teacher", "blocks": "first"})
    encoder = student.build_student(EVERYTHING).eval()
    encoder.export(tmp_path, {name: one.detach().clone() for name, one in encoder.state_dict().items()})
    request = Signals.hidden([2]) | Signals.predictions("all")
    signals = encoder(batch, request)
    assert batch.attention_mask is not None
    mask = batch.attention_mask.long()
    base, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    states = base.eval()(batch.input_ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(signals.tokens(2), states.flatten(0, 1)[batch.token_index], rtol=1e-4, atol=1e-5)
    network, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    logits = network.eval()(batch.input_ids, attention_mask=mask).logits
    torch.testing.assert_close(signals.logits("all"), logits.flatten(0, 1)[batch.token_index], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_classes_of_a_fine_tuned_teacher_are_those_of_transformers(deberta_folder: Folder) -> None:
    folder, batch = deberta_folder("v3", "classes"), batch_of(*LENGTHS)
    teacher = teacher_of(folder)
    head = teacher.info.head("sequence_classes")
    assert head is not None
    assert head.labels == ("con", "neutral", "pro")
    request = Signals.head("sequence_classes")
    found = teacher.load_teacher(request).eval()(batch, request).outputs("sequence_classes")
    assert batch.attention_mask is not None
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = network(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


def test_a_student_with_token_classes_is_exported_for_its_auto_class(deberta_folder: Folder, tmp_path: Path) -> None:
    student = student_of(teacher_of(deberta_folder("own-projections")), initialize={"from": "teacher"})
    student.set_heads([Head.token_classes(["O", "B-PER", "I-PER"])])
    request, batch = Signals.head("token_classes"), batch_of(*LENGTHS)
    encoder = student.build_student(request).eval()
    encoder.export(tmp_path, {name: one.detach().clone() for name, one in encoder.state_dict().items()})
    network, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert network.config.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
    assert batch.attention_mask is not None
    with torch.no_grad():
        found = encoder(batch, request).outputs("token_classes")
        logits = network.eval()(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    torch.testing.assert_close(found, logits.flatten(0, 1)[batch.token_index], rtol=1e-4, atol=1e-5)


def test_sizes_that_follow_another_are_not_those_of_the_teacher(deberta_folder: Folder) -> None:
    student = student_of(teacher_of(deberta_folder()), config={"hidden_size": 16, "num_hidden_layers": 1})
    assert student.hf_config.pooler_hidden_size == 16
    alone = student_of(None, config={"hidden_size": 16, "num_attention_heads": 2, "position_buckets": 8})
    assert (alone.hf_config.pooler_hidden_size, alone.hf_config.position_buckets) == (16, 8)


def test_blocks_are_not_copied_where_positions_mean_something_else(deberta_folder: Folder) -> None:
    with pytest.raises(InputError, match="pos_att_type"):
        student_of(teacher_of(deberta_folder()), config={"pos_att_type": ["c2p"]}, initialize={"from": "teacher"})


def test_microsofts_folders_have_a_masked_lm_head_only_with_legacy_false(
    deberta_folder: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(deberta_folder(), tmp_path / "model"))
    stated = json.loads((folder / "config.json").read_text())
    del stated["architectures"]
    (folder / "config.json").write_text(json.dumps(stated))
    assert teacher_of(folder).info.head("masked_lm") is not None
    del stated["legacy"]
    (folder / "config.json").write_text(json.dumps(stated))
    teacher = teacher_of(folder)
    assert teacher.info.head("masked_lm") is None
    with pytest.raises(InputError, match="no masked-LM head"):
        teacher.load_teacher(Signals.predictions("masked"))


def test_a_bert_takes_the_sizes_of_a_deberta(deberta_folder: Folder) -> None:
    config = TransformersModel.Config(config={"model_type": "bert"})
    student = TransformersModel(config, "student", teacher_of(deberta_folder()))
    assert (student.info.architecture, student.info.num_layers, student.info.max_length) == ("bert", 4, 40)
