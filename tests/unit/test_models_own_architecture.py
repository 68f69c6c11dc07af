"""An encoder that a package brings along with nothing but public names: the one of docs/plugins.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kdcore_testing import check_model
from transformers import BertConfig, BertForMaskedLM, BertModel

from kdcore.errors import InputError
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Head, Signals

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
REQUEST = Signals.hidden(["embeddings", 1]) | Signals.attention(["key"], [0]) | Signals.predictions("masked")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def example():
    """The page's class, around a network that is BERT under another name."""

    class ExampleConfig(BertConfig):
        model_type = "example"

    class ExampleModel(BertModel):
        config_class = ExampleConfig

    class ExampleForMaskedLM(BertForMaskedLM):
        config_class = ExampleConfig

    package, modeling = ModuleType("kdcore_example"), ModuleType("kdcore_example.modeling")
    vars(modeling).update(ExampleConfig=ExampleConfig, ExampleModel=ExampleModel, ExampleForMaskedLM=ExampleForMaskedLM)
    section = PAGE.partition("## An encoder of your own")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", re.split(r"\n##+ ", section)[0], re.MULTILINE | re.DOTALL)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "kdcore_example", package)
        patch.setitem(sys.modules, "kdcore_example.modeling", modeling)
        exec(code, names)
    return names["Example"]


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    """A folder with an encoder of the new type."""
    path = tmp_path_factory.mktemp("example")
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    student = example(example.Config(config=sizes | {"intermediate_size": 48}), "student", None)
    encoder = student.build_student(REQUEST)
    encoder.export(path, {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()})
    return path


def test_the_pages_encoder_does_what_every_model_must(example, folder):
    initialize = {"from": "teacher", "blocks": [1, 3]}
    student = {"config": {"num_hidden_layers": 2}, "initialize": initialize}
    check_model(example, teacher={"path": str(folder)}, student=student)


@torch.no_grad()
def test_the_pages_encoder_shows_what_its_network_computes(example, folder, token_batch):
    teacher = example(example.Config(path=str(folder)), "teacher", None)
    assert (teacher.info.architecture, teacher.info.num_layers) == ("example", 4)
    assert teacher.info.heads == (Head.masked_lm(60),)
    signals, batch = teacher.load_teacher(REQUEST).eval()(token_batch([9, 5]), REQUEST), token_batch([9, 5])
    network = BertForMaskedLM.from_pretrained(folder).eval()
    plain = network(batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
    torch.testing.assert_close(signals.tokens(1), plain.hidden_states[2].flatten(0, 1)[batch.token_index])
    torch.testing.assert_close(signals.logits("masked"), plain.logits.flatten(0, 1)[batch.masked_index])
    key = network.bert.encoder.layer[0].attention.self.key(plain.hidden_states[0])
    torch.testing.assert_close(next(signals.heads("key", 0)).states, key.unflatten(-1, (4, 8)).transpose(1, 2))


def test_models_lend_each_other_sizes_but_no_blocks(example, folder, saved_model):
    bert = TransformersModel(TransformersModel.Config(path=str(saved_model("bert"))), "teacher", None)
    own = example(example.Config(), "student", bert)
    assert (own.info.architecture, own.info.num_layers, own.info.max_length) == ("example", 4, 40)
    with pytest.raises(InputError, match="`bert` is not supported by this model"):
        example(example.Config.model_validate({"initialize": {"from": "teacher"}}), "student", bert)
    teacher = example(example.Config(path=str(folder)), "teacher", None)
    student = TransformersModel(TransformersModel.Config(config={"model_type": "distilbert"}), "student", teacher)
    assert (student.info.num_layers, student.hf_config.hidden_dim) == (4, 48)
    with pytest.raises(InputError, match="the student cannot have the teacher's `example`"):
        TransformersModel(TransformersModel.Config(), "student", teacher)
