"""What speed depends on, as far as it can be tested without a clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kdcore
from kdcore.commands.profile import report
from kdcore.recipe.loading import load_recipe
from kdcore.training.loop import trainer, validation
from kdcore.training.loop.batches import held_out_batches
from kdcore.training.loop.trainer import Trainer
from kdcore.training.run.device_peaks import data_sheet_peak
from kdcore.training.run.profiling import PARTS, StepProfile, _PartTimer, matrix_rate, profile_recipe

MANY_LOSSES = [
    "losses.masked_lm={}",
    "losses.soft_targets={}",
    "losses.minilm_v2={}",
    "losses.attention_kl={}",
    "training.micro_batch_size=4",
]


class Waits(TorchDispatchMode):
    """Counts operations whose result the host has to wait for."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            Waits.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[int]]:
    """Note how often each call of a function or method waits for the device."""
    to_list = torch.Tensor.tolist

    def counted_to_list(tensor: torch.Tensor) -> Any:
        Waits.count += 1
        return to_list(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted_to_list)

    def watch(owner: Any, name: str) -> list[int]:
        original, noted = getattr(owner, name), []

        def watched(*args: Any, **kwargs: Any) -> Any:
            before = Waits.count
            with Waits():
                result = original(*args, **kwargs)
            noted.append(Waits.count - before)
            return result

        monkeypatch.setattr(owner, name, watched)
        return noted

    return watch


def test_a_step_never_waits_for_the_device_and_a_validation_once(
    small_recipe: Path, waits: Callable[[Any, str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = waits(Trainer, "_train_step")
    batches = []

    def counted(*args: Any) -> Any:
        for batch in held_out_batches(*args):
            batches.append(batch)
            yield batch

    monkeypatch.setattr(validation, "held_out_batches", counted)
    constants = waits(validation.ConstantBaselines, "finish")  # once a run, from sums that are on the host by then
    states = waits(validation.PooledStates, "checks")  # of states that are on the host by then
    validations = waits(trainer, "validate")
    overrides = [*MANY_LOSSES, "training.budget.steps=3", "validation.every=3", "validation.batch_size=1"]
    kdcore.train(small_recipe, overrides)
    assert steps == [0, 0, 0]
    assert len(batches) > 3 * len(validations), "there are several batches to wait for"
    rest = [all_ - sum(own) for all_, *own in zip(validations, constants, states, strict=True)]
    assert rest == [1, 1], "one reading of all sums"
    assert constants[1] == 0


def test_waiting_for_the_device_would_be_noticed(waits: Callable[[Any, str], list[int]]) -> None:
    class Impatient:
        @staticmethod
        def look() -> None:
            value = torch.ones(2).sum()
            assert value.item() == 2
            assert float(value) == 2
            assert bool(value > 1)
            assert value.tolist() == 2

    noted = waits(Impatient, "look")
    Impatient.look()
    assert noted == [4]


def test_the_log_tells_what_the_start_took(small_recipe: Path) -> None:
    run = kdcore.train(small_recipe, ["training.budget.steps=1"])
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    for part in ("imports", "plan and data", "processes", "teacher", "student", "engine"):
        assert f"{part} " in log.partition("started in ")[2]


def test_a_profile_accounts_for_a_step(small_recipe: Path, tmp_path: Path) -> None:
    found = profile_recipe(load_recipe(small_recipe, MANY_LOSSES), steps=2)
    assert set(found.seconds) == set(PARTS)
    assert min(found.seconds[part] for part in PARTS if part != "communication") > 0
    assert found.micro_batches == 2
    assert 0 < found.padding < 1
    assert not found.computes_padding
    assert found.flops > 1e6
    assert found.utilization > 0
    assert found.memory > 2**20
    assert (found.device, found.peak) == ("cpu", None)
    # The same work with and without the time of its parts, whatever else the machine does.
    assert 0.2 < found.plain_seconds / (sum(found.seconds.values()) - found.seconds["data"]) < 5
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_a_profile_of_compiled_models_counts_the_same_multiplications(small_recipe: Path) -> None:
    plain, compiled = (
        profile_recipe(load_recipe(small_recipe, [f"training.compile={value}"]), steps=1) for value in ("false", "true")
    )
    assert compiled.flops == plain.flops
    assert compiled.seconds["student forward"] > 0


def profile(**changes: Any) -> StepProfile:
    seconds = dict(zip(PARTS, (0.01, 0.0, 0.3, 0.2, 0.05, 0.4, 0.05), strict=True)) | changes.pop("seconds", {})
    keys: dict[str, Any] = {"padding": 0.0, "computes_padding": False, "flops": 8e10, "tokens": 8192.0, "limit": 1e11}
    keys |= {"plain_seconds": sum(seconds.values()) - seconds["data"], "device": "cpu", "peak": None}
    return StepProfile(seconds, 5, memory=2**30, micro_batch_size=64, micro_batches=1, **(keys | changes))


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"seconds": {"data": 2.0}}, "loading the data of a step"),
        ({"seconds": {"optimizer": 0.9}}, "training.batch_size"),
        ({"flops": 1e10, "tokens": 512.0}, "training.micro_batch_size"),
        ({"padding": 0.3, "computes_padding": True}, "30% of all computed positions are padding"),
        ({"seconds": {"teacher": 3.0}}, "the teacher takes most"),
    ],
)
def test_hints_follow_from_the_numbers(changes: dict[str, Any], hint: str) -> None:
    assert profile().hints() == []
    assert any(hint in one for one in profile(**changes).hints())


