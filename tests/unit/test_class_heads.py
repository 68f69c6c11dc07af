"""Heads on whole sequences: every architecture's is transformers' own, started, exported and loaded as such."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcore_testing import check_model
from transformers import AutoModel, AutoModelForSequenceClassification

from kdcore import InputError, Signals, TransformersModel
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.configuration import with_num_layers
from kdcore.signals import Head

LENGTHS = (7, 3, 5)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def classifier(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A small fine-tuned encoder with three classes, of which no weight is 0: `classifier(model_type, **changes)`."""
    made: dict[str, Path] = {}

    def save(model_type: str, **changes: Any) -> Path:
        key = repr((model_type, sorted(changes.items())))
        if key not in made:
            labels = {"id2label": {0: "con", 1: "neutral", 2: "pro"}, "label2id": {"con": 0, "neutral": 1, "pro": 2}}
            network = AutoModelForSequenceClassification.from_config(tiny_config(model_type, **labels, **changes))
            generator = torch.Generator().manual_seed(len(made) + 1)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3, generator=generator)
            made[key] = tmp_path_factory.mktemp(model_type)
            network.save_pretrained(made[key])
        return made[key]

    return save


def model(role: str, **keys: Any) -> TransformersModel:
    return TransformersModel(TransformersModel.Config.model_validate(keys), role, None)  # type: ignore[arg-type]


def student_of(folder: Path, *labels: str, **config: Any) -> TransformersModel:
    made = model("student", config=config, initialize={"from": str(folder), "blocks": "first"})
    made.set_heads((Head.sequence_classes(labels),))
    return made


