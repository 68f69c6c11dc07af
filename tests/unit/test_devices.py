"""The device of each process, for machines and launchers that a CPU has not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdcore.errors import InfrastructureError, InputError
from kdcore.training.runtime import distributed
from kdcore.training.runtime.distributed import (
    check_distinct_devices,
    device_index,
    number_of_processes,
    own_device,
)


@pytest.mark.parametrize(
    ("local_rank", "processes", "devices", "restricted", "index"),
    [
        (0, None, 1, False, 0),
        (3, 4, 4, False, 3),
        (3, 4, 8, True, 3),
        (3, None, 4, False, 3),
        (3, 4, 1, True, 0),  # CUDA_VISIBLE_DEVICES with one device for each task
        (0, 4, 1, True, 0),
        (3, None, 1, False, 0),  # SLURM limits the devices of each task by a cgroup
    ],
)
def test_a_process_takes_the_device_of_its_number_or_the_only_one(local_rank, processes, devices, restricted, index):
    assert device_index(local_rank, processes, devices, restricted=restricted) == index


@pytest.mark.parametrize(
    ("local_rank", "processes", "devices", "restricted", "words"),
    [
        (0, 2, 1, False, "found 2 processes, 1 visible device"),  # the first process fails, too, instead of waiting
        (1, 2, 1, False, "found 2 processes, 1 visible device"),
        (4, None, 4, False, "found 5 processes, 4 visible devices"),
        (0, 8, 4, True, "found 8 processes, 4 visible devices"),
    ],
)
def test_more_processes_than_devices_are_refused(local_rank, processes, devices, restricted, words):
    with pytest.raises(InputError, match="more processes than devices") as caught:
        device_index(local_rank, processes, devices, restricted=restricted)
    assert words in str(caught.value)
    assert f"at most {devices}" in str(caught.value)


def test_processes_on_the_same_device_are_refused():
    check_distinct_devices([("one", "a"), ("one", "b"), ("two", "a")])
    with pytest.raises(InputError, match="processes 1 and 2 use the same device of one"):
        check_distinct_devices([("one", "a"), ("one", "b"), ("one", "b")])


class Gpus:
    """An accelerator on which nothing may be computed."""

    def __init__(self, count):
        self.device_count = lambda: count

    def device_name(self, index=None):
        return "cuda" if index is None else f"cuda:{index}"

    def visible_devices_envs(self):
        return ["CUDA_VISIBLE_DEVICES"]

    def set_device(self, index):
        raise AssertionError("a call of CUDA")


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        ({}, 4, "cuda:0"),
        ({"LOCAL_RANK": "3"}, 4, "cuda:0"),  # left from another run: without RANK there is one process
        ({"RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2, "cuda:1"),
        ({"RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "1"}, 1, "cuda:0"),
        ({"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 1, None),
    ],
)
def test_the_environment_decides_before_any_call_of_cuda(environment, count, expected, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "find_accelerator", lambda: Gpus(count))
    if expected is None:
        with pytest.raises(InputError, match="more processes than devices"):
            own_device()
    else:
        assert own_device() == torch.device(expected)


def test_a_cpu_takes_any_number_of_processes(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.setattr(distributed, "find_accelerator", lambda: SimpleNamespace(device_name=lambda: "cpu"))
    assert own_device() == torch.device("cpu")


def test_a_single_process_needs_no_address(monkeypatch):
    """Accelerate leaves the variables of its only process in the environment, without an address."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert number_of_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InfrastructureError, match="not MASTER_ADDR, MASTER_PORT"):
        number_of_processes()
