"""Exports of sentence encoders and rerankers load in sentence-transformers, in environments with nothing of kdcore."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kdcore_embeddings import SentenceEncoder
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import kdcore
from kdcore import Signals, load_recipe
from kdcore.training.run.build import make_plan

VERSIONS = ["5.7.0", "6.2.0"]
READ = """
import json, sys
import sentence_transformers, torch
from sentence_transformers import CrossEncoder, SentenceTransformer

encoder, reranker, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = SentenceTransformer(encoder, device="cpu")
scores = CrossEncoder(reranker, device="cpu").predict(
    [(text, texts[0]) for text in texts], activation_fn=torch.nn.Identity()
)
vectors = model.encode(texts, prompt_name="document")
found = {"version": sentence_transformers.__version__, "vectors": vectors.tolist(), "scores": scores.tolist()}
found |= {"longest": model.max_seq_length, "prompts": model.prompts, "similarity": model.similarity_fn_name}
print(json.dumps(found))
"""


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def make_sentence_encoder(folder: Path, encoder: Path) -> None:
    """Save a sentence encoder with mean pooling, Dense to 24 and Normalize."""
    shutil.copytree(encoder, folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    write(folder / "2_Dense/config.json", {"in_features": 32, "out_features": 24, "bias": False})
    save_file({"linear.weight": torch.randn(24, 32)}, folder / "2_Dense/model.safetensors")
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "of ", "document": "the "}})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, teacher_folder: Path) -> Path:
    """A folder with a run of a sentence encoder, whose width differs from the teacher's, and one of a reranker."""
    root = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(1)
    make_sentence_encoder(root / "teacher", teacher_folder)
    BertForSequenceClassification.from_pretrained(teacher_folder, num_labels=1).save_pretrained(root / "judge")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(root / "judge")
    texts = corpus_file.read_text(encoding="utf-8").splitlines()
    pairs = [{"query": text, "document": texts[0], "relevance": len(text)} for text in texts]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    usual = {"training": {"budget": {"steps": 3}, "batch_size": 8}, "tracking": ["jsonl"]}
    encoder = {
        "run": {"name": "encoder", "id": 1, "folder": str(root / "runs")},
        "teacher": {"name": "sentence_transformer", "path": str(root / "teacher")},
        "student": {"config": {"num_hidden_layers": 1}, "initialize": {"from": "teacher"}},
        "task": {"name": "embeddings", "data": {"train": str(corpus_file), "held_out": 0.2}},
        "losses": {"embedding": {}},
        **usual,
    }
    data = {"train": str(root / "pairs.jsonl"), "text": ["query", "document"], "label": "relevance", "max_length": 40}
    reranker = {
        "extends": "kdcore:embeddings/reranker.yaml",
        "run": {"id": 1, "folder": str(root / "runs")},
        "teacher": {"path": str(root / "judge")},
        "student": {"config": {"num_hidden_layers": 1}},
        "task": {"data": {**data, "split": {"validation": 0.2}}},
        "training": {"budget": {"epochs": 1}},
        "tracking": ["jsonl"],
    }
    for name, recipe in (("encoder", encoder), ("reranker", reranker)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        assert kdcore.train(root / f"{name}.yaml").export is not None
    return root


@pytest.mark.parametrize("version", VERSIONS)
def test_sentence_transformers_computes_what_kdcore_does(
    version: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--retries", "0", "--no-deps"]
    done = subprocess.run([*map(str, install), f"sentence-transformers=={version}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip finds no package index: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]), encoding="utf-8")  # and what else it needs
    for name in ("PYTHONPATH", "PYTHONHOME"):
        monkeypatch.delenv(name, raising=False)
    encoder, reranker = (root / f"runs/{name}/1/exports/final" for name in ("encoder", "reranker"))
    plan = make_plan(load_recipe(encoder.parents[1] / "recipe.yaml"))
    task: Any = plan.task
    texts = task.parts["held_out"].texts
    command = [str(python), "-c", READ, str(encoder), str(reranker), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["version"], found["longest"], found["similarity"]) == (version, 40, "cosine")
    assert {name: found["prompts"][name] for name in ("query", "document")} == {"query": "of ", "document": "the "}
    own = plan.student.load_export(encoder, Signals.head("embedding"))
    assert own is not None
    samples = np.arange(len(texts))
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(reranker),
        AutoTokenizer.from_pretrained(reranker),
    )
    encoded = tokenizer(
        [(text, texts[0]) for text in texts], padding=True, truncation=True, max_length=40, return_tensors="pt"
    )
    with torch.no_grad():
        vectors = own.eval()(task.batch("held_out", samples, samples), Signals.head("embedding")).outputs("embedding")
        scores = network.eval()(**encoded).logits[:, 0]
    np.testing.assert_allclose(found["vectors"], vectors.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["scores"], scores.numpy(), atol=1e-5)
    print(f"sentence-transformers {version}: vectors and scores of exports equal those of kdcore")


MTEB = """
import json, sys
import mteb
from kdcore_embeddings import mteb_task
from sentence_transformers import SentenceTransformer

encoder, pairs = sys.argv[1:]
keys = {"path": pairs, "texts": ["query", "document"]}
tasks = [
    mteb_task("LocalSearch", {"path": pairs, "query": "query", "positive": "document"}),
    mteb_task("LocalScores", keys | {"score": "score"}),
    mteb_task("LocalLabels", keys | {"label": "label"}),
]
model = SentenceTransformer(encoder, device="cpu")
found = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
print(json.dumps({one.task_name: one.scores["test"][0] for one in found}))
"""


def test_mteb_scores_a_student_on_a_local_file_as_kdcore_does(root: Path, tmp_path: Path) -> None:
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    encoder = SentenceEncoder(str(root / "runs/encoder/1/exports/final"))
    words = ["abc", "of", "the", "teacher", "student", "efg"]
    queries = [f"{words[n % 6]} {words[n // 6]} {n}" for n in range(36)]
    documents = [f"{words[n // 6]} {words[(n + 1) % 6]} {words[n % 5]}, {n}" for n in range(36)]
    values = [float(n * n % 7) for n in range(36)]
    rows = [
        {"query": query, "document": document, "score": value, "label": int(value > 2)}
        for query, document, value in zip(queries, documents, values, strict=True)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(path for path in sys.path if Path(path).is_dir()), encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--retries", "0", "mteb>=2.26,<3"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip finds no package index: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    command = [python, "-c", MTEB, encoder.source, str(tmp_path / "pairs.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    asked, read = encoder.encode(queries, encoder.query_prompt), encoder.encode(documents, encoder.document_prompt)
    search = [metrics.ndcg_score(np.eye(36)[[n]], (read @ asked[n])[None], k=10) for n in range(36)]
    assert found["LocalSearch"]["main_score"] == pytest.approx(np.mean(search), abs=1e-4)
    first, second = (encoder.encode(texts, encoder.prompt) for texts in (queries, documents))
    cosines = (first * second).sum(1)
    assert found["LocalScores"]["main_score"] == pytest.approx(stats.spearmanr(cosines, values)[0], abs=1e-4)
    precision = metrics.average_precision_score([value > 2 for value in values], cosines)
    assert found["LocalLabels"]["cosine_ap"] == pytest.approx(precision, abs=1e-4)
