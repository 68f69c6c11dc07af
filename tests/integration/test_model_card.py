"""The model card of an export, and the recipe in TensorBoard."""

from __future__ import annotations

import io
import re
import struct
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from transformers import AutoModel, AutoTokenizer

import kdcore
from kdcore import TransformersModel, load_recipe
from kdcore.recipe.paths import package_path, resolve_path
from kdcore.training.run.build import make_plan
from kdcore.training.run.export import model_card


def code_of(card: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)
    return str(found)


def front_matter(card: str) -> dict[str, Any]:
    metadata: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return metadata


def test_a_card_loads_the_model_and_repeats_the_run(
    small_recipe: Path, tmp_path: Path, teacher_folder: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = kdcore.train(small_recipe, ["tracking=[tensorboard, jsonl]"])
    assert result.export is not None
    card = (result.export / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["library_name"] == "transformers"
    assert front_matter(card)["pipeline_tag"] == "feature-extraction"
    assert "base_model" not in front_matter(card), "a folder of this machine is not a model of the hub"
    assert str(tmp_path.parent) not in card

    monkeypatch.chdir(result.export)
    variables: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as printed:
        exec(code_of(card, "python"), variables)
    tokens = AutoTokenizer.from_pretrained(result.export)("A sentence.", return_tensors="pt")
    states = AutoModel.from_pretrained(result.export)(**tokens).last_hidden_state
    torch.testing.assert_close(variables["model"](**variables["inputs"]).last_hidden_state, states)
    assert printed.getvalue().startswith("tensor(")

    elsewhere = tmp_path / "elsewhere"
    for source in (teacher_folder, corpus_file):
        place = elsewhere / source.parent.name / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)
    (elsewhere / "again.yaml").write_text(code_of(card, "yaml"), encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    again = kdcore.train("again.yaml")
    assert again.folder == elsewhere / "runs" / "small" / "1"
    assert again.held_out == pytest.approx(result.held_out)

    check_tensorboard(result.folder)


def check_tensorboard(run: Path) -> None:
    """The event file holds the recipe as text and its values as hyperparameters, read without TensorBoard."""
    (file,) = (run / "tensorboard").iterdir()
    values, content = {}, file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        for value in Event.FromString(content[12 : 12 + length]).summary.value:
            values[value.tag] = value
        content = content[16 + length :]
    assert {"train/loss", "held_out/loss"} <= values.keys()
    lines = values["recipe/text_summary"].tensor.string_val[0].decode().splitlines()
    text = "\n".join(line.removeprefix("    ") for line in lines)
    stored = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(text) == stored
    start = HParamsPluginData.FromString(values["_hparams_/session_start_info"].metadata.plugin_data.content)
    stated = start.session_start_info.hparams
    assert stated["optimizer.lr"].number_value == stored["optimizer"]["lr"]
    assert stated["losses.hidden_mse.layers"].string_value == "last"
    assert stated["optimizer.betas"].string_value == "[0.9, 0.98]"
    found = HParamsPluginData.FromString(values["_hparams_/experiment"].metadata.plugin_data.content)
    assert [one.name.tag for one in found.experiment.metric_infos] == ["train/loss", "held_out/loss"]


def test_teachers_of_the_hub_and_trained_heads_are_in_the_metadata(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(load_recipe(small_recipe, ["losses={masked_lm: {}, soft_targets: {}}"]))
    student = plan.build_student()
    monkeypatch.setattr(TransformersModel, "source", property(lambda model: "someone/teacher"))
    card = model_card(student, plan, 3, None)
    assert front_matter(card)["base_model"] == "someone/teacher"
    assert front_matter(card)["pipeline_tag"] == "fill-mask"
    assert "AutoModelForMaskedLM.from_pretrained(path)" in code_of(card, "python")
    assert ").logits)" in code_of(card, "python")
    assert f"| fingerprint of the data | {plan.task.fingerprint} |" in card
    assert np.all([line.count("|") == 3 for line in card.splitlines() if line.startswith("| ")])


def test_paths_in_packages_are_named_by_their_package(packages: Any, tmp_path: Path) -> None:
    packages.install("some-corpus", {}, {"some_corpus/texts/one.txt": "text"})
    (record,) = packages.folder.glob("*.dist-info")
    (record / "top_level.txt").write_text("some_corpus\n", encoding="utf-8")
    path = str(packages.folder / "some_corpus" / "texts" / "one.txt")
    assert package_path(path) == "package:some-corpus/some_corpus/texts/one.txt"
    assert resolve_path("package:some-corpus/some_corpus/texts/one.txt", tmp_path) == path
    assert package_path(str(tmp_path / "one.txt")) is None
    assert package_path(str(packages.folder / "other" / "one.txt")) is None
