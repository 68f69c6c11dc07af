"""Heads on tokens and sequences: transformers' own, several in one student, and modules of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
)

from kdcore import (
    DataError,
    Encoder,
    Head,
    InputError,
    LossConfig,
    Model,
    ModelInfo,
    SignalRequest,
    Signals,
    TransformersModel,
    load_head,
    require_head,
)
from kdcore.models import architectures
from kdcore.models.configuration import saved_heads

ARCHITECTURES = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "modernbert"]
LABELS = ("O", "B-PER", "I-PER", "B-LOC")
LENGTHS = (7, 3, 5)
TOKENS = Signals.head("token_classes")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def tagger(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A small encoder with random token classes, of which no weight is 0: `tagger(model_type)`."""
    made: dict[str, Path] = {}

    def save(model_type: str) -> Path:
        if model_type not in made:
            config = tiny_config(model_type, id2label=dict(enumerate(LABELS)))
            network = AutoModelForTokenClassification.from_config(config)
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3, generator=generator)
            made[model_type] = tmp_path_factory.mktemp(model_type)
            network.save_pretrained(made[model_type])
        return made[model_type]

    return save


def model(role: str, **keys: Any) -> TransformersModel:
    return TransformersModel(TransformersModel.Config.model_validate(keys), role, None)  # type: ignore[arg-type]


def student_of(folder: Path, *heads: Head, **config: Any) -> TransformersModel:
    made = model("student", config=config, initialize={"from": str(folder), "blocks": "first"})
    made.set_heads(heads)
    return made


