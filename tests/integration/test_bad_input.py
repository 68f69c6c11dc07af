"""What a user gets wrong: a message with the words that help, exit code 2, nothing written, no traceback.

One row of the table is one mistake: the arguments of `kdcore`, files beside the recipe, and words of the message.
Each row is tried with one process and with two. `ROWS` are the mistakes that are found before processes are started.
The others need components, models or data, and are found by each process: one pair of processes tries them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kdcore.commands.main import main

RECIPE = """\
run: {name: test, id: 1}
seed: 43
student: {config: {num_hidden_layers: 2}}
task: {name: masked_lm, data: data}
losses:
  masked_lm: {weight: 1.0}
optimizer: {name: adamw, lr: 5e-4}
training:
  budget: {steps: 10}
  batch_size: 8
"""

FILES: dict[str, str | bytes] = {"recipe.yaml": RECIPE}


@dataclass(frozen=True, eq=False)
class Row:
    """One mistake.

    Attributes:
        mistake: what it is.
        words: words that the message must contain.
        overrides: arguments after the recipe.
        files: files to write beside the recipe, or instead of it.
        arguments: the whole command line, if it is not `train recipe.yaml OVERRIDES`.
        replace: a text of the recipe and its replacement.
        damage: changes models and data that lie beside the recipe.
    """

    mistake: str
    words: list[str]
    overrides: list[str] = field(default_factory=list)
    files: dict[str, str | bytes] = field(default_factory=dict)
    arguments: list[str] | None = None
    replace: tuple[str, str] = ("", "")
    damage: Callable[[Path], None] = lambda folder: None


ROWS = [
    # the file
    Row("no such recipe", ["reciep.yaml: the file does not exist", "recipe.yaml"], arguments=["train", "reciep.yaml"]),
    Row("a folder", ["this is a folder, not a recipe"], arguments=["train", "."]),
    Row("an empty recipe", ["recipe.yaml: the file is empty"], files={"recipe.yaml": ""}),
    Row("a list", ["must contain a map, found a list"], files={"recipe.yaml": "- 1\n"}),
    Row("broken YAML", ["recipe.yaml:", "invalid YAML"], files={"recipe.yaml": "a: [1\nb: 2\n"}),
    Row("not UTF-8", ["recipe.yaml:1", "UTF-8"], files={"recipe.yaml": b"a: \xff\n"}),
    Row("a key twice", ["recipe.yaml:11: seed", "first in line 2"], files={"recipe.yaml": RECIPE + "seed: 1\n"}),
    Row("code", ["the tag", "not allowed"], files={"recipe.yaml": RECIPE + "x: !!python/name:os.system\n"}),
    Row("no shipped recipe", ["kdcore does not ship a recipe `nope.yaml`"], arguments=["train", "kdcore:nope.yaml"]),
    # extends
    Row("no such base", ["recipe.yaml:2: extends", "does not exist"], replace=("seed: 43", "extends: b.yaml")),
    Row("a circle", ["`extends` is circular"], replace=("seed: 43", "extends: recipe.yaml")),
    Row(
        "a mistake in a base",
        ["base.yaml:2: sed: unknown key `sed`", "Did you mean `seed`?"],
        files={"base.yaml": "# base\nsed: 3\n", "recipe.yaml": "extends: base.yaml\n" + RECIPE},
    ),
    # overrides
    Row("no override", ["override `batch_size`", "key=value"], ["batch_size"]),
    Row("nothing to remove", ["override `losses.masked_ml=null`", "mean `masked_lm`"], ["losses.masked_ml=null"]),
    Row(
        "no such item",
        ["tracking.3: index out of range: the list has 1 item,"],
        ["tracking.3=jsonl"],
        replace=("seed", "tracking: [jsonl]\nseed"),
    ),
    # core keys
    Row("an unknown key", ["training.precison", "allowed: batch_size,", "`precision`"], ["training.precison=fp16"]),
    Row("an unknown section", ["`optimiser`", "Did you mean `optimizer`?"], ["optimiser={}"]),
    Row("a wrong type", ["training.batch_size: expected an integer", "'8'", "quotes"], ["training.batch_size='8'"]),
    Row("a number too small", ["training.batch_size: must be greater than 0"], ["training.batch_size=0"]),
    Row("no allowed value", ["allowed: fp32, bf16, fp16"], ["training.precision=fp8"]),
    Row("no budget", ["`budget` is missing", "under `training:`"], ["training.budget=null"]),
    Row("an empty budget", ["at least one of `steps`, `epochs` and `hours`"], ["training.budget.steps=null"]),
    Row(
        "an exit after the end",
        ["training.budget", "`exit_after_hours` (2) exceeds `hours` (1)"],
        ["training.budget={hours: 1, exit_after_hours: 2}"],
    ),
    Row("an exit and no budget", ["at least one of"], ["training.budget={steps: null, exit_after_hours: 2}"]),
    Row("a marker at the end", ["checkpoints.export_at.1", "less than 1"], ["checkpoints.export_at=[0.5, 1.0]"]),
    Row("a marker at the start", ["checkpoints.export_at.0", "greater than 0"], ["checkpoints.export_at=[0]"]),
    Row(
        "markers that fall",
        ["checkpoints.export_at", "must be strictly increasing"],
        ["checkpoints.export_at=[0.5, 0.2]"],
    ),
    Row("an unknown interval", ["unknown key `step`", "minutes, steps"], ["checkpoints.every={step: 5}"]),
    Row("two intervals", ["one of `steps`, `epochs` and"], ["validation.every={steps: 5, epochs: 1}"]),
    Row(
        "parts that overlap",
        ["`begin.share` (0.6) and `end.share` (0.6)"],
        ["validation.begin={share: 0.6, every: 1}", "validation.end={share: 0.6, every: 1}"],
    ),
    Row("half a bound", ["`after_minutes` and `max_loss`"], ["early_stopping={max_loss: 2}"]),
    Row("a metric for nothing", ["`metric` and `mode` have no effect without `patience`"], ["early_stopping.mode=min"]),
    Row("no patience at all", ["early_stopping.patience", "greater than 0"], ["early_stopping.patience=0"]),
    Row("no run", ["recipe.yaml:1: run: `run` is missing"], ["run=null"]),
    Row("a name that is a path", ["run.name", "is not a valid folder name: it starts with a dot"], ["run.name=../x"]),
    Row("no losses", ["losses: must have at least 1 key"], ["losses.masked_lm=null"]),
    Row("an empty loss", ["recipe.yaml:6: losses.masked_lm", "Write `{}`"], replace=("{weight: 1.0}", "")),
    Row("an indivisible batch", ["8 is not a multiple of", "allowed: 1, 2, 4, 8"], ["training.micro_batch_size=3"]),
    Row("two mistakes", ["seed: expected", "training.batch_size: expected"], ["seed=x", "training.batch_size=x"]),
    # components
    Row("an unknown loss", ["losses.maskedlm: unknown loss `maskedlm`", "mean `masked_lm`?"], ["losses.maskedlm={}"]),
    Row("an unknown optimizer", ["unknown optimizer `adamww`", "`adamw`"], ["optimizer.name=adamww"]),
    Row("an unknown tracker", ["tracking.0: unknown tracker `tensorbord`"], ["tracking=[tensorbord]"]),
    Row("no task", ["recipe.yaml:4: task.name: `name` is missing", "masked_lm"], replace=("name: masked_lm, ", "")),
    # commands
    Row("no processes", ["--processes", "at least 1"], ["--processes", "0"]),
    Row("an unknown command", ["Did you mean `train`?"], arguments=["tran", "recipe.yaml"]),
    Row("no data recipe", ["data.yaml: the file does not exist"], arguments=["prepare", "data.yaml", "out"]),
    Row(
        "a data recipe with mistakes",
        ["data.yaml:1: corpora.0: unknown corpus `txt`", "`text`", "`tokenizer` is missing"],
        arguments=["prepare", "data.yaml", "out"],
        files={"data.yaml": "corpora: [{name: txt}]\n"},
    ),
    Row("no run folder", ["nowhere", "no run"], arguments=["export", "nowhere", "out"]),
]  # fmt: skip


MODEL_RECIPE = """\
run: {name: test, id: 1}
imports: []
teacher: {path: ./teacher}
student:
  config: {num_hidden_layers: 2}
  initialize: {from: teacher, blocks: uniform}
