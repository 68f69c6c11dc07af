"""docs/writing-a-task.md, done step by step: from an empty folder to an exported student that is loaded again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = re.findall(r"^`([\w./-]+\.\w+)`[^\n]*(?:\n[^\n]+)*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECONDS = {"the": 0.15, "student": 0.35, "and": 0.15, "teacher": 0.35, "of": 0.1}


def texts(count: int, seed: int) -> list[dict[str, list[object]]]:
    draw = np.random.default_rng(seed)
    lines = [[str(word) for word in draw.choice(list(SECONDS), draw.integers(2, 12))] for _ in range(count)]
    return [{"words": words, "seconds": [SECONDS[word] for word in words]} for words in lines]


def write(path: Path, lines: list[dict[str, list[object]]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_the_page_leads_from_an_empty_folder_to_a_student_that_predicts(
    python: Path, tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    commands = [line.removeprefix("$ ") for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
    assert len(FILES) == 8, [name for name, _ in FILES]
    place = tmp_path / "work"
    place.mkdir()
    printed = ""
    for command in commands:
        words = command.split()
        if words[0] == "cd":
            place /= words[1]
            shutil.copytree(teacher_folder, place / "teacher")
            for name, text in FILES:
                (place / name).write_text(text, encoding="utf-8")
            examples = [json.loads(line) for line in (place / "train.jsonl").read_text(encoding="utf-8").splitlines()]
            assert all(SECONDS[word] == time for line in examples for word, time in zip(*line.values(), strict=True))
            write(place / "train.jsonl", texts(48, 1) + examples)
            write(place / "dev.jsonl", texts(12, 2))
            continue
        starts = {
            "mkdir": ["mkdir"],
            "touch": ["touch"],
            "python": [str(python)],
            "kdcore": [str(python), "-m", "kdcore.commands.main"],
            "kdcore-train": [str(python), "-m", "kdcore.commands.main", "train"],
            "pip": [sys.executable, "-m", "pip", "--python", str(python)],
        }
        if words[0] == "pip" and words[-1] == "kdcore-testing":
            continue  # installed already
        if words[0] == "pip":  # without an index; an editable installation would need one more package to build
            words = [word for word in words if word != "-e"] + ["--no-deps", "--no-build-isolation", "--no-index"]
        ran = subprocess.run([*starts[words[0]], *words[1:]], cwd=place, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        printed = ran.stdout if command == "python predict.py" else printed
    run = place / "runs" / "times" / "1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    correlations = [row["held_out/correlation"] for row in rows if "held_out/correlation" in row]
    assert len(correlations) == 5
    assert correlations[-1] > 0.5 > abs(correlations[0]), correlations
    # What transformers and `load_head` compute is what training predicted with the same export.
    stored = [json.loads(line) for line in (run / "predictions" / "held_out.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in printed.splitlines()]
    assert len(found) == len(stored) == 12
    for own, theirs in zip(found, stored, strict=True):
        np.testing.assert_allclose(own["seconds"], theirs["seconds"], rtol=1e-4, atol=1e-5)
    wanted = np.concatenate([line["seconds"] for line in texts(12, 2)])
    score = np.corrcoef(np.concatenate([line["seconds"] for line in found]), wanted)[0, 1]
    scores = json.loads((run / "predictions" / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert scores["correlation"] == pytest.approx(score, abs=1e-5)
    assert scores["correlation"] == pytest.approx(max(correlations[1:]), abs=1e-5)