def test_a_step_cannot_be_faster_than_its_data() -> None:
    assert profile(seconds={"data": 2.0}).step_seconds == 2.0
    assert profile().step_seconds == pytest.approx(1.0)


def test_the_peak_of_the_data_sheet_decides_the_mfu_of_a_gpu() -> None:
    """A measured rate depends on the method, so it is only shown next to the data sheet's."""
    found = profile(limit=5e14, peak=1e15, flops=4e14, device="NVIDIA H100 80GB HBM3")
    assert found.utilization == pytest.approx(0.4)
    text = report(found)
    assert "0.40 of 1,000,000 GFLOP/s, the data sheet's peak of NVIDIA H100 80GB HBM3; 500,000 GFLOP/s measured" in text
    assert "0.80 of 100 GFLOP/s, measured with large matrix products" in report(profile())


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989.4e12),
        ("NVIDIA H100 PCIe", torch.float16, False, 756e12),
        ("NVIDIA H200", torch.bfloat16, False, 989.4e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, True, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156e12),
        ("NVIDIA A100 80GB PCIe", torch.float32, False, 19.5e12),
        ("NVIDIA A10", torch.float16, False, 125e12),
        ("NVIDIA A10G", torch.float16, False, None),
        ("NVIDIA L40S", torch.float16, False, 362e12),
        ("NVIDIA L4", torch.float16, False, 121e12),
        ("Tesla V100-SXM2-32GB", torch.float16, False, 125e12),
        ("Tesla V100-SXM2-32GB", torch.bfloat16, False, None),
        ("Tesla T4", torch.float32, True, 8.1e12),
        ("cpu", torch.float32, False, None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, dtype: torch.dtype, tf32: bool, peak: float | None) -> None:
    assert data_sheet_peak(name, dtype, tf32=tf32) == peak


def test_a_gpu_computes_twenty_large_products_between_two_synchronisations() -> None:
    """The meta device replaces a GPU, on which each synchronisation takes as long as many small products."""
    clock, calls, seconds = [0.0], [0], 1e-3

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "mm" in str(function):
                assert args[0].shape == args[1].shape == (8192, 8192)
                calls[0] += 1
                clock[0] += seconds
            return function(*args, **(kwargs or {}))

    def now() -> float:
        assert calls[0] % 20 == 0
        clock[0] += 1e-5
        return clock[0]

    with Products():
        rate = matrix_rate(torch.device("meta"), torch.bfloat16, now)
    assert calls[0] > 20
    assert rate == pytest.approx(2 * 8192**3 / seconds, rel=1e-3)


def test_the_pass_that_gives_the_mfu_waits_for_the_device_only_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[None] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(None))
    clock = _PartTimer(torch.device("meta"), steps=[{}])
    for plain, expected in ((False, 2), (True, 0)):
        clock.plain = plain
        waits.clear()
        with clock.timed("teacher"):
            pass
        assert len(waits) == expected
