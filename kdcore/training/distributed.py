"""The processes of a run: who is who, on which device, and sums over the host network."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ninja
import torch
import torch.distributed as dist

from kdcore.training.processes import free_port
from kdcore.training.quiet import quiet

logger = logging.getLogger("kdcore")


@dataclass(frozen=True)
class Processes:
    """This process's place among all.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        device: where this process computes.
        host_group: process group that reduces tensors in host memory.
    """

    rank: int
    world_size: int
    device: torch.device
    host_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, the one that writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum of each value over all processes, in float64, on the host."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.host_group)
        result: list[float] = tensor.tolist()
        return result

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier(group=self.host_group)


def _is_compiled() -> bool:
    """Whether the operator that DeepSpeed needs on CPUs lies in the folder of torch's extensions."""
    return any(_extensions_folder().rglob("deepspeed_shm_comm*.so"))


def _extensions_folder() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def find_accelerator() -> Any:
    """DeepSpeed's view of the device."""
    with quiet():  # its import tries which operators could be compiled here, and tells of those that could not
        from deepspeed.accelerator import get_accelerator

        return get_accelerator()


def number_of_processes() -> int:
    """How many processes the environment asks for, before they are joined."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def start_processes() -> Processes:
    """Join the other processes as the environment says (torchrun's variables), or be the only one."""
    if "RANK" in os.environ:
        return _join()
    # A process that this one starts later must not take these for its own. LOCAL_RANK stays: each engine asks for it.
    os.environ["LOCAL_RANK"] = "0"
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ.update(alone)
    try:
        return _join()
    finally:
        for name in alone:
            del os.environ[name]


def _join() -> Processes:
    accelerator = find_accelerator()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        accelerator.set_device(local_rank)
    if not dist.is_initialized():
        backend = "gloo" if on_cpu else accelerator.communication_backend_name()
        if on_cpu and not _is_compiled():
            logger.info("DeepSpeed's first start here compiles an operator, which takes about half a minute")
            for lock in _extensions_folder().rglob("deepspeed_shm_comm/lock"):
                logger.warning(f"if it takes much longer: a start that was killed may have left {lock}; remove it")
        # A build by another ninja than the last one compiles everything again, and there need be none on the PATH.
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", os.defpath)])
        with quiet():
            import deepspeed

            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    host_group = dist.group.WORLD if on_cpu else dist.new_group(backend="gloo")
    assert host_group is not None
    device = torch.device("cpu") if on_cpu else torch.device(accelerator.device_name(local_rank))
    return Processes(dist.get_rank(), dist.get_world_size(), device, host_group)
