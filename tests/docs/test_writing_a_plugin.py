"""docs/writing-a-plugin.md, done step by step: its package is made, changed, tested, installed and trained with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
LOSS, TEST = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(RECIPE,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.sample
def test_the_page_leads_to_a_trained_student(
    python: Path, tmp_path: Path, teacher_folder: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "work"
    place.mkdir()
    package = place / "kdcore-norm-match"
    done: list[str] = []
    for command in COMMANDS:
        words = command.split()
        if words[0] == "cd":
            place = place / words[1]
            shutil.copytree(teacher_folder, place / "teacher")
            shutil.copyfile(corpus_file, place / "texts.txt")
            (place / "norm-match.yaml").write_text(RECIPE, encoding="utf-8")
            continue
        if done and done[-1] == "python -m pytest":
            (package / "kdcore_norm_match" / "loss.py").write_text(LOSS, encoding="utf-8")
            (package / "tests" / "test_norm_match_loss.py").write_text(TEST, encoding="utf-8")
        starts = {
            "python": [str(python)],
            "kdcore": [str(python), "-m", "kdcore.commands.main"],
            "kdcore-train": [str(python), "-m", "kdcore.commands.main", "train"],
            "pip": [sys.executable, "-m", "pip", "--python", str(python)],
        }
        if words[0] == "pip":  # without an index; an editable installation would need one more package to build
            words = [word for word in words if word != "-e"] + ["--no-deps", "--no-build-isolation", "--no-index"]
        ran = subprocess.run([*starts[words[0]], *words[1:]], cwd=place, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        done.append(command)
        if command == "kdcore plugins show norm_match":
            assert "with a learned factor on the student's" in ran.stdout
    run = package / "runs" / "norm-match" / "1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [row["train/norm_match"] for row in rows if "train/norm_match" in row]
    assert len(values) == 20, "it is active in the second half"
    assert values[-1] < values[0]
    assert (run / "exports" / "final" / "model.safetensors").is_file()


@pytest.mark.sample
def test_the_checks_on_the_page_are_those_of_check_loss() -> None:
    from kdcore_testing import check_loss

    promised = re.findall(r"^ *(\d)\. (.*)$", str(check_loss.__doc__), re.MULTILINE)
    described = re.findall(r"^(\d)\. ((?:.|\n(?!\d\.|\n))*)", PAGE.partition("every loss must meet")[2], re.MULTILINE)
    assert [number for number, _ in promised] == [number for number, _ in described]
    for (_, sentence), (_, text) in zip(promised, described, strict=True):
        first = sentence.split()[:5]
        assert len(set(first) & set(text.split())) >= 2, f"{sentence!r} is described as {text!r}"
