"""What the engine asks of a device besides the models: random states, norms of gradients, process groups, sums."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore.models.packing import Packing
from kdcore.optimizers.adamw import AdamW
from kdcore.optimizers.base import Optimizer, OptimizerConfig
from kdcore.recipe.schema import Budget, TrainingSettings
from kdcore.training.engine.engine import Engine
from kdcore.training.runtime.distributed import find_accelerator, fork_random_states, start_processes

pytestmark = pytest.mark.usefixtures("one_thread")


class FakeCuda:
    """The generators of eight GPUs."""

    def __init__(self):
        self.touched = []

    def device_count(self):
        return 8

    def get_rng_state(self, device):
        self.touched.append(device)
        return torch.zeros(1)

    def set_rng_state(self, state, device):
        pass


def test_random_states_of_other_devices_are_left_alone(monkeypatch):
    """A context on each of 8 GPUs takes hundreds of megabytes from every process."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args, **kwargs: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda kind=None: cuda)
    for device in ("cuda:3", "cpu"):
        with fork_random_states(torch.device(device)):
            pass
    assert cuda.touched == [torch.device("cuda:3")]


def test_random_states_of_the_cpu_come_back():
    before = torch.get_rng_state()
    with fork_random_states(torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


class Norms(TorchDispatchMode):
    """Count the norms of single tensors that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "norm" in str(function):
            self.count += len(args[0]) if isinstance(args[0], (list, tuple)) else args[0].numel() > PARAMETERS
        return function(*args, **(kwargs or {}))


PARAMETERS = 4


@pytest.fixture(scope="module")
def processes():
    return start_processes()


class Sum(nn.Module):
    """A module for the engine, whose loss is a number of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))

    def parameter_roles(self):
        return {name: "matrix" for name, _ in self.named_parameters()}

    def forward(self, states):
        return self.student(states).square().sum()


class PlainDescent(Optimizer):
    """Gradient descent, whose steps show the gradients that it gets."""

    def build(self, groups):
        return torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups], lr=0.1)


def plain_gradients(module):
    """The gradients of a copy of the module in float32."""
    copied = Sum()
    copied.load_state_dict({name: tensor.float() for name, tensor in module.state_dict().items()})
    copied(torch.ones(3, 5)).backward()
    return {name: parameter.grad for name, parameter in copied.named_parameters()}


@pytest.mark.parametrize("clipping", [0.0, 0.5])
def test_a_step_computes_one_norm(processes, clipping):
    settings = TrainingSettings(budget=Budget(steps=1), batch_size=1, gradient_clipping=clipping)
    module = Sum()
    labels = {name: frozenset({"loss"}) for name, _ in module.named_parameters()}
    engine = Engine(module, labels, AdamW(AdamW.Config()), settings, processes)
    objective = 1.0 * engine._engine(torch.ones(3, 5))
    engine.backward(objective)
    gradients = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).double()
    with Norms() as norms:
        engine.finish_micro_batch(1e-3, {"loss"})
        metrics = engine.metrics()
    assert norms.count == PARAMETERS
    assert metrics["grad_norm"] == pytest.approx(gradients.norm().item(), rel=1e-6)
    engine.close()


class Waits(TorchDispatchMode):
    """Count the values that the host reads, also within kernels, and those that it copies to the device."""

    names = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::equal",
        "aten::masked_fill_.Tensor",
        "aten::lift_fresh",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in self.names
        return function(*args, **(kwargs or {}))


