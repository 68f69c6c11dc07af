"""Every command that reads a run folder reads those that earlier versions stored (tests/golden/README.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest

from kdcore.commands.main import main
from kdcore.recipe.yaml import read_yaml

RUNS = [*golden.ONE_PROCESS, *golden.TWO_PROCESSES]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a stored run whose only checkpoint is step 4 of 8 and whose last row of metrics is step 6."""
    folder = golden.copy_golden(request.param, tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    return folder


def checkpoint_list(run: Path, text: str) -> None:
    (line,) = text.splitlines()
    processes = len(list((run / "checkpoints" / golden.STEP).glob("process-*.pt")))
    assert line.startswith(f"{golden.STEP}  ")
    assert f"  {processes} process" in line
    assert line.endswith("  newest")


def checkpoint_verify(run: Path, text: str) -> None:
    assert text == f"{golden.STEP}  valid\n"


def checkpoint_show(run: Path, text: str) -> None:
    assert text.startswith("step: 4\n")
    manifest = json.loads((run / "checkpoints" / golden.STEP / "manifest.json").read_text(encoding="utf-8"))
    shown = {line.split()[0]: line.split()[-1] for line in text.splitlines() if " bytes  sha256 " in line}
    assert shown == {name: entry["sha256"] for name, entry in manifest["files"].items()}


def recipe_check(run: Path, text: str) -> None:
    assert "the recipe is valid" in text
    assert all(label in text for label in read_yaml(run / "recipe.yaml").plain()["losses"])


def recipe_show(run: Path, text: str) -> None:
    (run / "shown.yaml").write_text(text, encoding="utf-8")

    def require(stored: Any, shown: Any) -> None:
        if isinstance(stored, dict):
            for key, value in stored.items():
                require(value, shown[key])
        else:
            assert shown == stored

    require(read_yaml(run / "recipe.yaml").plain(), read_yaml(run / "shown.yaml").plain())


def runs_list(run: Path, text: str) -> None:
    (line,) = text.splitlines()[1:]
    assert line.split()[:5] == [run.name, "stopped", "6", "of", "8"]
    rows = golden.metrics_of(run)
    (loss,) = [row["train/loss"] for row in rows if row["step"] == 6]
    assert float(line.split()[5]) == pytest.approx(loss, rel=1e-3)


def debug_batch(run: Path, text: str) -> None:
    """The weighted mean of the samples' losses is the batch's."""
    heading = f"step 5 of {run}: 8 samples; losses with {golden.STEP} in float32, without dropout"
    assert heading in text.splitlines()
    labels = read_yaml(run / "recipe.yaml").plain()["losses"]
    for label in labels:
        values = re.findall(rf"^( +){label} (\S+) over (\d+)$", text, re.MULTILINE)
        batches = [(float(value), int(count)) for indent, value, count in values if len(indent) == 2]
        samples = [(float(value), int(count)) for indent, value, count in values if len(indent) == 4]
        assert len(samples) == 8
        assert sum(count for _, count in samples) == sum(count for _, count in batches) > 0
        total = sum(value * count for value, count in batches)
        assert sum(value * count for value, count in samples) == pytest.approx(total, rel=1e-3)


COMMANDS: dict[str, Callable[[Path, str], None]] = {
    "checkpoint list RUN": checkpoint_list,
    "checkpoint verify RUN": checkpoint_verify,
    "checkpoint show RUN 4": checkpoint_show,
    "recipe check RUN/recipe.yaml": recipe_check,
    "recipe show RUN/recipe.yaml": recipe_show,
    "runs list RUN/..": runs_list,
    "debug batch RUN 5": debug_batch,
}


def test_commands_read_a_stored_run_and_change_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command, check in COMMANDS.items():
        arguments = [word.replace("RUN", str(run)) for word in command.split()]
        code = main(arguments)
        captured = capsys.readouterr()
        assert code == 0, f"{command}: {captured.out}{captured.err}"
        check(run, captured.out)
    (run / "shown.yaml").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_stored_run_that_is_not_finished_is_named_by_the_summary(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["summary", str(run)]) == 2
    assert f"error: {run}: the folder contains no finished run" in capsys.readouterr().err