task: {name: masked_lm, data: data}
losses:
  hidden_mse: {layers: last}
optimizer: {name: adamw, lr: 5e-4}
training:
  budget: {steps: 1}
  batch_size: 6
  precision: fp32
"""

TRUST_RATIO = """
import torch
from kdcore import Optimizer, register_optimizer

@register_optimizer("trust_ratio")
class TrustRatio(Optimizer):
    elementwise = False

    def build(self, groups):
        return torch.optim.SGD(groups, lr=self.config.lr)
"""


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return change


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    """Changes keys of the data's manifest, and the hash that it has over itself."""

    def change(folder: Path) -> None:
        path = folder / "data" / "manifest.json"
        content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        del content["sha256"]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        sealed = {**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
        path.write_text(json.dumps(sealed), encoding="utf-8")

    return change


def remove(*files: str) -> Callable[[Path], None]:
    """Removes files and folders."""

    def change(folder: Path) -> None:
        for file in files:
            shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()

    return change


def cut(file: str) -> Callable[[Path], None]:
    """Leaves half of a file."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[: (folder / file).stat().st_size // 2])

    return change


def shuffle_vocabulary(folder: Path) -> None:
    """As many tokens as before, with other ids."""
    path = folder / "teacher" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["teacher"], vocabulary["student"] = vocabulary["student"], vocabulary["teacher"]
    path.write_text(json.dumps(content), encoding="utf-8")


def start_another_run(folder: Path) -> None:
    """A run folder as a run with another learning rate leaves it."""
    run = folder / "runs" / "test" / "1"
    run.mkdir(parents=True)
    text = MODEL_RECIPE.replace("5e-4", "1e-3").replace("./teacher", str(folder / "teacher"))
    (run / "recipe.yaml").write_text(text.replace("data: data", f"data: {folder / 'data'}"), encoding="utf-8")
    (run / "environment.json").write_text("{}", encoding="utf-8")


MODEL_ROWS = [
    # blocks
    Row(
        "a block that the teacher lacks",
        ["recipe.yaml:9: losses.hidden_mse.layers", "block 9 does not exist: the teacher has 4 blocks", "0 to 3"],
        replace=("layers: last", "layers: [[9, 1]]"),
    ),
    Row(
        "a block that the student lacks",
        ["recipe.yaml:9: losses.hidden_mse.layers", "block -3 does not exist: the student has 2 blocks"],
        replace=("layers: last", "layers: [[3, -3]]"),
    ),
    Row(
        "a block that the source lacks",
        ["recipe.yaml:6: student.initialize.blocks", "source block 4 does not exist", "0 to 3"],
        replace=("blocks: uniform", "blocks: [1, 4]"),
    ),
    Row(
        "too few blocks",
        ["recipe.yaml:6: student.initialize.blocks", "listed blocks, 1, differs from the student's 2"],
        replace=("blocks: uniform", "blocks: [1]"),
    ),
    Row(
        "no even spread",
        ["recipe.yaml:", "student.initialize.blocks", "student's 3 blocks, but the teacher has 4", "for example ["],
        replace=("num_hidden_layers: 2", "num_hidden_layers: 3"),
    ),
    # validation
    Row(
        "a bound on a loss that is never computed",
        ["early_stopping.max_loss", "the run has no validation", "`validation.every`"],
        overrides=["validation.every=never", "early_stopping={after_minutes: 1, max_loss: 2}"],
    ),
    Row(
        "patience with validations that never come",
        ["early_stopping.patience", "counts validations, but the run has none", "`validation.every`"],
        overrides=["validation.every=never", "early_stopping.patience=2"],
    ),
    Row(
        "patience for an unknown metric",
        ["early_stopping.metric", "(found `los`)", "allowed: loss, hidden_mse", "Did you mean `loss`?"],
        overrides=["early_stopping={patience: 2, metric: los}"],
    ),
    Row(
        "patience for a sum of which a loss becomes active later",
        ["early_stopping.metric", "changes with the schedule of the loss `late`", "early_stopping.metric: hidden_mse"],
        overrides=["early_stopping.patience=2", "losses.late={name: hidden_mse, active: [0.5, 1.0]}"],
    ),
    Row(
        "patience for a sum whose weights change",
        ["early_stopping.metric", "changes with the schedule of the loss `hidden_mse`"],
        overrides=["early_stopping={patience: 2, metric: loss}", "losses.hidden_mse.weight=[[0.0, 1.0], [1.0, 0.1]]"],
    ),
    # the teacher and the student
    Row("no teacher", ["recipe.yaml:3: teacher", "neither an existing folder"], replace=("./teacher", "./techer")),
    Row("no config.json", ["recipe.yaml:3: teacher", "config.json"], damage=remove("teacher/config.json")),
    Row(
        "a teacher without weights",
        ["recipe.yaml:3: teacher", "weights", "model.safetensors"],
        damage=remove("teacher/model.safetensors"),
    ),
    Row("a teacher cut in half", ["recipe.yaml:3: teacher", "weights"], damage=cut("teacher/model.safetensors")),
    Row(
        "a teacher of another architecture",
        ["recipe.yaml:3: teacher", "mine", "bert"],
        damage=edit("teacher/config.json", model_type="mine"),
    ),
    Row(
        "weights of another architecture",
        ["recipe.yaml:3: teacher", "weights are missing, the first is"],
        damage=edit("teacher/config.json", model_type="roberta"),
    ),
    Row(
        "weights of other sizes",
        ["recipe.yaml:3: teacher", "config.json"],
        damage=edit("teacher/config.json", intermediate_size=48),
    ),
    Row(
        "no teacher for a loss that needs one",
        ["recipe.yaml:9: losses.hidden_mse", "the recipe has none", "add `teacher:"],
        replace=("teacher: {path: ./teacher}", "teacher: null"),
        overrides=["student.initialize=null", "student.config={model_type: bert, vocab_size: 200}"],
    ),
    Row(
        "an unknown key of a student",
        ["recipe.yaml:5: student.config", "num_hiden_layers", "`num_hidden_layers`"],
        replace=("num_hidden_layers", "num_hiden_layers"),
    ),
    Row(
        "heads that do not divide the width",
        ["recipe.yaml:5: student.config", "num_attention_heads"],
        replace=("num_hidden_layers: 2", "num_attention_heads: 5"),
        overrides=["student.initialize=null"],
    ),
    Row(
        "copying into another width",
        ["recipe.yaml:6: student.initialize", "copying requires equal sizes"],
        replace=("num_hidden_layers: 2", "hidden_size: 16, num_hidden_layers: 2"),
    ),
    Row(
        "another width without a projection",
        ["recipe.yaml:9: losses.hidden_mse.projection", "`projection` is `none`", "allowed: auto, none"],
        replace=("layers: last", "layers: last, projection: none"),
        overrides=["student.initialize=null", "student.config.hidden_size=16"],
    ),
    # data
    Row("no data", ["recipe.yaml:7: task", "no such folder", "kdcore prepare"], damage=remove("data")),
    Row("no prepared data", ["recipe.yaml:7: task", "manifest.json"], damage=remove("data/manifest.json")),
    Row("truncated data", ["recipe.yaml:7: task", "train-00000.arrow", "bytes"], damage=cut("data/train-00000.arrow")),
    Row("missing data", ["recipe.yaml:7: task", "held_out-00000.arrow"], damage=remove("data/held_out-00000.arrow")),
    Row("half a manifest", ["recipe.yaml:7: task", "manifest.json", "cannot be"], damage=cut("data/manifest.json")),
    Row(
        "data of a newer kdcore",
        ["recipe.yaml:7: task", "newer kdcore", "99"],
        damage=edit("data/manifest.json", format_version=99),
    ),
    Row(
        "data of another vocabulary",
        ["recipe.yaml:7: task", "vocabulary", "teacher"],
        damage=shuffle_vocabulary,
    ),
    Row(
        "data of a larger vocabulary",
        ["recipe.yaml:7: task", "5000 tokens"],
        damage=edit_manifest(vocab_size=5000),
    ),
    Row(
        "a changed manifest",
        ["recipe.yaml:7: task", "manifest.json", "checksum"],
        damage=edit("data/manifest.json", vocab_size=5000),
    ),
    Row(
        "sequences that are too long",
        ["recipe.yaml:7: task", "72 tokens", "found up to 72 tokens, expected at most 64"],
        replace=("data: data", "data: long"),
    ),
    Row(
        "no corpus file",
        ["recipe.yaml:7: task", "nowhere.txt"],
        replace=("data: data", "data: {tokenizer: ./teacher, corpora: [{name: text, path: nowhere.txt}]}"),
    ),
    Row(
        "no tokenizer",
        ["recipe.yaml:7: task", "empty: the tokenizer cannot be loaded", "a folder with tokenizer files"],
        replace=("data: data", "data: {tokenizer: ./empty, corpora: [{name: text, path: corpus.txt}]}"),
    ),
    # training
    Row(
        "fp16 on a CPU",
        ["recipe.yaml:14: training.precision", "fp16 is not supported on this device (cpu)", "allowed: bf16, fp32"],
        replace=("precision: fp32", "precision: fp16"),
    ),
    Row(
        "an optimizer of whole tensors under ZeRO",
        ["recipe.yaml:10: optimizer.name", "`trust_ratio` needs whole tensors", "ZeRO stage 1", "element: adam, adamw"],
        replace=("name: adamw", "name: trust_ratio"),
        overrides=["imports=[trust.py]", "training.zero_stage=1"],
        files={"trust.py": TRUST_RATIO},
    ),
    Row(
        "a schedule over time without hours",
        ["`scheduler.over=time`", "the budget has no `hours`", "`training.budget.hours`"],
        overrides=["scheduler.over=time"],
    ),
    Row(
        "a warm-up that the budget does not outlast",
        ["`scheduler.warmup_steps=1`", "(found 1, budget 1)", "`training.budget`", "less than 1"],
        overrides=["scheduler.warmup_steps=1"],
    ),
    Row(
        "an unknown key for DeepSpeed",
        ["recipe.yaml:14: training.deepspeed.zero_optimisation", "allowed: ", "zero_optimization"],
        replace=("precision: fp32", "deepspeed: {zero_optimisation: {}}"),
    ),
    Row(
        "a key for DeepSpeed that is kdcore's",
        ["recipe.yaml:14: training.deepspeed.gradient_clipping", "recipe's own keys"],
        replace=("precision: fp32", "deepspeed: {gradient_clipping: 1.0}"),
    ),
    Row(
        "the run folder of another recipe",
        [
            "the run in this folder was started with different settings",
            "recipe.yaml:10: optimizer.lr",
            "0.001",
            "0.0005",
            "run.id=NEW",
        ],
        damage=start_another_run,
    ),
]  # fmt: skip

TWO_PROCESSES_ROWS = [
    Row(
        "a batch that two processes cannot share",
        ["recipe.yaml:13: training.batch_size", "number of processes, 2", "multiples of 2"],
        replace=("batch_size: 6", "batch_size: 7"),
    ),
    Row(
        "micro batches that two processes cannot share",
        ["recipe.yaml:13: training.micro_batch_size", "2 processes", "divisors of 3"],
        replace=("batch_size: 6", "micro_batch_size: 2\n  batch_size: 6"),
    ),
]


COMPONENT_ROWS = [
    Row("an unknown key of a loss", ["losses.masked_lm.wieght", "`weight`"], ["losses.masked_lm.wieght=1"]),
    Row("an unknown key of an optimizer", ["recipe.yaml:7: optimizer.lrr"], replace=("lr: 5e-4", "lrr: 5e-4")),
    Row(
        "two warm-ups",
        ["scheduler: `warmup` (a fraction) and `warmup_steps`", "remove one"],
        ["scheduler={warmup: 0.1, warmup_steps: 3}"],
    ),
    Row("a package's file without the package", ["pip install no-such-one"], ["task.data=package:no-such-one/x"]),
    Row("no such import", ["imports.0", "mine.py does not exist"], ["imports=[mine.py]"]),
    Row("an import that fails", ["imports.0", "ZeroDivisionError", "(line 1)"], ["imports=[m.py]"], {"m.py": "1 / 0"}),
]  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, `__pycache__` aside."""
    # Whoever looks into a run folder locks it first; the lock's file stays.
    paths = [path for path in folder.rglob("*") if not {"__pycache__", ".lock"} & {*path.parts}]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def lay_out(row: Row, folder: Path, recipe: str) -> None:
    """Write the recipe and what else the row needs."""
    for name, content in {"recipe.yaml": recipe, **row.files}.items():
        content = content.replace(*row.replace) if isinstance(content, str) and name == "recipe.yaml" else content
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    row.damage(folder)


def assert_helpful(row: Row, code: int, error: str) -> None:
    assert error.startswith("error: "), error
    for word in row.words:
        assert word in error, error
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(set(lines)), "a message is printed once"
    assert code == 2


def arguments_of(row: Row) -> list[str]:
    return row.arguments or ["train", "recipe.yaml", *row.overrides]


def assert_refused(row: Row, folder: Path, capfd: pytest.CaptureFixture[str], *more: str) -> None:
    before = snapshot(folder)
    assert_helpful(row, main([*arguments_of(row), *more]), capfd.readouterr().err)
    assert snapshot(folder) == before


@pytest.mark.parametrize("row", [*ROWS, *COMPONENT_ROWS], ids=lambda row: row.mistake)
def test_a_mistake_is_answered_with_words_and_exit_code_2(row, tmp_path, monkeypatch, capfd):
    lay_out(row, tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    assert_refused(row, tmp_path, capfd)


@pytest.mark.parametrize("row", [row for row in ROWS if arguments_of(row)[0] == "train"], ids=lambda row: row.mistake)
def test_two_processes_are_not_started_for_a_mistake_in_the_recipe(row, tmp_path, monkeypatch, capfd):
    lay_out(row, tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdcore.training.runtime.processes.run_processes", None)
    assert_refused(row, tmp_path, capfd, *([] if "--processes" in row.overrides else ["--processes", "2"]))


@pytest.fixture(scope="session")
def materials(tmp_path_factory, teacher_folder, corpus_file):
    """A teacher, prepared data of it and of longer sequences, and an empty folder, to be copied beside a recipe."""
    from kdcore_preparation import DataRecipe, prepare

    folder = tmp_path_factory.mktemp("materials")
    shutil.copytree(teacher_folder, folder / "teacher")
    shutil.copyfile(corpus_file, folder / "corpus.txt")
    (folder / "empty").mkdir()
    corpora = [{"name": "text", "path": str(corpus_file), "documents": "lines"}]
    for name, length in (("data", 48), ("long", 72)):
        recipe = DataRecipe(tokenizer=str(teacher_folder), sequence_length=length, held_out=0.25, corpora=corpora)
        prepare(recipe, folder / name)
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path_factory):
    """No hub is asked, and the cache of prepared data is empty."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("row", MODEL_ROWS, ids=lambda row: row.mistake)
def test_a_mistake_about_models_and_data_likewise(row, materials, offline, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "work"
    shutil.copytree(materials, folder)
    lay_out(row, folder, MODEL_RECIPE)
    monkeypatch.chdir(folder)
    assert_refused(row, folder, capfd)


# A command that each of two processes runs: it tries one row after the other, as `kdcore train` would, and writes down
# how each ended. So the rows share the time in which a process imports torch.
EACH_ROW = """
import json, os, sys
from kdcore import Command

class EachRow(Command):
    help = "try rows"

    def add_arguments(self, parser):
        parser.add_argument("table")

    def run(self, arguments):
        from kdcore.commands.main import main
        results = []
        for folder, argv in json.load(open(arguments.table)):
            os.chdir(folder)
            kept = os.dup(2)
            with open(f"{folder}.stderr-{os.environ['RANK']}", "w+") as output:
                os.dup2(output.fileno(), 2)
                code = main(argv)
                sys.stderr.flush()
                os.dup2(kept, 2)
                output.seek(0)
                results.append([code, output.read()])
        with open(f"{arguments.table}.{os.environ['RANK']}", "w") as output:
            json.dump(results, output)
        return 0
"""
LAUNCH = (
    "import sys; from kdcore.training.runtime.processes import run_processes; sys.exit(run_processes(sys.argv[1:], 2))"
)


@pytest.mark.processes
@pytest.mark.sample
def test_two_processes_give_the_same_answers(materials, offline, packages, tmp_path):
    packages.install("each-row", {"kdcore.commands:each_row": "each_row:EachRow"}, {"each_row.py": EACH_ROW})
    recipes = dict.fromkeys(COMPONENT_ROWS, RECIPE) | dict.fromkeys([*MODEL_ROWS, *TWO_PROCESSES_ROWS], MODEL_RECIPE)
    rows = list(recipes)
    folders = [tmp_path / f"row{number}" for number in range(len(rows))]
    for (row, recipe), folder in zip(recipes.items(), folders, strict=True):
        shutil.copytree(materials, folder)
        lay_out(row, folder, recipe)
    before = [snapshot(folder) for folder in folders]
    table = tmp_path / "table.json"
    table.write_text(json.dumps([[str(f), arguments_of(row)] for row, f in zip(rows, folders, strict=True)]))
    environment = {**os.environ, "PYTHONPATH": f"{packages.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", LAUNCH, "each_row", str(table)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        results = json.loads(Path(f"{table}.{rank}").read_text(encoding="utf-8"))
        for row, (code, error) in zip(rows, results, strict=True):
            assert_helpful(row, code, error)
    assert [snapshot(folder) for folder in folders] == before
