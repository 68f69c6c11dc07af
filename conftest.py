"""Fixtures that several tests share."""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The models of the tests are so small that more threads only wait for each other; started processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT tokenizer of one letter a token (and some whole words), which can spell any ASCII text."""
    from transformers import BertTokenizer

    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "and", "teacher", "student"]
    vocabulary = dict.fromkeys([*words, *characters, *(f"##{character}" for character in characters)])
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


class FakePackages:
    """Installed packages made of nothing but metadata and modules, in a folder that is on `sys.path`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def install(
        self,
        name: str,
        entry_points: dict[str, str],
        modules: dict[str, str] | None = None,
        *,
        version: str = "1.0",
        requires: tuple[str, ...] = (),
    ) -> None:
        """Write one package: `entry_points` maps `group:name` to `module:attribute`, `modules` file names to code."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sections: dict[str, list[str]] = {}
        for key, value in entry_points.items():
            group, _, point = key.partition(":")
            sections.setdefault(group, []).append(f"{point} = {value}")
        text = "\n".join(f"[{group}]\n" + "\n".join(points) for group, points in sections.items())
        (info / "entry_points.txt").write_text(text + "\n", encoding="utf-8")
        for file, code in (modules or {}).items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_text(code, encoding="utf-8")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePackages]:
    """Packages that are installed for one test, in this process; others see them through PYTHONPATH."""
    made = FakePackages(tmp_path / "site")
    monkeypatch.syspath_prepend(made.folder)
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(made.folder)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A small random BERT of 4 blocks with its masked-LM head, its pooler and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # so large that blocks differ and there is something to learn
    )
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("teacher")
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 documents of very different lengths, one a line."""
    generator = random.Random(5)
    letters = "abcdefgh"
    lines = []
    for _ in range(80):
        words = [
            "".join(generator.choices(letters, k=generator.randint(1, 5))) for _ in range(generator.randint(1, 30))
        ]
        lines.append(" ".join(words))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of very different lengths, one a line, in which some letters are far more frequent than others."""
    generator = random.Random(5)
    lines = []
    for _ in range(120):
        words = [
            "".join(generator.choices("abcdefgh", [32, 16, 8, 4, 2, 1, 1, 1], k=3))
            for _ in range(generator.randint(1, 20))
        ]
        lines.append(" ".join(words))
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prepared data of all tests is kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Python of an environment of its own in which the packages of the running one can be imported."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    running = sysconfig.get_path("purelib")
    (site / "running.pth").write_text(f"import site; site.addsitedir({running!r})\n", encoding="utf-8")
    return folder / "bin" / "python"


@pytest.fixture
def small_recipe(
    tmp_path: Path,
    teacher_folder: Path,
    corpus_file: Path,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A recipe that trains the small teacher's student for a few steps, below `tmp_path`; override what matters."""
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
run: {{name: small, id: 1}}
seed: 3
teacher: {{path: {teacher_folder}}}
student:
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: teacher, blocks: uniform}}
task:
  name: masked_lm
  data:
    tokenizer: {teacher_folder}
    sequence_length: 48
    held_out: 0.1
    corpora:
      - {{name: text, path: {corpus_file}, documents: lines}}
losses:
  hidden_mse: {{layers: last}}
