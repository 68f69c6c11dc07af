"""Distil a sentence encoder through the real engine, and load the export with other libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_embeddings import SentenceEncoder, fit_linear_map, store_vectors
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import kdcore
from kdcore import Signals, load_recipe, read_metrics
from kdcore.commands.main import main
from kdcore.training.run.build import make_plan

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, some_texts: list[str]) -> Path:
    """A folder with texts."""
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "texts.txt").write_text("\n".join(some_texts) + "\n", encoding="utf-8")
    return folder


def write_recipe(folder: Path, sentence_folder: Path, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(
        f"""\
run: {{name: sentences, id: 1}}
teacher: {{name: sentence_transformer, path: {sentence_folder}}}
student:
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: teacher, blocks: uniform}}
task: {{name: embeddings, data: {{train: texts.txt, held_out: 0.2}}}}
losses:
  embedding: {{distance: mse, weight: 10}}
optimizer: {{name: adamw, lr: 3.0e-3}}
training: {{budget: {{steps: 40}}, batch_size: 16}}
validation: {{every: 20}}
logging: {{every: 20}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def run(folder: Path, sentence_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose student differs from the teacher in width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(folder)
        return Path(kdcore.train(str(write_recipe(folder, sentence_folder))).folder)


def test_the_student_approaches_the_teacher(run: Path) -> None:
    held_out = [row["held_out/embedding"] for row in read_metrics(run) if "held_out/embedding" in row]
    assert held_out[-1] < 0.5 * held_out[0]


def own_embeddings(run: Path, export: Path, split: str = "held_out") -> tuple[list[str], np.ndarray]:
    """Texts of a split, and kdcore's own embeddings of an exported student."""
    plan = make_plan(load_recipe(run / "recipe.yaml"))
    encoder = plan.student.load_export(export, Signals.head("embedding"))
    assert encoder is not None
    task: Any = plan.task
    samples = np.arange(task.num_samples(split))
    with torch.no_grad():
        signals = encoder.eval()(task.batch(split, samples, samples), Signals.head("embedding"))
    return task.parts[split].texts, signals.outputs("embedding").numpy()


def test_sentence_transformers_gives_the_embeddings_of_the_export(run: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    export = run / "exports/final"
    texts, expected = own_embeddings(run, export)
    loaded = library.SentenceTransformer(str(export), device="cpu")
    np.testing.assert_allclose(loaded.encode(texts, prompt_name="document"), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.encode_document(texts), expected, atol=1e-5)
    assert loaded.max_seq_length == 40
    assert loaded.prompts == {"query": "of ", "document": "the "}
    assert loaded.similarity_fn_name == "cosine"
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)


def test_the_export_has_the_classic_schema(run: Path) -> None:
    export = run / "exports/final"

    def stored(name: str) -> Any:
        return json.loads((export / name).read_text(encoding="utf-8"))

    assert [module["type"] for module in stored("modules.json")] == [
        f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    assert stored("sentence_bert_config.json") == {"max_seq_length": 40, "do_lower_case": False}
    pooling = stored("1_Pooling/config.json")
    assert pooling["word_embedding_dimension"] == 32
    assert [key for key, value in pooling.items() if key.startswith("pooling_mode") and value] == [
        "pooling_mode_mean_tokens"
    ]
    dense = {"in_features": 32, "out_features": 24, "bias": True}
    assert stored("2_Dense/config.json") == dense | {"activation_function": "torch.nn.modules.linear.Identity"}
    files = load_file(export / "2_Dense/model.safetensors"), torch.load(export / "2_Dense/pytorch_model.bin")
    for weights in files:  # older versions read the second one
        assert {name: tuple(one.shape) for name, one in weights.items()} == {
            "linear.weight": (24, 32),
            "linear.bias": (24,),
        }
        assert all(one.equal(files[0][name]) for name, one in weights.items())
    network, report = AutoModel.from_pretrained(export, output_loading_info=True)
    assert not report["missing_keys"]
    assert network.config.num_hidden_layers == 2


def test_the_model_card_and_the_summary_name_sentence_transformers(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    card = (run / "exports/final/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n")
    assert main(["summary", str(run)]) == 0
    assert "exports/final  (sentence-transformers loads it)" in capsys.readouterr().out
    pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(run / "exports/final")
    variables: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], variables)
    assert variables["queries"].shape == (1, 24)
    prompted = variables["model"].encode(["the a document"])
    np.testing.assert_allclose(variables["documents"][:1], prompted, atol=1e-5)


def test_an_export_is_a_teacher_with_the_same_embeddings(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    _, expected = own_embeddings(run, run / "exports/final")
    recipe = write_recipe(folder, run / "exports/final", "again.yaml")
    plan = make_plan(load_recipe(recipe))
    encoder = plan.teachers["teacher"].load_teacher(Signals.head("embedding")).eval()
    samples = np.arange(plan.task.num_samples("held_out"))
    with torch.no_grad():
        signals = encoder(plan.task.batch("held_out", samples, samples).teacher_view, Signals.head("embedding"))
    np.testing.assert_allclose(signals.outputs("embedding").numpy(), expected, atol=1e-6)


def test_a_student_that_starts_from_an_export_keeps_its_linear_map(
    run: Path, folder: Path, sentence_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    recipe = write_recipe(folder, sentence_folder, "further.yaml")
    start = [f"student.initialize.from={run / 'exports/final'}"]
    stored = load_file(run / "exports/final/2_Dense/model.safetensors")

    def linear_map(*changes: str) -> dict[str, torch.Tensor]:
        encoder = make_plan(load_recipe(recipe, [*start, *changes])).build_student()
        assert encoder.training
        weights: dict[str, torch.Tensor] = encoder.heads["embedding"].dense.linear.state_dict()
        return weights

    found = linear_map()
    assert found.keys() == {"weight", "bias"}
    assert all(torch.equal(value, stored[f"linear.{name}"]) for name, value in found.items())
    assert "initialised randomly" not in caplog.text
    changed = linear_map("task.pooling=cls")
    assert not torch.equal(changed["weight"], stored["linear.weight"])
    assert "the student's head `embedding` is initialised randomly" in caplog.text


def test_a_linear_map_is_fitted_to_the_teachers_vectors(
    run: Path,
    folder: Path,
    sentence_folder: Path,
    some_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    initial, start, teacher = run / "exports/initial", tmp_path / "start", SentenceEncoder(str(sentence_folder))
    explained = fit_linear_map(initial, teacher, [*some_texts, some_texts[0]], start)
    network, tokenizer = AutoModel.from_pretrained(initial).eval(), AutoTokenizer.from_pretrained(initial)
    encoded = tokenizer([f"the {text}" for text in some_texts], padding=True, return_tensors="pt")
    mask = encoded["attention_mask"][..., None]
    with torch.no_grad():
        states = network(**encoded).last_hidden_state
    pooled = ((states * mask).sum(1) / mask.sum(1)).double().numpy()
    penalty = 0.01 * pooled.var(0).sum() * len(pooled) / pooled.shape[1]
    vectors = teacher.encode(some_texts)
    expected = linear_model.Ridge(alpha=penalty).fit(pooled, vectors)
    found = load_file(start / "2_Dense/model.safetensors")
    np.testing.assert_allclose(found["linear.weight"].numpy(), expected.coef_, atol=1e-3)
    np.testing.assert_allclose(found["linear.bias"].numpy(), expected.intercept_, atol=1e-3)
    predicted = expected.predict(pooled)
    left, whole = np.square(vectors - predicted).sum(), np.square(vectors - vectors.mean(0)).sum()
    assert explained == pytest.approx(1 - left / whole, abs=1e-4)
    assert explained > 0.5
    direction = predicted / np.linalg.norm(predicted, axis=1, keepdims=True)
    np.testing.assert_allclose(SentenceEncoder(str(start)).encode(some_texts, "the "), direction, atol=1e-3)
    monkeypatch.chdir(folder)
    recipe = write_recipe(folder, sentence_folder, "fitted.yaml")
    student: Any = make_plan(load_recipe(recipe, [f"student.initialize.from={start}"])).build_student()
    assert torch.equal(student.heads["embedding"].dense.linear.weight, found["linear.weight"])


def test_linear_maps_that_cannot_be_fitted_are_refused(
    run: Path, sentence_folder: Path, make_sentence_folder: Callable[..., Path], some_texts: list[str], tmp_path: Path
) -> None:
    initial, wide = run / "exports/initial", make_sentence_folder(layers=())
    for source, teacher, texts, message in [
        (
            initial,
            sentence_folder,
            some_texts[:32],
            r"too few different texts to fit a linear map \(found 32, expected",
        ),
        (initial, wide, some_texts, r"the width of the teacher's vectors differs .* \(found 32, expected 24\)"),
        (sentence_folder, sentence_folder, some_texts, "is not an exported student with a linear map"),
        (wide, sentence_folder, some_texts, "is not an exported student with a linear map"),
    ]:
        with pytest.raises(kdcore.InputError, match=message):
            fit_linear_map(source, SentenceEncoder(str(teacher)), texts, tmp_path / "start")
        assert not (tmp_path / "start").exists()
    with pytest.raises(kdcore.InputError, match="the folder already exists"):
        fit_linear_map(initial, SentenceEncoder(str(sentence_folder)), some_texts, tmp_path)


def test_a_student_of_the_teachers_width_has_no_linear_map_and_is_exported(
    folder: Path, make_sentence_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path))
    source = make_sentence_folder(layers=(), max_seq_length=12)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    sides = {"padding_side": "left", "truncation_side": "left"}  # the student is trained with "right" and exported so
    (source / "tokenizer_config.json").write_text(json.dumps(settings | sides))
    recipe = write_recipe(folder, source, "plain.yaml")
    steps = ["run.id=plain", "training.budget.steps=2", "validation.every=never", "task.pooling=cls"]
    run = Path(kdcore.train(str(recipe), steps).folder)
    texts, expected = own_embeddings(run, run / "exports/final")
    types = [module["type"] for module in json.loads((run / "exports/final/modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling")]
    library = pytest.importorskip("sentence_transformers")
    loaded = library.SentenceTransformer(str(run / "exports/final"), device="cpu")
    np.testing.assert_allclose(loaded.encode(texts), expected, atol=1e-5)
    assert (loaded.tokenizer.padding_side, loaded.tokenizer.truncation_side) == ("right", "right")


def test_mistakes_are_named_before_anything_is_written(
    folder: Path, sentence_folder: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    recipe = write_recipe(folder, sentence_folder, "wrong.yaml")
    cases = [
        (["task.dimension=16"], "losses.embedding: `embedding` requires embeddings of equal widths (student: 16, tea"),
        ([f"teacher={{name: transformers, path: {teacher_folder}}}"], "requires a teacher with embeddings"),
        (["teacher=null", f"student.initialize.from={teacher_folder}"], "the recipe has none"),
        (["task.max_length=100"], "sequences are too long for the student|expected at most 64"),
        (["task.data.train=absent.txt"], "task.data.train"),
    ]
    for overrides, message in cases:
        if "max_length" in overrides[0]:
            (folder / "long.txt").write_text("of " * 90, encoding="utf-8")
            overrides = [*overrides, "task.data={train: long.txt, held_out: 0.0}", "task.teacher_max_length=100"]
        with pytest.raises(kdcore.InputError) as refused:
            kdcore.train(str(recipe), ["run.id=wrong", *overrides])
        assert any(part in str(refused.value) for part in message.split("|")), str(refused.value)
    assert not (folder / "runs/sentences/wrong").exists()


@pytest.mark.processes
@pytest.mark.sample
def test_coupled_losses_over_two_processes_and_several_micro_batches_are_those_of_one(
    folder: Path, sentence_folder: Path, some_texts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path))
    groups = [{"q": some_texts[n], "p": f"{some_texts[n]} of", "n": [some_texts[(n + 7) % 70]]} for n in range(70)]
    (folder / "groups.jsonl").write_text("\n".join(map(json.dumps, groups)), encoding="utf-8")
    recipe = write_recipe(folder, sentence_folder, "groups.yaml")
    overrides = [
        "task.data={train: groups.jsonl, query: q, positive: p, negatives: n}",
        "losses={similarity: {temperature: 0.2}, info_nce: {dimensions: [8]}, margin_mse: {}, listwise_kl: {}}",
        "training={budget: {steps: 3}, batch_size: 8, gradient_caching: true}",
        "validation.every=3",
        "logging.every=1",
        "optimizer={name: adamw, lr: 1.0e-3, eps: 1.0e-4}",
    ]
    whole = Path(kdcore.train(str(recipe), [*overrides, "run.id=whole"]).folder)
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(recipe), *overrides, "run.id=split"]
    command += ["training.micro_batch_size=2", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    split = folder / "runs/sentences/split"
    names = ["train/similarity", "train/info_nce", "train/margin_mse", "train/listwise_kl", "held_out/ndcg_at_10"]
    for name in names:
        found, expected = ([row[name] for row in read_metrics(run) if name in row] for run in (split, whole))
        assert len(found) == len(expected) > 1
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    weights, expected_weights = (load_file(run / "exports/final/model.safetensors") for run in (split, whole))
    for name, weight in expected_weights.items():
        if "key.bias" not in name:  # the gradient of a key's bias is 0 but for rounding
            torch.testing.assert_close(
                weights[name], weight, rtol=0, atol=2e-5, msg=lambda text, name=name: name + text
            )
    assert json.loads((whole / "predictions/scores.json").read_text())["scores"]["ndcg_at_10"] > 0


@pytest.mark.parametrize("loss", ["margin_mse", "listwise_kl"])
def test_the_scale_of_cosines_is_trained(
    loss: str,
    folder: Path,
    sentence_folder: Path,
    some_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path))
    groups = [
        {"q": text, "p": f"{text} of", "n": [some_texts[(n + 7) % 70]], "s": [5.0, -6.0]}
        for n, text in enumerate(some_texts)
    ]
    (folder / "scored.jsonl").write_text("\n".join(map(json.dumps, groups)), encoding="utf-8")
    recipe = write_recipe(folder, sentence_folder, "scored.yaml")
    overrides = [
        "task.data={train: scored.jsonl, query: q, positive: p, negatives: n, scores: s}",
        "losses.embedding=null",
        *[f"losses.{loss}={{scores: data, similarity: cosine}}" for loss in ("margin_mse", "listwise_kl")],
        "training={budget: {steps: 4}, batch_size: 16}",
        "validation.every=never",
        "logging.every=1",
        "run.id=scored",
    ]
    run = Path(kdcore.train(str(recipe), overrides).folder)
    for name in ("train/margin_mse", "train/listwise_kl"):
        values = [row[name] for row in read_metrics(run) if name in row]
        assert values[-1] < values[0]


def test_any_object_with_encode_is_a_teacher(
    folder: Path, teacher_folder: Path, some_texts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)

    class Lengths:
        def encode(self, texts: list[str]) -> Any:
            return torch.tensor([[len(text), text.count("a"), 1.0] for text in texts])

    data = {"train": "texts.txt", "held_out": 0.2}
    path = tmp_path / "vectors.parquet"
    assert store_vectors(Lengths(), data, path) == 70
    recipe = write_recipe(folder, teacher_folder, "encoded.yaml")
    plan = make_plan(
        load_recipe(recipe, [f"teacher={{name: vectors, path: {path}}}", f"student.initialize.from={teacher_folder}"])
    )
    task: Any = plan.task
    encoder = plan.teachers["teacher"]
    samples = np.arange(task.num_samples("held_out"))
    batch = task.draw("held_out", samples, samples)
    found = encoder.load_teacher(Signals.head("embedding"))(batch, Signals.head("embedding")).outputs("embedding")
    np.testing.assert_array_equal(found.numpy(), Lengths().encode(task.parts["held_out"].texts).numpy())

    def refusal(returned: Any, data: dict[str, Any] = data, name: str = "new.parquet") -> str:
        encoder = SimpleNamespace(encode=lambda texts: returned)
        with pytest.raises(kdcore.InputError) as refused:
            store_vectors(encoder, data, tmp_path / name)
        assert not (tmp_path / name).exists()
        return str(refused.value)

    assert "returned an array of shape (3, 2) (expected (70, C))" in refusal(np.zeros((3, 2)))
    broken = np.zeros((70, 2))
    broken[5, 1] = np.nan
    assert "returned NaN or infinity for 1 of 70 texts, such as" in refusal(broken)
    assert "does not end with .parquet" in refusal(broken, name="vectors.txt")
    assert "groups have no vectors" in refusal(broken, {"train": "x", "query": "q", "positive": "p"})
    assert "needs either `train`" in refusal(broken, {})


def test_a_student_of_another_vocabulary_learns_translations(
    folder: Path,
    sentence_folder: Path,
    teacher_folder: Path,
    some_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path))
    words = {"the": "xyz", "teacher": "abc", "of": "efg", "student": "xyz", "and": "b"}
    rows = [{"en": text, "de": " ".join(words.get(word, word) for word in text.split())} for text in some_texts]
    (folder / "parallel.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    overrides = [f"teacher.path={sentence_folder}", f"student.initialize.from={teacher_folder}", "run.id=1"]
    overrides += ["task.data={train: parallel.jsonl, text: en, translations: de, held_out: 0.2}"]
    overrides += ["training={budget: {steps: 40}, batch_size: 16}", "optimizer.lr=3e-3", "tracking=[jsonl]"]
    overrides += ["validation.every=20", "checkpoints.every=40"]
    run = Path(kdcore.train("kdcore:embeddings/multilingual.yaml", overrides).folder)
    held_out = [row["held_out/embedding"] for row in read_metrics(run) if "held_out/embedding" in row]
    assert held_out[-1] < 0.7 * held_out[0]
    config = json.loads((run / "exports/final/config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 4, "all blocks of the encoder that it starts from"


def test_a_teacher_of_vectors_gives_each_text_its_vector(
    folder: Path, teacher_folder: Path, some_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    vectors = np.random.default_rng(0).standard_normal((70, 12)).astype(np.float32)
    rows = [
        {"id": str(number), "text": text, "vector": vectors[number].tolist()} for number, text in enumerate(some_texts)
    ]
    (folder / "vectors.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = write_recipe(folder, teacher_folder, "vectors.yaml")
    teacher = ["teacher={name: vectors, path: vectors.jsonl}", f"student.initialize.from={teacher_folder}"]
    plan = make_plan(load_recipe(recipe, teacher))
    task: Any = plan.task
    assert task.config.dimension == 12
    encoder = plan.teachers["teacher"]
    encoder.check_task(task, {split: Signals.head("embedding") for split in ("train", "held_out")})
    samples = np.array([3, 0, 7])
    batch = task.draw("train", samples, samples)
    found = encoder.load_teacher(Signals.head("embedding"))(batch, Signals.head("embedding")).outputs("embedding")
    expected = [vectors[some_texts.index(task.parts["train"].texts[sample])] for sample in samples]
    np.testing.assert_array_equal(found.numpy(), expected)
