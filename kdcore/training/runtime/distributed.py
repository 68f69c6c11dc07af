"""Set up process groups, ranks and devices, and sum values over the host network."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import register_rendezvous_handler

from kdcore.errors import InfrastructureError, InputError
from kdcore.training.runtime.suppress_output import suppress_output

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ONE_MACHINE = "kdcore-one-machine"


@dataclass(frozen=True)
class DistributedContext:
    """Rank, device and host group of this process.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        device: device of this process.
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

    def begin_sum(self, values: Sequence[float], group: Any) -> Callable[[], list[float]]:
        """Start summing each value over all processes, in float64, in the background.

        Args:
            values: values of this process.
            group: a host group used for such sums only; every process must start them in the same order.

        Returns:
            A function that waits for the sums and returns them.
        """
        tensor = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(tensor, group=group, async_op=True)

        def finish() -> list[float]:
            work.wait()
            sums: list[float] = tensor.tolist()
            return sums

        return finish

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier(group=self.host_group)


def find_accelerator() -> Any:
    """Return DeepSpeed's accelerator."""
    with suppress_output():  # its import warns on machines without an accelerator
        from deepspeed.accelerator import get_accelerator

        return get_accelerator()


def device_index(local_rank: int, processes: int | None, devices: int, *, restricted: bool) -> int:
    """Choose the device of a process: the one with its local rank, or the only visible one.

    Args:
        local_rank: number of the process on its machine.
        processes: number of processes on this machine; None if unknown.
        devices: number of devices that this process can see.
        restricted: whether an environment variable, such as CUDA_VISIBLE_DEVICES, restricts the visible devices.

    Raises:
        InputError: there are more processes than devices.
    """
    needed = max(local_rank + 1, processes or 1)
    if needed <= devices:
        return local_rank
    if devices == 1 and (restricted or processes is None):
        return 0
    raise InputError(
        f"more processes than devices on {socket.gethostname()} "
        f"(found {needed} processes, {devices} visible {'device' if devices == 1 else 'devices'})",
        hint=f"start at most {devices} on this machine, or make more devices visible (CUDA_VISIBLE_DEVICES)",
    )


def check_distinct_devices(devices: Sequence[tuple[str, str]]) -> None:
    """Reject processes that share a device, because collectives between them would fail.

    Args:
        devices: machine and identifier of each process's device, by rank.

    Raises:
        InputError: two processes share a device; the message names their ranks.
    """
    for rank, device in enumerate(devices):
        first = devices.index(device)
        if first < rank:
            raise InputError(
                f"processes {first} and {rank} use the same device of {device[0]}",
                hint="start fewer processes, or make one device visible per process (CUDA_VISIBLE_DEVICES)",
            )


def own_device() -> torch.device:
    """Return the device of this process; called before anything is computed there.

    Raises:
        InputError: there are more processes than devices on this machine.
    """
    accelerator = find_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    index = device_index(
        int(os.environ.get("LOCAL_RANK", "0")) if "RANK" in os.environ else 0,
        int(processes) if processes.isdigit() and "RANK" in os.environ else None,
        accelerator.device_count(),
        restricted=any(os.environ.get(name) for name in accelerator.visible_devices_envs()),
    )
    return torch.device(accelerator.device_name(index))


def number_of_processes() -> int:
    """Return the world size that the environment defines; called before the group is joined.

    Raises:
        InfrastructureError: the environment is incomplete.
    """
    if "RANK" not in os.environ:
        return 1
    _check_environment()
    return int(os.environ["WORLD_SIZE"])


def start_processes() -> DistributedContext:
    """Join the process group described by the environment (torchrun's variables), or create one with a single process.

    Raises:
        InfrastructureError: variables are missing, the port is in use, or process 0 cannot be reached.
    """
    if "RANK" in os.environ:
        _check_environment()
        return _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    os.environ["LOCAL_RANK"] = "0"  # each DeepSpeed engine reads it
    return _join(0, 1)


def _check_environment() -> None:
    """Reject incomplete launcher variables, which would make torch hang or fail with an obscure error.

    A single process needs no address; accelerate sets its rank but no address in the environment.
    """
    needed = _VARIABLES[:2] if os.environ.get("WORLD_SIZE") == "1" else _VARIABLES
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise InfrastructureError(
            f"RANK is set in the environment, but not {', '.join(missing)}: start with torchrun or with --processes N, "
            "or unset RANK"
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name, "0")
        if not value.isdigit():
            raise InfrastructureError(f"the environment variable {name} must be an integer (found {value!r})")
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= count:
        raise InfrastructureError(
            f"RANK is out of range (found {rank}, expected 0 to {count - 1}, as WORLD_SIZE is {count})"
        )