@torch.no_grad()
def logits_of(folder: Path, batch: Any, **more: Any) -> torch.Tensor:
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    mask = None if batch.attention_mask is None else batch.attention_mask.long()
    logits: torch.Tensor = network(input_ids=batch.input_ids, attention_mask=mask, **more).logits
    return logits


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_teachers_outputs_are_transformers_own(
    model_type: str, classifier: Callable[..., Path], token_batch: Callable[..., Any]
) -> None:
    folder, batch = classifier(model_type), token_batch(LENGTHS, 9)
    teacher = model("teacher", path=str(folder))
    assert teacher.info.heads == (Head.sequence_classes(("con", "neutral", "pro")),)
    encoder = teacher.load_teacher(Signals.head("sequence_classes") | Signals.hidden([1])).eval()
    with torch.no_grad():
        found = encoder(batch, Signals.head("sequence_classes")).outputs("sequence_classes")
    assert found.shape == (3, 3)
    torch.testing.assert_close(found, logits_of(folder, batch), rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-3


def test_modernbert_takes_the_mean_of_real_tokens_if_it_is_configured_so(
    classifier: Callable[..., Path], token_batch: Callable[..., Any]
) -> None:
    folder = classifier("modernbert", classifier_pooling="mean")
    encoder = model("teacher", path=str(folder)).load_teacher(Signals.head("sequence_classes")).eval()
    for batch in (token_batch(LENGTHS, 9), token_batch((5, 5))):
        with torch.no_grad():
            found = encoder(batch, Signals.head("sequence_classes")).outputs("sequence_classes")
        torch.testing.assert_close(found, logits_of(folder, batch), rtol=1e-4, atol=1e-5)


def test_pairs_have_token_types_where_the_model_has_embeddings_for_them(
    classifier: Callable[..., Path], token_batch: Callable[..., Any]
) -> None:
    from dataclasses import replace

    batch = token_batch(LENGTHS, 9)
    types = torch.zeros_like(batch.input_ids)
    types[:, 2:4] = 1
    pairs = replace(batch, token_types=types)
    for model_type, has_types in (("bert", True), ("electra", True), ("roberta", False), ("distilbert", False)):
        folder = classifier(model_type)
        encoder = model("teacher", path=str(folder)).load_teacher(Signals.head("sequence_classes")).eval()
        with torch.no_grad():
            found = encoder(pairs, Signals.head("sequence_classes")).outputs("sequence_classes")
        expected = logits_of(folder, batch, **({"token_type_ids": types} if has_types else {}))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(found, logits_of(folder, batch), atol=1e-5) == (not has_types)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_student_of_a_fine_tuned_model_starts_with_its_head_and_is_exported_with_it(
    model_type: str, classifier: Callable[..., Path], token_batch: Callable[..., Any], tmp_path: Path
) -> None:
    folder, batch = classifier(model_type), token_batch(LENGTHS, 9)
    own = student_of(folder, "con", "neutral", "pro")
    encoder = own.build_student(Signals.head("sequence_classes")).eval()
    with torch.no_grad():
        found = encoder(batch, Signals.head("sequence_classes")).outputs("sequence_classes")
    torch.testing.assert_close(found, logits_of(folder, batch), rtol=1e-4, atol=1e-5)
    weights = {name: 1.5 * tensor.detach() for name, tensor in encoder.state_dict().items()}
    encoder.export(tmp_path, weights)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.config.id2label == {0: "con", 1: "neutral", 2: "pro"}
    assert loaded.config.label2id == {"con": 0, "neutral": 1, "pro": 2}
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    again = own.load_export(tmp_path, Signals.head("sequence_classes"))
    assert again.info == replace(own.info, heads=[own.info.head("sequence_classes")])
    with torch.no_grad():
        read = again.eval()(batch, Signals.head("sequence_classes")).outputs("sequence_classes")
    torch.testing.assert_close(read, logits_of(tmp_path, batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(read, found, atol=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "distilbert", "roberta"])
@pytest.mark.parametrize("head", [True, False])
def test_a_student_of_a_model_without_classes_has_a_new_head_on_its_blocks(
    model_type: str, head: bool, saved_model: Callable[..., Path]
) -> None:
    folder = saved_model(model_type, head)
    encoder = student_of(folder, "con", "pro", num_hidden_layers=2).build_student(Signals.head("sequence_classes"))
    source = AutoModel.from_pretrained(folder).state_dict()
    own = {name.partition(".")[2]: tensor for name, tensor in encoder.network.state_dict().items()}
    kept = [name for name in source if "embeddings" in name and name in own]
    assert kept
    assert all(torch.equal(source[name], own[name]) for name in kept)
    last = [name for name, tensor in encoder.named_parameters() if tensor.shape[0] == 2]
    assert last, "two outputs"


def test_the_heads_of_modernberts_masked_lm_are_partly_shared_with_its_classifier(
    saved_model: Callable[..., Path],
) -> None:
    """As `from_pretrained` of its classifier does."""
    folder = saved_model("modernbert", True)
    encoder = student_of(folder, "con", "pro").build_student(Signals.head("sequence_classes"))
    expected = AutoModelForSequenceClassification.from_pretrained(folder).head.dense.weight
    assert torch.equal(encoder.network.head.dense.weight, expected)


@pytest.mark.parametrize("labels", [("pro", "con"), ("pro", "neutral", "con"), ()])
def test_a_head_for_other_classes_is_not_taken_over(
    labels: tuple[str, ...], classifier: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = classifier("bert")
    with caplog.at_level(logging.INFO, "kdcore"):
        encoder = student_of(folder, *labels).build_student(Signals.head("sequence_classes"))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    assert encoder.network.classifier.out_features == (len(labels) or 1)
    assert encoder.network.classifier.weight.shape != theirs.classifier.weight.shape or not torch.equal(
        encoder.network.classifier.weight, theirs.classifier.weight
    )
    assert torch.equal(encoder.pooler.dense.weight, theirs.bert.pooler.dense.weight)
    assert "has different labels" in caplog.text


def test_without_the_request_there_is_no_head_and_no_pooler_runs(
    classifier: Callable[..., Path], token_batch: Callable[..., Any]
) -> None:
    teacher = model("teacher", path=str(classifier("bert"))).load_teacher(Signals.hidden([1]))
    assert not [name for name, _ in teacher.named_parameters() if "classifier" in name or "pooler" in name]
    student = student_of(classifier("bert"), "con", "neutral", "pro")
    ran = []
    encoder = student.build_student(Signals.head("sequence_classes"))
    encoder.pooler.register_forward_hook(lambda *_: ran.append(1))
    encoder(token_batch(LENGTHS), Signals.hidden([3]))
    assert not ran
    encoder(token_batch(LENGTHS), Signals.head("sequence_classes"))
    assert ran


def test_a_teacher_without_classes_is_refused(saved_model: Callable[..., Path]) -> None:
    teacher = model("teacher", path=str(saved_model("bert")))
    assert teacher.info.head("sequence_classes") is None
    with pytest.raises(InputError, match="no such head"):
        teacher.load_teacher(Signals.head("sequence_classes"))


def test_names_that_transformers_makes_up_are_no_names(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(tiny_config("bert", num_labels=4)).save_pretrained(tmp_path)
    info = model("teacher", path=str(tmp_path)).info
    assert info.heads == (Head.sequence_classes(num_outputs=4),)


def test_a_shortened_configuration_keeps_its_classes(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("bert", id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert with_num_layers(config, 1).id2label == config.id2label


def test_the_conformance_check_looks_at_classes(
    classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"config": {"num_hidden_layers": 2}, "initialize": {"from": str(classifier("bert")), "blocks": "first"}}
    check_model("transformers", teacher={"path": str(classifier("bert"))}, student=keys)

    class Wrong(TransformersModel):
        def load_export(self, folder: Path, request: Any) -> Any:
            encoder = super().load_export(folder, request)
            torch.nn.init.zeros_(encoder.network.classifier.weight)
            return encoder

    with pytest.raises(AssertionError, match="`load_export` changes the outputs"):
        check_model(Wrong, teacher={"path": str(classifier("bert"))}, student=keys)