optimizer: {{name: adamw, lr: 1.0e-3, betas: [0.9, 0.98], eps: 1.0e-6, weight_decay: 0.01}}
training: {{budget: {{steps: 6}}, batch_size: 8}}
validation: {{every: 100}}
checkpoints: {{every: 100}}
logging: {{every: 1}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return path


_MOODS = """\
name: tiny
tasks:
  mood:
    data:
      train: mood.csv
      text: text
      label: mood
      labels: [sad, glad]
      split: {validation: 0.2, test: 0.2}
      max_length: 32
learning_rates: [1e-2]
batch_sizes: [8]
"""


@pytest.fixture
def write_mood_suite() -> Callable[[Path, str], None]:
    """Writes 80 labelled texts and `suite.yaml`, a suite on them, with further keys besides its task and grid."""

    def write(folder: Path, more: str) -> None:
        (folder / "suite.yaml").write_text(_MOODS + more, encoding="utf-8")
        lines = [f"{'abc' if number % 2 else 'xyz'} {number},{'glad' if number % 2 else 'sad'}" for number in range(80)]
        (folder / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def compared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 3 methods x 3 seeds, and their result rows in `evaluations/quick`; the numbers are made up."""
    import json
    import math
    import random

    from kdcore_evaluation.run.results import ResultRow, write_rows

    folder, generator, rows = tmp_path_factory.mktemp("project"), random.Random(1), []
    labelled = {"suite": "quick", "suite_sha256": "5e" * 32, "data": "da" * 32, "labels": "negative,positive"}
    versions = {"recipe": "{}", "versions": '{"torch": "2.13.0"}', "device": "a processor", "finished": "2026-01-01"}

    def add(model: str, role: str, run: str | None, export: str | None, share: float | None, score: float) -> None:
        place = {"source": f"../../{run or model}", "run": run and f"../../{run}", "export": export, "share": share}
        whose = {"model": model, "role": role, "model_sha256": model, "seconds": 1.0, **place, **labelled, **versions}
        for lr, loss, seed in ((1e-4, 0.0, 1), (1e-4, 0.0, 2), (1e-3, 0.2, 1), (1e-3, 0.2, 2)):
            tuned = {"kind": "finetune", "task": "sentiment", "learning_rate": lr, "batch_size": 32, "seed": seed}
            for split in ("validation", "test"):
                value = score - loss + generator.gauss(0, 0.004)
                what = {"metric": "accuracy", "main": True, "higher_is_better": True, "chance": 0.42, "examples": 700}
                rows.append(ResultRow(cell=f"{model}{lr}{seed}", split=split, value=value, **what, **tuned, **whose))
        nothing = dict.fromkeys(("task", "split", "chance", "examples", "learning_rate", "batch_size", "seed"))
        for metric, value in (("parameters", 17e6 + 1e6 * score), ("sequences_per_second", 50 - 20 * score)):
            what = {"metric": metric, "main": True, "higher_is_better": metric != "parameters", "value": value}
            rows.append(ResultRow(cell=f"{model}cost", kind="cost", **what, **nothing, **whose))

    for number, (method, score) in enumerate({"hidden_mse": 0.71, "attention_mse": 0.66, "minilm_v2": 0.708}.items()):
        for seed in (43, 44, 45):
            run = f"runs/tiny/{method}-{seed}"
            (folder / run / "exports" / "final").mkdir(parents=True)
            recipe = f"run: {{name: tiny, id: {method}-{seed}}}\nseed: {seed}\nteacher: {{path: teacher}}\n"
            recipe += f"student: {{}}\ntask: {{name: masked_lm, data: data}}\nlosses: {{{method}: {{}}}}\n"
            (folder / run / "recipe.yaml").write_text(recipe + "training: {budget: {steps: 100}, batch_size: 8}\n")
            stored = {"data_fingerprint": "da" * 32, "teacher_sha256": {"model.safetensors": "ee"}}
            (folder / run / "environment.json").write_text(json.dumps(stored))
            lines = []
            for step in range(0, 101, 4):
                loss, place = (1 + 5 * number) * math.exp(-step / 40), {"step": step, "seconds": step * (1.0 + number)}
                lines.append({**place, "held_out/loss" if step % 20 == 0 else "train/loss": loss + 0.01 * (seed - 43)})
            (folder / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            for share in (0.25, 0.5, 1.0):
                export = "final" if share == 1 else f"budget-{share:g}"
                name = f"{method}-{seed}" if share == 1 else f"{method}-{seed} {export}"
                add(name, "student", run, export, share, score - 0.1 * (1 - share))
    add("teacher", "teacher", None, None, None, 0.74)
    add("random weights", "random", None, None, None, 0.5)
    (folder / "evaluations" / "quick").mkdir(parents=True)
    write_rows(folder / "evaluations" / "quick", rows)
    return folder


@pytest.fixture(scope="session")
def odd_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 runs with odd names and numbers, and their result rows in `evaluations/odd`; the numbers are made up."""
    import json
    import math

    from kdcore_evaluation.run.results import ResultRow, write_rows

    folder, rows = tmp_path_factory.mktemp("odd"), []
    common = {"suite": "odd <&>", "suite_sha256": "5e" * 32, "data": "da" * 32, "labels": "0,1", "chance": 0.5}
    common |= {"recipe": "{}", "versions": "{}", "device": "a 'processor'", "finished": "2026-01-01", "examples": 40}
    common |= {"learning_rate": 1e-4, "batch_size": 8, "seed": 1, "seconds": 1.0, "share": 1.0, "export": "final"}
    common |= {"kind": "finetune", "task": 'a task\'s "<name>"', "metric": "accuracy", "higher_is_better": True}
    names = {0: "<b>bold & 'quoted' \"twice\"", 1: "<img src=x onerror=alert(1)>", 2: "long" * 50, 3: "a-b_c=" * 30}
    for number in range(60):
        run, name = folder / "runs" / "odd" / str(number), names.get(number, f"run-{number}")
        (run / "exports" / "final").mkdir(parents=True)
        recipe = {"run": {"name": name, "id": str(number)}, "seed": 1, "teacher": {"path": "teacher"}, "student": {}}
        recipe |= {"task": {"name": "masked_lm", "data": "data"}, "losses": {"hidden_mse": {}}}
        recipe |= {"training": {"budget": {"steps": 3000}, "batch_size": 8}}
        (run / "recipe.yaml").write_text(json.dumps(recipe))
        values = [(step, 2 * math.exp(-step / 1000) + number / 100) for step in range(0, 3001, 10)]
        if number == 4:
            values = [(step, math.nan) for step, _ in values]
        if number == 5:
            values = [(step, math.inf if step else 1.0) for step, _ in values]
        if number != 6:
            lines = [{"step": step, "seconds": step / 7, "train/loss": value} for step, value in values]
            lines += [{"step": step, "held_out/loss": value, "constant/loss": 1.5} for step, value in values[::100]]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for split in ("validation", "test"):
            score = math.nan if number == 7 else 0.5 + number % 10 / 100
            place = {"source": f"../../runs/odd/{number}", "run": f"../../runs/odd/{number}", "split": split}
            whose = {"model": f"{name}/{number}", "role": "student", "model_sha256": str(number), "main": True}
            rows.append(ResultRow(cell=f"{number}", value=score, **place, **whose, **common))
    (folder / "evaluations" / "odd").mkdir(parents=True)
    write_rows(folder / "evaluations" / "odd", rows)
    return folder
