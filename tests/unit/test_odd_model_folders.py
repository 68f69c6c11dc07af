"""Malformed model folders: refused early by file and key; nothing outside of them is read."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcore.errors import DataError
from kdcore.models.transformers import TransformersModel
from kdcore.signals import Signals

INDEX = "model.safetensors.index.json"
TEXTS = {
    "a list": ("[1]", "config.json: has the wrong type (found [1], expected a map)"),
    "null": ("null", "config.json: has the wrong type (found None, expected a map)"),
    "text": ('"bert"', "config.json: has the wrong type (found 'bert', expected a map)"),
    "deep lists": ("[" * 100_000, "config.json: is not valid JSON: recursion limit exceeded"),
    "deep maps": ('{"a":' * 5000 + "1" + "}" * 5000, "config.json: is not valid JSON: recursion limit exceeded"),
    "a deep value": ('{"model_type": "bert", "x": ' + "[" * 900 + "]" * 900 + "}", "recursion limit exceeded"),
    "5,000 digits": ('{"model_type": "bert", "hidden_size": ' + "9" * 5000 + "}", "number out of range"),
    "bytes": ("\0\0", "config.json: is not valid JSON"),
}
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a billion blocks": ({"num_hidden_layers": 10**9}, "num_hidden_layers is out of range (found 1000000000, expected"),
    "a wide model": ({"hidden_size": 10**9, "num_attention_heads": 1}, "hidden_size is out of range"),
    "a huge vocabulary": ({"vocab_size": 10**12}, "vocab_size is out of range"),
    "many positions": ({"max_position_embeddings": 10**9}, "max_position_embeddings is out of range"),
    "infinity": ({"hidden_size": float("inf")}, "hidden_size"),
    "architectures": (
        {"architectures": 5},
        "config.json: architectures: has the wrong type (found 5, expected a list)",
    ),
    "an architecture": (
        {"architectures": [1]},
        "config.json: architectures.0: has the wrong type (found 1, expected text",
    ),
    "labels": ({"id2label": 5}, "config.json: id2label: has the wrong type (found 5, expected a map)"),
    "a label": (
        {"id2label": {"x": "y"}, "architectures": ["BertForSequenceClassification"]},
        "configuration cannot be read",
    ),
    "a list of types": ({"model_type": ["bert"]}, "config.json: model_type: has the wrong type"),
    "a number of code": ({"auto_map": 5}, "config.json: auto_map: has the wrong type (found 5, expected a map)"),
    "an activation": ({"hidden_act": "nope"}, "nope"),
    "a type of floats": ({"dtype": "os.system"}, "configuration cannot be read"),
    "a text as a number": ({"layer_norm_eps": "x"}, "layer_norm_eps"),
}
INDEXES = {
    "traversal": ('{"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}', f"{INDEX}: weight_map.a: "),
    "an absolute path": ('{"metadata": {}, "weight_map": {"a": "/etc/passwd"}}', f"{INDEX}: weight_map.a: "),
    "a hidden file": ('{"metadata": {}, "weight_map": {"a": ".hidden"}}', f"{INDEX}: weight_map.a: "),
    "a number as a file": ('{"metadata": {}, "weight_map": {"a": 1}}', f"{INDEX}: weight_map.a: has the wrong type"),
    "no weights": ('{"metadata": {}, "weight_map": {}}', f"{INDEX}: weight_map: "),
    "a number of weights": ('{"metadata": {}, "weight_map": 5}', f"{INDEX}: weight_map: has the wrong type (found 5"),
    "no metadata": ('{"weight_map": {"a": "b"}}', f"{INDEX}: metadata: is missing"),
    "a list": ("[1]", f"{INDEX}: has the wrong type (found [1], expected a map)"),
    "deep lists": ("[" * 10_000, f"{INDEX}: is not valid JSON: recursion limit exceeded"),
}


@pytest.fixture
def refused(teacher_folder: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], str]:
    """Change a copy of a good folder and load it; returns the message."""

    def load(change: Callable[[Path], None]) -> str:
        folder = tmp_path / "model"
        shutil.copytree(teacher_folder, folder)
        change(folder)
        started = time.process_time()
        with pytest.raises(DataError) as caught:
            TransformersModel(TransformersModel.Config(path=str(folder)), "teacher", None).load_teacher(
                Signals.hidden([1])
            )
        assert time.process_time() - started < 1.0
        message = str(caught.value)
        assert str(folder) in message
        assert len(message) < 5000
        return message

    return load


@pytest.mark.parametrize("name", TEXTS)
def test_odd_text_as_config(refused: Callable[..., str], name: str) -> None:
    text, words = TEXTS[name]
    assert words in refused(lambda folder: (folder / "config.json").write_text(text, encoding="utf-8"))


@pytest.mark.parametrize("name", CHANGES)
def test_odd_values_in_config(refused: Callable[..., str], name: str) -> None:
    changes, words = CHANGES[name]

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    assert words in refused(change)


@pytest.mark.parametrize("name", INDEXES)
def test_odd_indexes_of_weights(refused: Callable[..., str], name: str) -> None:
    text, words = INDEXES[name]

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / INDEX).write_text(text, encoding="utf-8")

    assert words in refused(change)


@pytest.mark.parametrize("content", [b"\xff" * 100, (2**40).to_bytes(8, "little") + b"{}", b""])
def test_odd_weights(refused: Callable[..., str], content: bytes) -> None:
    assert "the model's weights cannot be loaded" in refused(
        lambda folder: (folder / "model.safetensors").write_bytes(content)
    )
