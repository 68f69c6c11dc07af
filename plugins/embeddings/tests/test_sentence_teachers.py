"""Teachers from folders of sentence-transformers: their embeddings are those of the library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from kdcore_embeddings.data.text_tokens import TextTokenizer
from kdcore_embeddings.sentence_folder import read_sentence_folder
from kdcore_embeddings.teacher import SentenceTransformerModel
from safetensors.torch import load_file

from kdcore import DataError, Signals

MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def embeddings(folder: Path, texts: list[str], prompt: str = "", *, packs: bool = False) -> np.ndarray:
    """The head `embedding` of the teacher in a folder."""
    config = SentenceTransformerModel.Config.model_validate({"path": str(folder)})
    model = SentenceTransformerModel(config, "teacher", None)
    assert model.folder is not None
    encoder = model.load_teacher(Signals.head("embedding")).eval()
    encoder.packs = packs
    length, lower_case = model.folder.max_length or 64, model.folder.lower_case
    tokenizer = TextTokenizer(str(folder), length, lower_case=lower_case, own_side=True)
    tokens = tokenizer.encode(texts, [prompt] * len(texts))
    with torch.no_grad():
        signals = encoder(tokens.batch(np.arange(len(texts))), Signals.head("embedding"))
    found: np.ndarray = signals.outputs("embedding").numpy()
    assert found.shape[1] == model.info.head("embedding").num_outputs
    return found


@pytest.mark.parametrize("packs", [False, True])
def test_embeddings_are_those_of_sentence_transformers(
    packs: bool, make_sentence_folder: Callable[..., Path], some_texts: list[str], tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    cases: list[dict[str, Any]] = [{"modes": (mode,), "layers": ()} for mode in MODES]
    cases += [{"modes": MODES, "layers": ("Dense", "LayerNorm", "Normalize")}]
    for case in cases:
        folder = make_sentence_folder(**case)
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        expected = theirs.encode(some_texts)
        np.testing.assert_allclose(embeddings(folder, some_texts, packs=packs), expected, atol=1e-5)
    theirs.save(str(tmp_path / "new"))  # the format of the installed version
    stored = read_sentence_folder(str(tmp_path / "new"))
    assert stored.modes == read_sentence_folder(str(folder)).modes
    assert stored.max_length == 40
    np.testing.assert_allclose(embeddings(tmp_path / "new", some_texts), expected, atol=1e-5)


def test_prompts_and_lower_case_are_those_of_the_folder(
    sentence_folder: Path, make_sentence_folder: Callable[..., Path], some_texts: list[str]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    stated = read_sentence_folder(str(sentence_folder))
    assert stated.prompt("query") == "of "
    assert stated.prompt("absent", "document") == "the "
    assert stated.prompt("absent") == ""
    assert stated.normalizes
    expected = library.SentenceTransformer(str(sentence_folder), device="cpu").encode(some_texts, prompt_name="query")
    np.testing.assert_allclose(embeddings(sentence_folder, some_texts, "of "), expected, atol=1e-5)
    folder = make_sentence_folder()
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(["The Teacher", "OF"])
    np.testing.assert_allclose(embeddings(folder, ["The Teacher", "OF"]), expected, atol=1e-5)


def test_texts_of_a_teacher_are_cut_at_the_side_that_its_tokenizer_states(
    make_sentence_folder: Callable[..., Path], some_texts: list[str]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = make_sentence_folder(max_seq_length=10)
    change(folder / "tokenizer_config.json", truncation_side="left")
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(some_texts)
    np.testing.assert_allclose(embeddings(folder, some_texts), expected, atol=1e-5)


def test_embeddings_are_truncated_as_the_folder_states(
    make_sentence_folder: Callable[..., Path], some_texts: list[str]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = make_sentence_folder()
    change(folder / "config_sentence_transformers.json", truncate_dim=8)
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(some_texts)
    assert expected.shape[1] == 8
    np.testing.assert_allclose(embeddings(folder, some_texts), expected, atol=1e-5)
    assert not read_sentence_folder(str(folder)).normalizes


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_is_downloaded_with_one_kind_of_weights(
    stored: str, make_sentence_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_sentence_folder(layers=("Normalize",))
    torch.save(load_file(repository / "model.safetensors"), repository / "pytorch_model.bin")
    if stored == "pytorch_model.bin":
        (repository / "model.safetensors").unlink()

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None = None) -> str:
        assert name == "someone/encoder"
        names = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for one in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / one).parent.mkdir(exist_ok=True)
            shutil.copyfile(repository / one, tmp_path / one)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = read_sentence_folder("someone/encoder")
    assert [path.name for path in folder.encoder.iterdir() if path.suffix in (".bin", ".safetensors")] == [stored]
    assert embeddings(tmp_path, ["the"]).shape == (1, 32)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_folders_that_cannot_be_reproduced_are_refused_by_name(
    make_sentence_folder: Callable[..., Path], tmp_path: Path, teacher_folder: Path
) -> None:
    def refusal(folder: Path) -> str:
        with pytest.raises(DataError) as refused:
            SentenceTransformerModel(SentenceTransformerModel.Config(path=str(folder)), "teacher", None)
        return str(refused.value)

    assert "has no modules.json" in refusal(teacher_folder)
    for kind in ("WordWeights", "Router", "CNN"):
        folder = make_sentence_folder(layers=(kind,))
        found = refusal(folder)
        assert f"module 2 of modules.json has the type `sentence_transformers.models.{kind}`" in found
        assert "allowed: Dense, LayerNorm, Normalize" in found
    assert "module 0 of modules.json has the type `my_code.Transformer`" in refusal(
        make_sentence_folder(package="my_code.")
    )
    folder = make_sentence_folder()
    change(folder / "2_Dense/config.json", activation_function="my_code.Swish")
    assert "the activation function `my_code.Swish` is not supported" in refusal(folder)
    change(folder / "2_Dense/config.json", activation_function="torch.nn.modules.linear.Identity", in_features=7)
    assert "the module expects 7 inputs, but the previous module has 32 outputs" in refusal(folder)
    change(folder / "2_Dense/config.json", in_features=32, use_residual=True)
    assert "`use_residual: True` of a Dense module is not supported" in refusal(folder)
    for name, value, message in [
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "`prompts`: Input should be a valid dictionary"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "jaccard"}, "`similarity_fn_name`: Input should"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "`max_seq_length`: Input should be greater than or"),
        ("sentence_bert_config.json", {"max_seq_length": "512"}, "`max_seq_length`: Input should be a valid integer"),
        ("2_Dense/config.json", {"in_features": None}, "`in_features`: Input should be a valid integer"),
    ]:
        folder = make_sentence_folder()
        change(folder / name, **value)
        assert f"{folder / name}: has values that cannot be used: {message}" in refusal(folder)
    folder = make_sentence_folder()
    (folder / "2_Dense/pytorch_model.bin").write_bytes(b"damaged")
    assert "the weights cannot be loaded" in refusal(folder)
    folder = make_sentence_folder()
    change(folder / "1_Pooling/config.json", pooling_mode="median")
    assert "the pooling mode `median` is unknown" in refusal(folder)
    (folder / "modules.json").write_text("[")
    assert "modules.json: cannot be read" in refusal(folder)
