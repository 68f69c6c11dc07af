"""Nothing is compiled: runs start where there is no compiler and no ninja, with an empty folder of torch extensions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

RUN = Path("runs", "small", "1")
COMMAND = [sys.executable, "-m", "kdcore.commands.main"]
THREE_STEPS = """
import sys

from kdcore.recipe.loading import load_recipe
from kdcore.training.run.run import train_recipe

train_recipe(load_recipe(sys.argv[1], sys.argv[2:]), exit_steps=3)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command with an empty folder as PATH; check its exit code, and that torch's folders stay empty."""
    for folder in ("bin", "home", "extensions"):
        (tmp_path / folder).mkdir()
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    for tool in ("g++", "c++", "gcc", "clang++", "ninja"):
        assert shutil.which(tool) is None

    def start(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        assert not list((tmp_path / "extensions").iterdir())
        assert not (tmp_path / "home" / ".cache" / "torch_extensions").exists()
        return done

    return start


def test_every_command_of_one_process_works(run, small_recipe, tmp_path):
    run(sys.executable, "-c", THREE_STEPS, str(small_recipe), "checkpoints.every=3")
    run(*COMMAND, "train", str(small_recipe), "checkpoints.every=3")
    assert "continued from step-0000003" in (tmp_path / RUN / "train.log").read_text(encoding="utf-8")
    run(*COMMAND, "export", str(RUN), "exported", "--checkpoint", "3")
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert "losses with step-0000003" in run(*COMMAND, "debug", "batch", str(RUN), "5").stdout
    assert "blocks               teacher 4, student 2" in run(*COMMAND, "summary", str(RUN)).stdout
    assert "optimizer" in run(*COMMAND, "profile", str(small_recipe)).stdout


@pytest.mark.sample
def test_two_processes_train_in_bf16(run, small_recipe, tmp_path):
    """Half precision and several processes each have an optimizer of DeepSpeed's that could compile an operator."""
    bf16 = ["training.precision=bf16", "training.zero_stage=1"]
    run(*COMMAND, "train", str(small_recipe), *bf16, "--processes", "2")
    assert (tmp_path / RUN / "exports" / "final" / "model.safetensors").is_file()


def test_compiled_models_need_a_compiler(run, small_recipe):
    error = run(*COMMAND, "train", str(small_recipe), "training.compile=true", code=2).stderr
    assert "training.compile: torch cannot compile the models: " in error
    assert "C++ compiler" in error
    assert "remove training.compile" in error