def test_clipping_does_not_wait_for_the_device(processes):
    settings = TrainingSettings(budget=Budget(steps=1), batch_size=1, gradient_clipping=0.5)
    module = Sum()
    labels = {name: frozenset({"loss"}) for name, _ in module.named_parameters()}
    engine = Engine(module, labels, PlainDescent(OptimizerConfig()), settings, processes)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    engine.backward(1.0 * engine._engine(torch.ones(3, 5)))
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    with Waits() as waits:
        engine.finish_micro_batch(0.1, {"loss"})
    assert waits.count == 0
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert norm > 0.5
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * 0.5 / norm * gradients[name])
    engine.close()


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("clipping", [0.0, 0.5])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_in_half_precision_waits_for_the_device_once(processes, precision, clipping, stage, monkeypatch):
    kind = type(find_accelerator())
    monkeypatch.setattr(kind, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(kind, "supported_dtypes", lambda self: [torch.float, torch.half, torch.bfloat16])
    scale = {"fp16": {"loss_scale": 0, "initial_scale_power": 4}} if precision == "fp16" else {}
    settings = TrainingSettings(
        budget=Budget(steps=1), batch_size=1, precision=precision, zero_stage=stage, gradient_clipping=clipping,
        deepspeed=scale,
    )  # fmt: skip
    module = Sum()
    labels = {name: frozenset({"loss"}) for name, _ in module.named_parameters()}
    engine = Engine(module, labels, PlainDescent(OptimizerConfig()), settings, processes)
    before = {name: tensor.clone() for name, tensor in engine._float32_weights(module).items()}
    engine.backward(1.0 * engine._engine(torch.ones(3, 5, dtype=engine.dtype)).float())
    gradients = plain_gradients(module)
    with Waits() as waits:
        engine.finish_micro_batch(0.1, {"loss"})
    assert waits.count == 1
    assert not engine.skipped
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    factor = min(1.0, clipping / norm.item()) if clipping else 1.0
    for name, tensor in engine._float32_weights(module).items():
        torch.testing.assert_close(tensor, before[name] - 0.1 * factor * gradients[name], rtol=0.02, atol=0.002)
    for value in (float("inf"), float("nan")):
        before = {name: tensor.clone() for name, tensor in engine._float32_weights(module).items()}
        engine.backward(value * engine._engine(torch.ones(3, 5, dtype=engine.dtype)).float())
        with Waits() as waits:
            engine.finish_micro_batch(0.1, {"loss"})
        assert engine.skipped
        assert waits.count == 1
        for name, tensor in engine._float32_weights(module).items():
            assert torch.equal(tensor, before[name])
    engine.close()


@pytest.mark.parametrize("fails", [False, True])
def test_process_groups_are_closed_at_the_end_unless_it_is_a_failure(fails):
    """Closing a group of NCCL waits for the other processes, which a failure may have left in a collective."""
    program = (
        "import atexit, torch.distributed as dist\n"
        "atexit.register(lambda: print('open' if dist.is_initialized() else 'closed'))\n"  # runs last
        "from kdcore.training.runtime.distributed import start_processes, without_leaving\n"
        "with without_leaving():\n"
        "    start_processes()\n"
        "    print('joined', dist.is_initialized())\n" + ("    raise KeyError\n" if fails else "")
    )
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    expected = ["joined", "True", "open" if fails else "closed"]
    assert (end.returncode, end.stdout.split()) == (int(fails), expected), end.stderr


def emulated_index_add(self, dim, index, source):
    """`index_add` as CUDA computes it: one addition per row, rounded to the tensor's own precision."""
    result = self.clone()
    for row, target in zip(source, index.tolist(), strict=True):
        result[target] = result[target] + row
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_of_long_sequences_keep_their_precision(dtype, monkeypatch):
    """In bfloat16, a sum of ones stays at 256, whose next number is 258."""
    from kdcore.signals import Batch

    length = 2048
    lengths, width = np.array([length, length - 48]), length
    real = np.arange(width) < lengths[:, None]
    batch = Batch(
        input_ids=torch.zeros(2, width, dtype=torch.long),
        attention_mask=torch.from_numpy(real),
        lengths=lengths,
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.zeros(0, dtype=torch.long),
        masked_labels=torch.zeros(0, dtype=torch.long),
    )
    generator = torch.Generator().manual_seed(0)
    states = (1 + torch.randn(int(lengths.sum()), 8, generator=generator)).to(dtype)
    monkeypatch.setattr(torch.Tensor, "index_add", emulated_index_add)
    found = Packing(batch).means(states)
    expected = torch.stack([part.double().mean(0) for part in states.split(lengths.tolist())])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    rounded = emulated_index_add(
        torch.zeros(1, 8, dtype=dtype), 0, torch.zeros(length, dtype=torch.long), states[:length]
    )
    error = ((rounded[0] / length).double() - expected[0]).norm() / expected[0].norm()
    assert error > (0.3 if dtype == torch.bfloat16 else 1e-3)  # what the emulation would find
