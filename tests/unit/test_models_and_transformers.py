"""Students and teachers equal what plain transformers computes from the same folders, or are refused.

The table covers architectures x output matrix x padding ids x head; other tests cover single weights and messages.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from kdcore.errors import DataError, InputError
from kdcore.losses.soft_targets import SoftTargetsLoss
from kdcore.models.architectures import ARCHITECTURES
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Batch, Requests, Signals
from kdcore.tasks.fitting import check_fit

MODEL_TYPES = sorted(ARCHITECTURES)
HIDDEN = Signals.hidden(["embeddings", 0, 1])
PREDICTIONS = HIDDEN | Signals.predictions("all")
FROM_TEACHER = {"config": {"num_hidden_layers": 2}, "initialize": {"from": "teacher", "blocks": "first"}}
POSITIONS_DEPEND_ON_PADDING = {
    "mpnet", "roberta", "xlm-roberta", "camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl",
}  # fmt: skip
MATRICES = ("tied", "untied", "separate")
"""Output matrix and embeddings: one matrix; two by config.json; two although config.json states one."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def silent_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity(verbosity)


def teacher(path):
    return TransformersModel(TransformersModel.Config(path=str(path)), "teacher", None)


def student(path, section=FROM_TEACHER):
    return TransformersModel(TransformersModel.Config.model_validate(section), "student", teacher(path))


def float32_weights(encoder):
    """One tensor for each parameter, shared by its names, as the engine passes them."""
    copies: dict[int, torch.Tensor] = {}
    return {
        name: copies.setdefault(tensor.data_ptr(), tensor.detach().clone())
        for name, tensor in encoder.state_dict().items()
    }


