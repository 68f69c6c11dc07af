"""Commands that need neither torch nor transformers do not import them, and answer at once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MISSPELT = """\
run: {name: test}
student: {}
task: {name: masked_lm, data: data}
losses: {masked_lm: {}}
training: {budget: {steps: 10}, batch_size: 8, precison: fp16}
"""


NEEDED = """
from importlib import metadata
from pydantic import BaseModel
from ruamel.yaml import YAML
points = [distribution.entry_points for distribution in metadata.distributions()]
"""
"""The least work of a command that checks a recipe. Its time is the unit: the machine's pace does not count."""


def computed_by_children() -> float:
    """Processor seconds of all processes that have ended: a machine that is busy with something else changes little."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="module")
def unit() -> float:
    """Processor seconds of what cannot be avoided, at the best of five tries."""
    tries = []
    for _ in range(5):
        before = computed_by_children()
        subprocess.run([sys.executable, "-c", NEEDED], check=True)
        tries.append(computed_by_children() - before)
    return min(tries)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In it, importing anything of weight is an error."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("torch", "transformers", "deepspeed", "numpy", "pyarrow"):
        (site / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "train the student"),
        (["plugins", "list"], 0, "transformers"),
        (["recipe", "check", "recipe.yaml"], 2, "recipe.yaml:5: training.precison: unknown key `precison`"),
        (["train", "recipe.yaml", "training.precison=null", "optimizer.name=adamx"], 2, "`adamw`?"),
        (["recipe", "show", "recipe.yaml", "training.precison=null"], 0, "# recipe.yaml:5"),
        (["train", "recipe.yaml"], 2, "Did you mean `precision`?"),
        (["train", "recipe.yaml", "--processes", "2"], 2, "Did you mean `precision`?"),
        (["train", "--help"], 0, "RECIPE"),
    ],
)
def test_it_answers_at_once_without_torch(tmp_path, environment, unit, arguments, code, words):
    (tmp_path / "recipe.yaml").write_text(MISSPELT, encoding="utf-8")
    fastest = float("inf")
    for _ in range(3):
        before = computed_by_children()
        done = subprocess.run(
            [sys.executable, "-m", "kdcore.commands.main", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        fastest = min(fastest, computed_by_children() - before)
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "was imported" not in done.stderr
    print(f"kdcore {' '.join(arguments)}: {fastest:.3f} s, {fastest / unit:.1f} times what cannot be avoided")
    assert fastest < 3 * unit