def _join(rank: int, world_size: int) -> DistributedContext:
    accelerator = find_accelerator()
    device = own_device()
    on_cpu = device.type == "cpu"
    if not on_cpu:
        os.environ["LOCAL_RANK"] = str(device.index)  # each DeepSpeed engine uses the device with this number
        accelerator.set_device(device.index)
    if not dist.is_initialized():
        backend = "gloo" if on_cpu else accelerator.communication_backend_name()
        one_machine = world_size == 1 or _is_loopback(os.environ["MASTER_ADDR"])
        if one_machine:  # gloo would listen on the address of the host's name
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback_interface())
        # torchrun hosts the store itself, and the processes that it starts only connect to it.
        is_served = world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        with suppress_output():
            import deepspeed

            # On CPUs DeepSpeed compiles an all-reduce through shared memory if this table lists it as compatible, and
            # runs the compiler to fill the table. Only tensor parallelism in DeepSpeed's inference calls that operator:
            # gradients are summed by torch.distributed. With an empty table training needs no compiler.
            deepspeed.ops.__compatible_ops__ = {}
            try:
                deepspeed.init_distributed(
                    backend,
                    auto_mpi_discovery=False,
                    verbose=False,
                    init_method=f"{_ONE_MACHINE}://" if one_machine and not is_served else "env://",
                    rank=rank,
                    world_size=world_size,
                )
            except (dist.DistError, OSError) as error:
                raise InfrastructureError(_why_not_joined(str(error), world_size)) from error
        atexit.register(_leave)
    host_group = dist.group.WORLD if on_cpu else dist.new_group(backend="gloo")
    assert host_group is not None
    if device.type == "cuda" and world_size > 1:
        found: list[Any] = [None] * world_size
        own = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
        dist.all_gather_object(found, own, group=host_group)
        check_distinct_devices(found)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), device, host_group)


def _leave() -> None:
    """Close all process groups at the end of the process; NCCL warns about groups that are left open."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def without_leaving() -> Iterator[None]:
    """Let the process end after an exception without closing its groups, because NCCL needs all processes for that."""
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException:
        atexit.unregister(_leave)
        raise


def fork_random_states(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's random states of the CPU and of one device on exit.

    Without a list of devices, torch would reserve memory on every GPU of the machine.
    """
    return torch.random.fork_rng([] if device.type == "cpu" else [device])


def _rendezvous_on_one_machine(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """Yield a local store, the rank and the world size. torch's own store would listen on all interfaces.

    Args:
        url: `SCHEME://?rank=R&world_size=N`.
        timeout: how long to wait for the other processes.

    Raises:
        OSError: MASTER_PORT is in use.
        DistError: timed out waiting for the other processes.
    """
    query = parse_qs(urlsplit(url).query)
    rank, world_size = int(query["rank"][0]), int(query["world_size"][0])
    if world_size == 1:
        yield HashStore(), rank, world_size
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    descriptor = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        descriptor = socket.create_server((host, port), family=family).detach()  # the store closes it
    store = TCPStore(host, port, world_size, rank == 0, timeout, master_listen_fd=descriptor)
    yield store, rank, world_size


register_rendezvous_handler(_ONE_MACHINE, _rendezvous_on_one_machine)  # type: ignore[no-untyped-call]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _loopback_interface() -> str:
    """Name of the loopback interface: `lo` on Linux, `lo0` on macOS."""
    names = [name for _, name in socket.if_nameindex()]
    return "lo" if "lo" in names else "lo0"


def _why_not_joined(text: str, world_size: int) -> str:
    if world_size == 1:
        return f"torch cannot create a process group of a single process: {text.splitlines()[0]}"
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return (
            f"the rendezvous port {port} (MASTER_PORT) is in use by another program on this machine; choose another "
            "one (torchrun --master-port, or --standalone for one machine)"
        )
    if "timed out" in text.lower() or "timeout" in text.lower():
        return (
            f"timed out waiting for process 0 at {host}:{port} (MASTER_ADDR, MASTER_PORT): check whether it has "
            "failed, and whether this machine reaches that address"
        )
    return (
        f"the processes of this run cannot connect at {host}:{port} (MASTER_ADDR, MASTER_PORT): {text.splitlines()[0]}"
    )
