"""A run that logs to Weights & Biases, offline, is interrupted and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcore.commands.main import main


def test_a_run_and_its_restart_are_one_run_there_and_nothing_is_asked_or_printed(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    wandb = pytest.importorskip("wandb")
    tracking = "tracking=[{name: wandb, project: distillation, mode: offline}]"
    folder = Path("runs/small/tracked/wandb")
    states = []
    for steps in (2, 4):
        assert main(["train", str(small_recipe), "run.id=tracked", f"training.budget.steps={steps}", tracking]) == 0
        states.append(json.loads((folder / "run.json").read_text(encoding="utf-8")))
        wandb.teardown()
        (session,) = folder.glob("offline-run-*")
        assert session.name.endswith(states[-1]["id"])
        session.rename(folder / f"earlier-run-{steps}")  # wandb names them by the second
    assert states == [{"id": states[0]["id"], "step": 2}, {"id": states[0]["id"], "step": 4}]
    captured = capfd.readouterr()
    assert "wandb" not in (captured.out + captured.err).lower()
