"""The checks of `make test-gpu` and `make bench-gpu` on a CPU, with tiny models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDERS = [str(ROOT / "tests" / name) for name in ("gpu", "benchmarks")]


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    """Make the modules of the checks importable."""
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = FOLDERS
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(tuple(FOLDERS)):
            del sys.modules[name]


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    recording = importlib.import_module("recording")
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    return recording.Setting("cpu", True, tmp_path / "folder", recording.Findings(tmp_path / "findings.json"))


@pytest.fixture
def run_check(setting: Any) -> Callable[[str], dict[str, Any]]:
    """Run a check, which must pass, and return its values."""

    def run(name: str) -> dict[str, Any]:
        importlib.import_module("child").run_check(name, setting)
        assert setting.findings.failures == []
        values: dict[str, Any] = setting.findings.values
        return values

    return run


def test_attention_equals_its_definition(run_check: Callable[[str], dict[str, Any]]) -> None:
    values = run_check("attention")
    kinds = {(name.split()[0], name.split(" window ")[1]) for name in values["errors"]}
    assert kinds == {(kind, window) for kind in ("float32", "float16", "bfloat16") for window in ("None", "5")}
    assert all(kernel == "sequences" for kernel, _ in values["errors"].values())


def test_wrong_attention_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("check_attention")
    original = module.Packing.attend

    def attend(packing: Any, query: Any, *others: Any) -> Any:
        return original(packing, query * 1.1, *others)

    monkeypatch.setattr(module.Packing, "attend", attend)
    importlib.import_module("child").run_check("attention", setting)
    assert any("expected below" in failure for failure in setting.findings.failures)


def test_an_exception_becomes_a_failure(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setting: Any) -> None:
        setting.findings.note("before", 1)
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(importlib.import_module("check_machine"), "check_versions", fail)
    importlib.import_module("child").run_check("versions", setting)
    assert setting.findings.failures == ["RuntimeError: CUDA error: an illegal memory access"]
    assert setting.findings.values == {"before": 1}


def test_training_equals_the_reference(run_check: Callable[[str], dict[str, Any]], setting: Any) -> None:
    assert run_check("training")["runs"]["fp32-1"]["loss_difference"] < 1e-5
    assert importlib.import_module("material").distance([{"loss": 1.0}], [{"loss": 1.0, "other": 1.0}]) == float("inf")


def test_waits_are_forbidden_between_rows_only(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first row of metrics on; rows, and what precedes the first one, may wait."""
    import kdcore
    from kdcore.training.loop.trainer import Trainer

    modes: list[tuple[str, int]] = []
    step = 0
    original = Trainer._train_step

    def train_step(trainer: Any, *arguments: Any) -> None:
        nonlocal step
        step = trainer.step + 1
        original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: modes.append((mode, step)))
    checks, material = importlib.import_module("check_training"), importlib.import_module("material")
    recipe = material.write_material(setting)
    with checks.waits_between_rows("cuda", allowed=False):
        kdcore.train(recipe, ["training.budget.steps=4", "logging.every=2", "checkpoints.export_at_end=false"])
    assert modes == [("default", 2), ("error", 2), ("default", 4), ("default", 4)]


@pytest.mark.processes
def test_resumed_runs_equal_undisturbed_ones(run_check: Callable[[str], dict[str, Any]]) -> None:
    values = run_check("resume")
    assert values["runs"]["fp32-0"] == {"equal_weights": True, "loss_difference": 0.0}
    assert values["resharded"]["continued"]


def test_no_context_exists_without_a_gpu(run_check: Callable[[str], dict[str, Any]]) -> None:
    assert run_check("contexts")["contexts"] == []


def test_commands_load_the_run(run_check: Callable[[str], dict[str, Any]]) -> None:
    values = run_check("commands")
    assert values["similarity"] < 1e-6
    assert values["predictions"]["scores"]["accuracy"] >= 0


@pytest.mark.parametrize("objective", ["hidden_mse", "soft_targets", "minilm_v2_12", "attention_kl"])
def test_speed_is_measured_for_every_batch(objective: str, run_check: Callable[[str], dict[str, Any]]) -> None:
    values = run_check(f"speed {objective}")
    batches = {(cell["length"], cell["padding"], cell["dropout"]) for cell in values["cells"]}
    assert batches == {(length, padding, rate) for length in (16, 32) for padding in (0.0, 0.3) for rate in (0.0, 0.1)}
    assert all(cell["ratio"] > 0 and cell["tokens_per_second"] > 0 for cell in values["cells"])
    assert len(values["kernels"]) == 15
    assert values["kernels"][0]["ms"] >= values["kernels"][-1]["ms"] > 0


def test_the_profile_is_compared_with_the_bare_step(run_check: Callable[[str], dict[str, Any]]) -> None:
    values = run_check("profile")
    assert values["profile_padding"] == 0
    assert values["ratio"] > 0