def change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, make):
    """Replace the weights by those that `make` returns from the present ones."""
    save_file(make(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def output_matrix(folder):
    """Name of the output matrix in a folder's weights, and of the embeddings."""
    ((name, embeddings),) = [
        pair for pair in AutoModelForMaskedLM.from_pretrained(folder)._tied_weights_keys.items() if "weight" in pair[0]
    ]
    return name, embeddings


@pytest.fixture(scope="module")
def tokenizer():
    """Make a tokenizer of 60 words whose padding token has this id."""

    def make(pad):
        words = {f"w{number}": number for number in range(60) if number not in (pad, 3, 4, 5, 6)}
        special = {"[PAD]": pad, "[CLS]": 3, "[SEP]": 4, "[MASK]": 5, "[UNK]": 6}
        backend = Tokenizer(models.WordLevel(words | special, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        ends = [("[CLS]", 3), ("[SEP]", 4)]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "mask", "unk")}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **names)

    return make


def batch_of(tokenizer):
    """Padded sequences of 9, 3 and 6 tokens that contain id 1, the padding id of the configurations."""
    texts = ["w7 w1 w9 w20 w1 w30 w31", "w8", "w1 w1 w59 w40"]
    encoded = tokenizer(texts, padding=True, return_tensors="np")
    real = encoded["attention_mask"].astype(bool)
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch(
        input_ids=torch.from_numpy(encoded["input_ids"]),
        attention_mask=torch.from_numpy(real),
        lengths=real.sum(1),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=nothing,
        masked_labels=nothing,
    )


def make_folder(folder, saved, matrix, promised, tokenizer):
    """Copy a saved model with this kind of output matrix; with `promised`, drop the head that config.json states."""
    shutil.copytree(saved, folder)
    name, embeddings = output_matrix(saved)
    if matrix != "tied":
        generator = torch.Generator().manual_seed(7)
        size = load_file(folder / "model.safetensors")[embeddings].shape
        own = torch.randn(size, generator=generator) * 0.3

        def with_own(weights):
            bias = {
                name.removesuffix("weight") + "bias": value.clone()
                for key, value in weights.items()
                if value.shape == (60,) and key.endswith("bias") and "vocab_projector" not in key
            }
            return {**weights, **bias, name: own}

        change_weights(folder, with_own)
        change(folder, tie_word_embeddings=matrix == "separate")
    if promised:
        prefix = f"{AutoModel.from_pretrained(folder).base_model_prefix}."
        change_weights(folder, lambda weights: {k: v for k, v in weights.items() if k.startswith(prefix)})
    tokenizer.save_pretrained(folder)
    return folder


def losses_of(folder, exported, batch, predicts):
    """The mean squared error of the last states, and the divergence of predictions, by plain transformers."""
    cls = AutoModelForMaskedLM if predicts else AutoModel
    outputs = []
    for path in (folder, exported):
        network = cls.from_pretrained(path).eval()
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
        outputs.append(network(**inputs, output_hidden_states=True))
    real = batch.attention_mask
    theirs, ours = (output.hidden_states for output in outputs)
    found = {"hidden": (theirs[2] - ours[1])[real].square().mean().item()}
    if predicts:
        wanted, given = (output.logits[real].log_softmax(-1) for output in outputs)
        found["predictions"] = (wanted.exp() * (wanted - given)).sum(-1).mean().item()
    return found


def our_losses(model, whole, batch, predicts):
    """The same by kdcore's encoders and losses."""
    requests = Requests(Signals.hidden([1]), Signals.hidden([0]))
    loss = None
    if predicts:
        config = SoftTargetsLoss.Config(label="soft_targets", name="soft_targets", positions="all")
        loss = SoftTargetsLoss(config, whole.info, model.info)
        requests |= loss.requests()
    theirs = whole.load_teacher(requests.teacher).eval()(batch, requests.teacher)
    encoder = model.build_student(requests.student).eval()
    ours = encoder(batch, requests.student)
    found = {"hidden": (theirs.tokens(1) - ours.tokens(0)).square().mean().item()}
    if loss is not None:
        found["predictions"] = loss(ours, theirs, batch)["soft_targets"].item() / loss.counts(batch)["soft_targets"]
    return found, encoder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.no_grad()
def test_a_table_of_models_equals_plain_transformers_or_is_refused(model_type, saved_model, tokenizer, tmp_path):
    saved = saved_model(model_type)
    rows = product(MATRICES, (1, 0), ((False, "predictions"), (True, "predictions"), (True, "hidden")))
    for number, (matrix, pad, (promised, reads)) in enumerate(rows):
        words = tokenizer(pad)
        folder = make_folder(tmp_path / f"teacher-{number}", saved, matrix, promised, words)
        predicts, reason = reads == "predictions", ""
        try:
            whole, model = teacher(folder), student(folder, {**FROM_TEACHER, "config": {"num_hidden_layers": 2}})
            vocabulary, batch = words.get_vocab(), batch_of(words)
            check_fit(
                model, whole, vocabulary=lambda words=vocabulary: words, vocab_size=60, longest=9, where="data",
                shorter="", own_tokenizer="", pad_id=words.pad_token_id,
            )  # fmt: skip
            found, encoder = our_losses(model, whole, batch, predicts)
            (exported := tmp_path / f"student-{number}").mkdir()
            encoder.export(exported, float32_weights(encoder))
            wanted = losses_of(folder, exported, batch, predicts)
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
            assert min(wanted.values()) > 1e-3, "the models differ, so that a wrong weight shows"
        except InputError as error:
            reason = error.problems[0].what
        other_pad, no_head = pad != 1 and model_type in POSITIONS_DEPEND_ON_PADDING, promised and predicts
        assert ("padding id" in reason) == other_pad, reason
        assert ("no masked-LM head" in reason) == (no_head and not other_pad), reason
        assert bool(reason) == (other_pad or no_head), reason
        texts = (matrix, "equal" if pad == 1 else "different", "promised only" if promised else "present", reads)
        print(f"{model_type:12} {texts[0]:9} pad ids {texts[1]:10} head {texts[2]:14} {texts[3]:12}", end="")
        print(f"refused: {reason}" if reason else " ".join(f"{k} {v:.6f}" for k, v in found.items()))


def bert(saved_model, tmp_path, head=True):
    return Path(shutil.copytree(saved_model("bert", head), tmp_path / "model"))


@torch.no_grad()
def test_a_separate_output_matrix_never_becomes_the_students_embeddings(saved_model, tmp_path, caplog):
    folder = bert(saved_model, tmp_path)
    own = torch.randn(60, 32)
    change_weights(folder, lambda weights: {**weights, "cls.predictions.decoder.weight": own})
    caplog.set_level(logging.INFO, "kdcore")
    model = student(folder)
    assert "the output matrix differs from the input embeddings" in caplog.text
    encoder = model.build_student(HIDDEN)
    weights = load_file(folder / "model.safetensors")
    network = encoder.network
    assert torch.equal(network.get_input_embeddings().weight, weights["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(network.get_output_embeddings().weight, own)
    exported = tmp_path / "export"
    exported.mkdir()
    encoder.export(exported, float32_weights(encoder))
    assert json.loads((exported / "config.json").read_text())["tie_word_embeddings"] is False
    stored = load_file(exported / "model.safetensors")
    assert torch.equal(stored["cls.predictions.bias"], stored["cls.predictions.decoder.bias"]), (
        "either name may be read"
    )
    again, report = AutoModelForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(again.get_output_embeddings().weight, own)
    tied = {**FROM_TEACHER, "config": {"num_hidden_layers": 2, "tie_word_embeddings": True}}
    with pytest.raises(InputError, match="tie_word_embeddings is false in the source and true in the student"):
        student(folder, tied)


def test_an_untied_bias_that_is_stored_once_is_read(saved_model, tmp_path):
    """transformers 4 stores the bias of an untied BERT under one name only."""
    folder = bert(saved_model, tmp_path)
    changes = {"cls.predictions.decoder.weight": torch.randn(60, 32)}
    change_weights(folder, lambda weights: {**weights, **changes})
    change(folder, tie_word_embeddings=False)
    stored = load_file(folder / "model.safetensors")
    assert "cls.predictions.decoder.bias" not in stored
    network = teacher(folder).load_teacher(PREDICTIONS).network
    assert torch.equal(network.get_output_embeddings().bias, stored["cls.predictions.bias"])


def test_copied_positions_may_not_be_shifted(saved_model):
    section = {**FROM_TEACHER, "config": {"num_hidden_layers": 2, "pad_token_id": 0}}
    with pytest.raises(InputError, match="pad_token_id, which is 1 in the source and 0 in the student"):
        student(saved_model("roberta"), section)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_head_that_only_config_json_states_is_not_used(model_type, saved_model, tmp_path, caplog):
    folder = Path(shutil.copytree(saved_model(model_type, head=False), tmp_path / "model"))
    name = ARCHITECTURES[model_type].lm_head_classes[0]
    change(folder, architectures=[name])
    caplog.set_level(logging.INFO, "kdcore")
    whole, model = teacher(folder), student(folder)
    assert whole.info.head("masked_lm") is None
    assert re.search(rf"config.json lists {name}, but the weights have no such head \(`.*` is missing\)", caplog.text)
    model.build_student(HIDDEN)
    with pytest.raises(InputError, match="the teacher has no masked-LM head"):
        whole.load_teacher(PREDICTIONS)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_head_that_config_json_does_not_state_is_used(model_type, saved_model, tmp_path):
    folder = Path(shutil.copytree(saved_model(model_type), tmp_path / "model"))
    change(folder, architectures=None)
    assert teacher(folder).info.head("masked_lm") is not None
    teacher(folder).load_teacher(PREDICTIONS)


def test_a_classification_head_is_read_from_the_weights(tiny_config, tmp_path):
    for model_type in ("bert", "roberta", "distilbert", "electra", "mpnet", "modernbert"):
        for states in (True, False):
            folder = tmp_path / f"{model_type}-{states}"
            config = tiny_config(model_type, num_labels=3)
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
            if not states:
                change(folder, architectures=None)
            head = teacher(folder).info.head("sequence_classes")
            found = None if head is None else head.num_outputs
            # ModernBERT's heads for sequences and for tokens have the same weights.
            assert found == (3 if states or model_type != "modernbert" else None), model_type
            change_weights(folder, lambda weights: {k: v for k, v in weights.items() if "classifier" not in k})
            assert teacher(folder).info.head("sequence_classes") is None


def test_a_head_for_tokens_that_config_json_states_is_taken_only_with_its_weights(tiny_config, tmp_path):
    for model_type in ("bert", "distilbert", "modernbert"):
        folder = tmp_path / model_type
        AutoModelForTokenClassification.from_config(tiny_config(model_type, num_labels=5)).save_pretrained(folder)
        assert teacher(folder).info.head("token_classes").num_outputs == 5
        change_weights(folder, lambda weights: {k: v for k, v in weights.items() if "classifier" not in k})
        assert teacher(folder).info.head("token_classes") is None


def test_blocks_that_config_json_leaves_out_are_reported(saved_model, tmp_path, caplog):
    folder = bert(saved_model, tmp_path)
    teacher(folder)
    assert not caplog.records
    change(folder, num_hidden_layers=2)
    teacher(folder)
    wanted = "the weights have 4 blocks, but config.json has num_hidden_layers: 2; blocks 2 to 3 are not used"
    assert f"{folder}: {wanted}" in caplog.text
    caplog.clear()
    change(folder, num_hidden_layers=3)
    teacher(folder)
    assert "block 3 is not used" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad, saved_model, tmp_path):
    folder = bert(saved_model, tmp_path)
    name = "bert.encoder.layer.0.output.dense.bias"

    def spoilt(weights):
        weights[name][5] = bad
        return weights

    change_weights(folder, spoilt)
    with pytest.raises(DataError) as error:
        teacher(folder)
    assert f"{folder}: `{name}` contains NaN or infinity (found 1 of 32 values" in str(error.value)
    deep = bert(saved_model, tmp_path / "deep")
    name = "bert.encoder.layer.3.attention.self.key.weight"
    change_weights(deep, lambda weights: {**weights, name: weights[name] * bad})
    whole = teacher(deep)
    whole.load_teacher(Signals.hidden([2]))
    with pytest.raises(DataError, match=r"layer\.3\.attention\.self\.key\.weight` contains NaN"):
        whole.load_teacher(Signals.hidden([3]))
    with pytest.raises(DataError, match=r"layer\.3\.attention\.self\.key\.weight` contains NaN"):
        student(deep).build_student(HIDDEN)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("module.", "DistributedDataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("module._orig_mod.", "DistributedDataParallel"),
        ("model.", "a training framework"),
    ],
)
def test_names_of_a_wrapped_network_are_explained(prefix, wrapper, saved_model, tmp_path):
    for head in (True, False):
        folder = bert(saved_model, tmp_path / str(head), head)
        change_weights(folder, lambda weights: {f"{prefix}{name}": value for name, value in weights.items()})
        with pytest.raises(DataError) as error:
            teacher(folder)
        assert f"the names of its weights start with `{prefix}`" in str(error.value)
        assert wrapper in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_git_lfs_pointers_are_named(name, saved_model, tmp_path):
    folder = bert(saved_model, tmp_path)
    if name.endswith("bin"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 440449768\n")
    with pytest.raises(DataError) as error:
        teacher(folder)
    assert f"{folder}: {name} is a Git-LFS pointer, not the file itself" in str(error.value)
    assert "git lfs pull" in str(error.value)


def test_a_pointer_in_place_of_a_vocabulary_is_named(tokenizer, tmp_path):
    from kdcore.data.tokenizers import load_tokenizer

    tokenizer(1).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4\n")
    with pytest.raises(DataError, match=r"tokenizer\.json is a Git-LFS pointer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("stated", [None, {"__version__": {"sentence_transformers": "2.0.0"}}])
def test_the_transformer_inside_a_sentence_transformers_folder_is_named(stated, saved_model, tmp_path):
    root = tmp_path / "old"
    shutil.copytree(saved_model("bert"), root / "0_Transformer")
    (root / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "0_Transformer"}]))
    if stated is not None:
        (root / "config.json").write_text(json.dumps(stated))
    with pytest.raises(DataError, match=f"sentence-transformers folder: give its transformer, {root}/0_Transformer"):
        teacher(root)
    assert teacher(root / "0_Transformer").info.num_layers == 4


@pytest.mark.parametrize(("classes", "guess"), [(["XLMRobertaForMaskedLM"], "xlm-roberta"), (None, "bert")])
def test_a_configuration_without_a_type_gets_a_guess(classes, guess, saved_model, tmp_path):
    folder = bert(saved_model, tmp_path)
    change(folder, model_type=None, architectures=classes)
    with pytest.raises(DataError, match=r"config\.json has no model_type") as error:
        teacher(folder)
    assert f'"model_type": "{guess}"' in str(error.value)