def export(encoder: Encoder, folder: Path, factor: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    encoder.export(folder, {name: factor * tensor.detach().clone() for name, tensor in encoder.state_dict().items()})


@torch.no_grad()
def token_logits(folder: Path, batch: Any) -> torch.Tensor:
    network = AutoModelForTokenClassification.from_pretrained(folder).eval()
    logits: torch.Tensor = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    return logits.flatten(0, 1)[batch.token_index]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_outputs_for_tokens_are_transformers_own(
    model_type: str, tagger: Callable[..., Path], token_batch: Callable[..., Any], tmp_path: Path
) -> None:
    folder, batch = tagger(model_type), token_batch(LENGTHS, 9)
    teacher = model("teacher", path=str(folder))
    assert teacher.info.heads == (Head.token_classes(LABELS),)
    student = student_of(folder, Head.token_classes(LABELS))
    for encoder in (teacher.load_teacher(TOKENS).eval(), student.build_student(TOKENS).eval()):
        for packs in {encoder.packs, False}:
            encoder.packs = packs
            with torch.no_grad():
                found = encoder(batch, TOKENS).outputs("token_classes")
            assert found.shape == (sum(LENGTHS), 4)
            torch.testing.assert_close(found, token_logits(folder, batch), rtol=1e-4, atol=1e-5)
    export(student.build_student(TOKENS), tmp_path, 1.5)
    loaded, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.config.id2label == dict(enumerate(LABELS))
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    again = student.load_export(tmp_path, TOKENS)
    assert again is not None
    with torch.no_grad():
        read = again.eval()(batch, TOKENS).outputs("token_classes")
    torch.testing.assert_close(read, token_logits(tmp_path, batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(read, found, atol=1e-3)


def test_labels_of_a_folder_are_in_normal_form_c() -> None:
    config = BertConfig(architectures=["BertForSequenceClassification"], id2label={0: "e\u0301", 1: "b"})
    (head,) = saved_heads(config, architectures.ARCHITECTURES["bert"])
    assert head.labels == ("\u00e9", "b")


def test_a_multi_label_head_is_exported_as_such(saved_model: Callable[..., Path], tmp_path: Path) -> None:
    head = Head.sequence_classes(("a", "b"), "multi_label_classification")
    student = student_of(saved_model("bert"), head)
    export(student.build_student(Signals.head("sequence_classes")), tmp_path)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "a", 1: "b"}
    assert model("teacher", path=str(tmp_path)).info.heads == (head,)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_student_with_several_heads_computes_all_and_exports_the_tasks_one(
    model_type: str, saved_model: Callable[..., Path], token_batch: Callable[..., Any], tmp_path: Path
) -> None:
    folder, batch = saved_model(model_type), token_batch(LENGTHS, 9)
    student = student_of(folder, Head.token_classes(LABELS))
    request = TOKENS | Signals.predictions("masked")
    encoder = student.build_student(request).eval()
    assert encoder.unexported_heads == ("masked_lm",)
    signals = encoder(batch, request)
    expected = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = expected(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    torch.testing.assert_close(signals.logits("masked"), logits.flatten(0, 1)[batch.masked_index], rtol=1e-4, atol=1e-5)
    # The vocabulary's matrix is the student's embeddings, so training both heads keeps them tied.
    signals.logits("masked").square().sum().backward()
    names = [name for name, _ in encoder.named_parameters()]
    assert len(names) == len(set(names))
    assert sum(parameter.shape[0] == 60 and parameter.dim() == 2 for parameter in encoder.parameters()) == 1
    export(encoder, tmp_path)
    _, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not [name for name in report["unexpected_keys"] if ".pooler." not in name]
    torch.testing.assert_close(
        signals.outputs("token_classes").detach(), token_logits(tmp_path, batch), rtol=1e-4, atol=1e-5
    )


def test_a_head_that_the_folder_does_not_hold_is_refused(saved_model: Callable[..., Path]) -> None:
    teacher = model("teacher", path=str(saved_model("bert")))
    assert teacher.info.heads == (Head.masked_lm(60),)
    with pytest.raises(InputError, match=r"teacher's head `token_classes`(?s:.)*masked_lm"):
        teacher.load_teacher(TOKENS)


@dataclass(frozen=True)
class Ratings(Head):
    """Two numbers from a small network of its own."""

    def module(self, info: ModelInfo) -> nn.Module:
        return nn.Sequential(nn.Linear(info.hidden_size, 5), nn.Tanh(), nn.Linear(5, self.num_outputs))


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("head", [Ratings("ratings", "token", 2), Ratings("ratings", "sequence", 2, pooling="mean")])
def test_a_head_with_a_module_of_its_own_is_exported_beside_the_weights(
    model_type: str,
    head: Ratings,
    saved_model: Callable[..., Path],
    token_batch: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder, batch, request = saved_model(model_type), token_batch(LENGTHS, 9), Signals.head("ratings")
    student = student_of(folder, head, num_hidden_layers=2)
    assert student.info.head("ratings") == head
    encoder = student.build_student(request).eval()
    export(encoder, tmp_path, 1.25)
    network, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        states = network.eval()(batch.input_ids, attention_mask=batch.attention_mask.long()).last_hidden_state
        module = load_head(tmp_path, head)
        real = batch.attention_mask.numpy()
        if head.level == "token":
            expected = module(states.flatten(0, 1)[batch.token_index])
        else:
            means = [row[mask].mean(0) for row, mask in zip(states.numpy(), real, strict=True)]
            expected = module(torch.from_numpy(np.stack(means)))
        for again in (student.load_export(tmp_path, request), teacher_of(tmp_path, head).load_teacher(request)):
            assert again is not None
            for packs in {again.packs, False}:
                again.packs = packs
                found = again.eval()(batch, request).outputs("ratings")
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = load_file(tmp_path / "head_ratings.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "0.weight": (5, 32), "0.bias": (5,), "2.weight": (2, 5), "2.bias": (2,),
    }  # fmt: skip


def teacher_of(folder: Path, head: Head) -> TransformersModel:
    teacher = model("teacher", path=str(folder))
    teacher.find_heads((head,))
    assert teacher.info.head(head.name) == head
    return teacher


def test_a_head_with_a_similar_name_is_named_in_the_hint() -> None:
    info = ModelInfo("bert", 4, 32, 4, 8, 60, 40, heads=[Head.masked_lm(60), Ratings("ratings", "token", 2)])
    config = LossConfig(name="squares", label="squares")
    assert require_head(config, info, "ratings", "student").num_outputs == 2
    with pytest.raises(InputError, match=r"requires the head `rating`(?s:.)*Did you mean `ratings`\?"):
        require_head(config, info, "rating", "student")
    with pytest.raises(InputError, match=r"requires the head `spans`(?s:.)*use a task that trains this head"):
        require_head(config, info, "spans", "student")


def test_weights_of_another_module_are_refused(saved_model: Callable[..., Path], tmp_path: Path) -> None:
    head = Ratings("ratings", "token", 2)
    export(student_of(saved_model("bert"), head).build_student(Signals.head("ratings")), tmp_path)
    with pytest.raises(DataError, match="the weights do not match the head"):
        load_head(tmp_path, replace(head, num_outputs=3))
    for changed, what in (
        ({"level": "sequence"}, "saved with level `token`, but is loaded with `sequence`"),
        ({"pooling": "mean"}, "saved with pooling `first`, but is loaded with `mean`"),
    ):
        with pytest.raises(DataError, match=what):
            load_head(tmp_path, replace(head, **changed))
    with pytest.raises(DataError, match=r"no file head_others\.safetensors\n  allowed: ratings$"):
        load_head(tmp_path, replace(head, name="others"))
    with pytest.raises(DataError, match=r"nowhere: the folder does not exist$"):
        load_head(tmp_path / "nowhere", head)
    (tmp_path / "head_ratings.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"head_ratings\.safetensors: the head `ratings` cannot be read"):
        load_head(tmp_path, head)


def test_the_file_of_a_head_has_the_same_bytes_for_the_same_weights(
    saved_model: Callable[..., Path], tmp_path: Path
) -> None:
    head = Ratings("ratings", "token", 2, labels=("low", "high"))
    encoder = student_of(saved_model("bert"), head).build_student(Signals.head("ratings"))
    for number in range(8):
        export(encoder, tmp_path / str(number))
    files = {(tmp_path / str(number) / "head_ratings.safetensors").read_bytes() for number in range(8)}
    assert len(files) == 1


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_factored_predictions_give_the_logits_without_a_matrix_of_vocabulary_size(
    model_type: str, saved_model: Callable[..., Path], token_batch: Callable[..., Any]
) -> None:
    batch, request = token_batch(LENGTHS, 9), Signals.predictions("all", factored=True)
    encoder = model("teacher", path=str(saved_model(model_type))).load_teacher(request).double().eval()
    with torch.no_grad():
        expected = encoder(batch, Signals.predictions("all")).logits("all")
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                sizes.append(tuple(found.shape))
            return found

    with Watch(), torch.no_grad():
        factored = encoder(batch, request).factored("all")
    assert (sum(LENGTHS), 32) in sizes or (1, sum(LENGTHS), 32) in sizes, "operations were recorded"
    assert not [size for size in sizes if size[-1:] == (60,) and len(size) > 1]
    bias = 0.0 if factored.bias is None else factored.bias.detach().numpy()
    product = factored.states.numpy().astype(np.float64) @ factored.weight.detach().numpy().T + bias
    np.testing.assert_allclose(product, expected.numpy(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factored.logits(slice(2, 5)), expected[2:5])


def test_names_of_0_1_keep_their_meaning_with_a_warning() -> None:
    sizes = ("bert", 4, 32, 4, 8, 60, 40)
    with pytest.warns(DeprecationWarning, match="heads="):
        old = ModelInfo(*sizes, True, 3, ("a", "b", "c"))
    assert old == ModelInfo(*sizes, heads=(Head.sequence_classes(("a", "b", "c")), Head.masked_lm(60)))
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        assert (old.has_lm_head, old.num_classes, old.class_labels) == (True, 3, ("a", "b", "c"))
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        changed = replace(old, num_classes=1, class_labels=())
    assert changed.head("sequence_classes") == Head.sequence_classes()
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        assert replace(old, num_classes=None).heads == (Head.masked_lm(60),)
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        bare = ModelInfo(*sizes, has_lm_head=False)
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        assert (bare.has_lm_head, bare.num_classes, bare.class_labels) == (False, None, ())
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        request = Signals.classes()
    assert request == Signals.head("sequence_classes")
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        assert SignalRequest(frozenset(), frozenset(), frozenset(), True) == request
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        assert request.class_logits
    outputs = torch.zeros(2, 3)
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        signals = Signals(None, {}, {}, {}, outputs)  # type: ignore[arg-type]
    assert signals.outputs("sequence_classes") is outputs
    with pytest.warns(DeprecationWarning, match="is deprecated: use"):
        assert signals.class_logits is outputs


def test_a_model_of_0_1_gets_its_classes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from kdcore import ClassHead

        class Old(Model):
            def __init__(self) -> None:
                self.info = ModelInfo("old", 1, 8, 2, 4, 60, 40, False)

            source = None

            def load_teacher(self, request: SignalRequest) -> Encoder:
                raise NotImplementedError

            def build_student(self, request: SignalRequest) -> Encoder:
                raise NotImplementedError

            def set_classes(self, head: ClassHead) -> None:  # type: ignore[override]
                self.info = replace(self.info, num_classes=head.num_outputs, class_labels=head.labels)

        old = Old()
        old.set_heads((ClassHead(("a", "b")), Head.token_classes(LABELS)))
    assert old.info.heads == (Head.sequence_classes(("a", "b")),)


def test_a_column_for_tokens_is_read_at_the_real_ones(token_batch: Callable[..., Any]) -> None:
    batch = token_batch((3, 1), 4)
    labels = torch.tensor([[1, 2, 3, -100], [4, -100, -100, -100]])
    batch = replace(batch, columns={"labels": labels})
    assert batch.to(torch.device("cpu")).token_column("labels").tolist() == [1, 2, 3, 4]
