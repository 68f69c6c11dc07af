"""Damage to a run or its data, as users met it: what resuming, listing, comparing and training make of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import kdcore
from kdcore.commands.main import main

EARLY = ["validation.every=3", "checkpoints.every=3"]


@pytest.fixture
def run(small_recipe: Path, tmp_path: Path) -> Path:
    assert main(["train", str(small_recipe), *EARLY]) == 0
    return tmp_path / "runs" / "small" / "1"


def test_a_run_with_damaged_metrics_resumes(run: Path, small_recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    lines[1] = lines[1].replace('"step"', '"stfp"')
    path.write_text("\n".join([*lines, '{"step": "x", "train/loss": 1}', '{"step": 6, "tra']), encoding="utf-8")
    capfd.readouterr()
    assert main(["train", str(small_recipe), *EARLY, "training.budget.steps=8"]) == 0
    assert f"{path}:2: skipped a damaged row, and 2 more of its rows (step: is missing)" in capfd.readouterr().err
    after = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert after[: len(rows) - 1] == [row for number, row in enumerate(rows) if number != 1]
    assert [row["step"] for row in after if "train/loss" in row] == [2, 3, 4, 5, 6, 7, 8]


def test_a_damaged_run_does_not_hide_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    damages = {
        "recipe": ("recipe.yaml", "a: [" * 500),
        "rows": ("metrics.jsonl", '{"step": "x", "train/loss": 1}\n'),
        "versions": ("environment.json", '{"packages": [1], "teacher_sha256": 3}'),
    }
    for name, (file, text) in damages.items():
        copy = run.parent / name
        shutil.copytree(run, copy)
        recipe = copy / "recipe.yaml"
        renamed, found = re.subn(r"(?m)^  id: .*$", f"  id: {name}", recipe.read_text(encoding="utf-8"))
        assert found == 1
        recipe.write_text(renamed, encoding="utf-8")
        (copy / file).write_text(text, encoding="utf-8")
    assert main(["runs", "list", "runs"]) == 0
    listed = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in listed] == ["small/1", "small/recipe", "small/rows", "small/versions"]
    assert [message.split(": ")[0] for message in caplog.messages] == ["runs/small/rows/metrics.jsonl:1"]
    caplog.clear()
    assert main(["compare", "runs", "--by", "run", "--html", "page.html"]) == 0
    printed = capsys.readouterr()
    page = Path("page.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert all(f"small/{name}" in page for name in ("1", "rows", "versions"))
    assert "warning: a run is left out: " in printed.err
    assert "small/recipe/recipe.yaml:1: values are nested more than 100 levels deep" in printed.err
    assert [message.partition(": ")[0].removeprefix(f"{tmp_path}/") for message in caplog.messages] == [
        "runs/small/rows/metrics.jsonl:1",
        "runs/small/versions/environment.json",
    ]
    assert main(["compare", "runs/small/recipe"]) == 2


def test_an_id_out_of_range_in_a_shard_is_a_data_error_that_names_it(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    assert main(["train", str(small_recipe), "run.id=first"]) == 0
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    shard = manifest.parent / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    rows = kdcore.PreparedData.open(manifest.parent).split("train").rows(np.arange(113))[0].astype(np.uint16)
    start = bytes(content).index(rows[:1].tobytes())
    content[start + 2 * 48 * 5 + 3] = 0xFF  # the second token of row 5
    shard.write_bytes(content)
    capsys.readouterr()
    assert main(["train", str(small_recipe), "run.id=second", "training.budget.steps=20"]) == 2
    assert f"{shard}: row 5 contains an id outside of the vocabulary (found " in capsys.readouterr().err


def test_a_name_that_no_file_system_holds_is_refused_by_its_line_at_once(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = small_recipe.read_text(encoding="utf-8").splitlines()
    lines[2] = f"teacher: {{path: ./{'a' * 20_000}}}"
    small_recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["recipe", "check", str(small_recipe)]) == 2
    message = capsys.readouterr().err
    words = "teacher.path: a name in the path is too long (found 20,000 bytes, expected at most 255)"
    assert message == f"error: {small_recipe}:3: {words}\n"
    for path in ("/a" * 3000, f"./{'ä' * 200} x"):
        assert main(["recipe", "check", str(small_recipe), f"teacher.path={path}"]) == 2
        assert "teacher.path: " in (message := capsys.readouterr().err)
        assert "too long" in message


def test_a_long_value_in_a_message_is_shortened(small_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "check", str(small_recipe), f"logging.every={'x ' * 200_000}"]) == 2
    assert main(["recipe", "check", str(small_recipe), f"run.{'x' * 200_000}=1"]) == 2
    assert len(capsys.readouterr().err) < 20_000
