"""What a user gets wrong: a message with the words that help, exit code 2, nothing written, no traceback.

One row of the table is one mistake: the arguments of `kdcore`, files beside the recipe, and words of the message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True)
class Row:
    """One mistake.

    Attributes:
        mistake: what it is.
        words: what the message has to say.
        overrides: arguments after the recipe.
        files: files to write beside the recipe, or instead of it.
        arguments: the whole command line, if it is not `train recipe.yaml OVERRIDES`.
        replace: a text of the recipe and what stands there instead.
    """

    mistake: str
    words: list[str]
    overrides: list[str] = field(default_factory=list)
    files: dict[str, str | bytes] = field(default_factory=dict)
    arguments: list[str] | None = None
    replace: tuple[str, str] = ("", "")


ROWS = [
    # the file
    Row("no such recipe", ["reciep.yaml: the file does not exist", "recipe.yaml"], arguments=["train", "reciep.yaml"]),
    Row("a folder", ["this is a folder, not a recipe"], arguments=["train", "."]),
    Row("an empty recipe", ["recipe.yaml: the file is empty"], files={"recipe.yaml": ""}),
    Row("a list", ["holds a list, not a map"], files={"recipe.yaml": "- 1\n"}),
    Row("broken YAML", ["recipe.yaml:", "not YAML"], files={"recipe.yaml": "a: [1\nb: 2\n"}),
    Row("not UTF-8", ["recipe.yaml:1", "UTF-8"], files={"recipe.yaml": b"a: \xff\n"}),
    Row("a key twice", ["recipe.yaml:11: seed", "first in line 2"], files={"recipe.yaml": RECIPE + "seed: 1\n"}),
    Row("code", ["the tag", "not allowed"], files={"recipe.yaml": RECIPE + "x: !!python/name:os.system\n"}),
    Row("no shipped recipe", ["kdcore ships no recipe `nope.yaml`"], arguments=["train", "kdcore:nope.yaml"]),
    # extends
    Row("no such base", ["recipe.yaml:2: extends", "does not exist"], replace=("seed: 43", "extends: b.yaml")),
    Row("a circle", ["`extends` runs in a circle"], replace=("seed: 43", "extends: recipe.yaml")),
    Row(
        "a mistake in a base",
        ["base.yaml:2: sed: unknown key `sed`", "Did you mean `seed`?"],
        files={"base.yaml": "# base\nsed: 3\n", "recipe.yaml": "extends: base.yaml\n" + RECIPE},
    ),
    # overrides
    Row("no override", ["override `batch_size`", "key=value"], ["batch_size"]),
    Row("nothing to remove", ["override `losses.masked_ml=null`", "mean `masked_lm`"], ["losses.masked_ml=null"]),
    Row("no such item", ["the list has 1 items"], ["tracking.3=jsonl"], replace=("seed", "tracking: [jsonl]\nseed")),
    # core keys
    Row("an unknown key", ["training.precison", "allowed: batch_size,", "`precision`"], ["training.precison=fp16"]),
    Row("an unknown section", ["`optimiser`", "Did you mean `optimizer`?"], ["optimiser={}"]),
    Row("a wrong type", ["training.batch_size: expected an integer", "'8'", "quotes"], ["training.batch_size='8'"]),
    Row("a number too small", ["training.batch_size: must be greater than 0"], ["training.batch_size=0"]),
    Row("no allowed value", ["allowed: fp32, bf16, fp16"], ["training.precision=fp8"]),
    Row("no budget", ["`budget` is missing", "under `training:`"], ["training.budget=null"]),
    Row("an empty budget", ["needs `steps`, `hours` or both"], ["training.budget.steps=null"]),
    Row("no run", ["recipe.yaml:1: run: `run` is missing"], ["run=null"]),
    Row("a name that is a path", ["run.name", "cannot name a folder"], ["run.name=../x"]),
    Row("no losses", ["losses: needs at least 1 key"], ["losses.masked_lm=null"]),
    Row("an empty loss", ["recipe.yaml:6: losses.masked_lm", "Write `{}`"], replace=("{weight: 1.0}", "")),
    Row("an indivisible batch", ["batch size 8 cannot", "allowed: 1, 2, 4, 8"], ["training.micro_batch_size=3"]),
    Row("two mistakes", ["seed: expected", "training.batch_size: expected"], ["seed=x", "training.batch_size=x"]),
    # components
    Row("an unknown loss", ["losses.maskedlm: no loss is called", "Did you mean `masked_lm`?"], ["losses.maskedlm={}"]),
    Row("an unknown optimizer", ["no optimizer is called `adam`", "`adamw`"], ["optimizer.name=adam"]),
    Row("an unknown tracker", ["tracking.0: no tracker is called `tensorbord`"], ["tracking=[tensorbord]"]),
    Row("no task", ["recipe.yaml:4: task.name: `name` is missing", "masked_lm"], replace=("name: masked_lm, ", "")),
    Row("an unknown key of a loss", ["losses.masked_lm.wieght", "`weight`"], ["losses.masked_lm.wieght=1"]),
    Row("an unknown key of an optimizer", ["recipe.yaml:7: optimizer.lrr"], replace=("lr: 5e-4", "lrr: 5e-4")),
    Row("a package's file without the package", ["pip install no-such-one"], ["task.data=package:no-such-one/x"]),
    # imports
    Row("no such import", ["imports.0", "mine.py does not exist"], ["imports=[mine.py]"]),
    Row("an import that fails", ["imports.0", "ZeroDivisionError", "(line 1)"], ["imports=[m.py]"], {"m.py": "1 / 0"}),
    # commands
    Row("no processes", ["--processes", "at least 1"], ["--processes", "0"]),
    Row("an unknown command", ["Did you mean `train`?"], arguments=["tran", "recipe.yaml"]),
    Row("no data recipe", ["data.yaml: the file does not exist"], arguments=["prepare", "data.yaml", "out"]),
    Row(
        "a data recipe with mistakes",
        ["data.yaml:1: corpora.0: no corpus is called `txt`", "`text`", "`tokenizer` is missing"],
        arguments=["prepare", "data.yaml", "out"],
        files={"data.yaml": "corpora: [{name: txt}]\n"},
    ),
    Row("no run folder", ["nowhere", "no run"], arguments=["export", "nowhere", "out"]),
]  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, `__pycache__` aside."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.mistake)
def test_a_mistake_is_answered_with_words_and_exit_code_2(row, tmp_path, monkeypatch, capfd):
    for name, content in {**FILES, **row.files}.items():
        content = content.replace(*row.replace) if isinstance(content, str) and name == "recipe.yaml" else content
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    arguments = row.arguments or ["train", "recipe.yaml", *row.overrides]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    for word in row.words:
        assert word in error
    assert "Traceback" not in error
    assert snapshot(tmp_path) == before
