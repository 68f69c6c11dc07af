"""The only module that calls DeepSpeed's engine."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from kdcore.errors import InputError, PluginError, RecipeError, first_line
from kdcore.faults import plugin_faults
from kdcore.optimizers.base import NamedParameter, Optimizer, ParameterGroup
from kdcore.recipe.schema import TrainingSettings
from kdcore.registry import optimizers
from kdcore.signals import Batch, Signals
from kdcore.training.engine import ENGINE_FOLDER
from kdcore.training.engine.gradient_caching import CachedGradients
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.engine.resharding import float32_weights, part_rank, read_part, read_parts, reshard
from kdcore.training.engine.tensors import is_expanded, read_tensors, write_tensors
from kdcore.training.runtime.distributed import DistributedContext, find_accelerator
from kdcore.training.runtime.suppress_output import suppress_output
from kdcore.transforms.base import ParameterSource

_MODEL_FILE = "mp_rank_00_model_states.pt"
_OWN_KEYS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
}
_OWN_INNER_KEYS = (
    ("zero_optimization", "stage", "training.zero_stage"),
    ("fp16", "enabled", "training.precision"),
    ("bf16", "enabled", "training.precision"),
)
_FROZEN = "frozen_float32"  # key of the model's file
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
# DeepSpeed ignores unknown keys at the top of its configuration, so a misspelt one must be found here.
_PASSED_ON = {
    "bf16",
    "comms_logger",
    "communication_data_type",
    "data_types",
    "dump_state",
    "flops_profiler",
    "fp16",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_optimization",
}


_PLAIN = {Tensor, nn.Parameter, type(None), bool, int, float, str}


def zero_stage(settings: TrainingSettings) -> int:
    """Return the ZeRO stage: the configured one, or by default 0 with fp32 and 1 with half precision."""
    if settings.zero_stage is not None:
        return settings.zero_stage
    return 0 if settings.precision == "fp32" else 1


def check_precision(settings: TrainingSettings) -> None:
    """Reject settings that the device or DeepSpeed does not support.

    Raises:
        RecipeError: the precision is not supported.
    """
    accelerator = find_accelerator()
    device = accelerator.device_name()
    if settings.precision == "fp16" and not accelerator.is_fp16_supported():
        raise RecipeError(
            f"fp16 is not supported on this device ({device})", key="training.precision", allowed=("bf16", "fp32")
        )
    if settings.precision == "bf16" and not accelerator.is_bf16_supported():
        raise RecipeError(
            f"bf16 is not supported on this device ({device})", key="training.precision", allowed=("fp16", "fp32")
        )
    if settings.precision != "fp32" and zero_stage(settings) == 0:
        # Measured with DeepSpeed 0.19.8: in fp16 the loss is never scaled, yet gradients are divided by the scale. In
        # bf16 the float32 copy of the weights cannot be reached there, so that exports would be rounded.
        raise RecipeError(
            f"{settings.precision} is not supported at ZeRO stage 0", key="training.zero_stage", allowed=("1", "2")
        )


def check_optimizer(optimizer: type[Optimizer], name: str, settings: TrainingSettings) -> None:
    """Reject optimizers that need whole tensors if ZeRO flattens and splits them.

    Raises:
        RecipeError: the combination is not supported; the message lists supported ones.
    """
    stage = zero_stage(settings)
    if stage > 0 and not optimizer.elementwise:
        raise RecipeError(
            f"the optimizer `{name}` needs whole tensors, but ZeRO stage {stage} flattens and splits them",
            key="optimizer.name",
            allowed=f"`{name}` with `training.zero_stage: 0` and `training.precision: fp32`, or an optimizer that "
            f"works element by element: {', '.join(_elementwise_optimizers())}",
        )


def _elementwise_optimizers() -> list[str]:
    """List the installed optimizers that ZeRO may split; optimizers that cannot be imported are left out."""
    names = []
    for name in optimizers.names():
        with suppress(PluginError):
            if optimizers.get(name).elementwise:
                names.append(name)
    return names


def accumulation(settings: TrainingSettings, world_size: int) -> tuple[int, int]:
    """Return the micro-batch size, and the number of micro-batches per process and step.

    Raises:
        RecipeError: the batch size is not divisible by micro-batch size and number of processes.
    """
    batch_size = settings.batch_size
    if batch_size % world_size:
        raise RecipeError(
            f"batch_size {batch_size} is not a multiple of the number of processes, {world_size}",
            key="training.batch_size",
            allowed=f"multiples of {world_size}",
        )
    micro = settings.micro_batch_size or batch_size // world_size
    if batch_size % (micro * world_size):
        raise RecipeError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro} x "
            f"{world_size} {'process' if world_size == 1 else 'processes'}",
            key="training.micro_batch_size",
            allowed=f"divisors of {batch_size // world_size}",
        )
    return micro, batch_size // (micro * world_size)


@dataclass(frozen=True)
class LossScale:
    """The factor by which losses are multiplied in fp16.

    Attributes:
        now: the current factor.
        minimum: the smallest allowed factor.
    """

    now: float
    minimum: float

    @property
    def at_minimum(self) -> bool:
        """Whether the factor cannot be lowered."""
        return self.now <= self.minimum


Past = tuple[tuple[frozenset[str], bool], ...]
"""Optimizer groups that a parameter was in, as (labels of the losses that reach it, whether it has weight decay)."""


@dataclass(frozen=True)
class CarriedState:
    """State that the engine of a stage passes to the engine of the next stage, the same on every process.

    Attributes:
        weights: float32 weights, and buffers, by name in the module, on the CPU.
        optimizer: the optimizer's state for each trained parameter, by the parameter's name. Tensors of the parameter's
            shape are on the CPU.
        shapes: shape of each trained parameter.
        loss_scaler: DeepSpeed's loss scaler in fp16; otherwise None.
        counters: DeepSpeed's step counters.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Any]]
    shapes: dict[str, torch.Size]
    loss_scaler: Any
    counters: dict[str, int]


class Engine:
    """Run forward, backward and update through DeepSpeed, and move weights and state into and out of it."""

    def __init__(
        self,
        module: DistillationModule,
        losses_by_parameter: Mapping[str, frozenset[str]],
        optimizer: Optimizer,
        settings: TrainingSettings,
        processes: DistributedContext,
        past: Mapping[str, Past] | None = None,
    ) -> None:
        """Pass `module` to DeepSpeed. Parameters change only in steps in which a loss that reaches them is active.

        Args:
            module: student and losses.
            losses_by_parameter: labels of the losses that reach each parameter.
            optimizer: function that creates torch's optimizer.
            settings: the recipe's training settings.
            processes: the processes.
            past: in later stages of a run, the groups that parameters were in during earlier stages.

        Raises:
            RecipeError: `training.deepspeed` has a key that kdcore sets itself or that DeepSpeed does not support.
        """
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.processes = processes
        self.skipped = False
        self.scale_is_exhausted = False
        self.grad_norm: Tensor | None = None
        self.peak_lr = optimizer.config.lr
        self._optimizer = optimizer
        # DeepSpeed fills missing gradients with zeros, and momentum and weight decay would then move parameters that no
        # active loss reaches. So the parameters that the same losses reach form a group; its learning rate is then 0.
        # ZeRO keeps one step count for a group, so parameters with different histories are also in different groups.
        groups: dict[Past, list[NamedParameter]] = {}
        roles = module.parameter_roles()
        for name, parameter in module.named_parameters():
            labels = losses_by_parameter[name]
            parameter.requires_grad_(bool(labels))
            if labels:
                group = (*(past or {}).get(name, ()), (labels, parameter.ndim >= 2))
                groups.setdefault(group, []).append(NamedParameter(name, roles[name], parameter))
        self._group_losses = [group[-1][0] for group in groups]
        self._group_names = [[one.name for one in parameters] for parameters in groups.values()]
        module.to(processes.device)
        # The optimizer holds trained parameters in float32; these would only be left in training precision.
        self._frozen = {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in module.named_parameters()
            if settings.precision != "fp32" and not losses_by_parameter[name]
        }
        config = deepspeed_config(settings, processes.world_size)
        with plugin_faults(optimizer, "optimizer"):
            client = optimizer.build(
                [
                    ParameterGroup(parameters, optimizer.config.weight_decay if decays else 0.0)
                    for (*_, (_, decays)), parameters in groups.items()
                ]
            )
        try:
            with suppress_output():
                self._engine, *_ = deepspeed.initialize(
                    model=module, optimizer=client, config=config, dist_init_required=False
                )
            # The all-reduce of a single process would copy all gradients to one tensor and back.
            if processes.world_size == 1 and zero_stage(settings) == 0:
                self._engine.enable_backward_allreduce = False
            self._engine.clip_fp32_gradients = self._clip_gradients
            if zero_stage(settings) > 0:
                self._wait_once()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"DeepSpeed refuses `{place}`: {first['msg']}", key="training.deepspeed") from error

    @property
    def module(self) -> DistillationModule:
        """The module in training precision."""
        module: DistillationModule = self._engine.module
        return module

    @property
    def dtype(self) -> torch.dtype:
        """The training precision."""
        return next(self.module.student.parameters()).dtype

    def forward(
        self,
        batch: Batch,
        teachers: Mapping[str, Signals],
        labels: Collection[str],
        cached: CachedGradients | None = None,
    ) -> dict[Term, Tensor]:
        """Run the student on a micro-batch; return the sum of each term of the losses with these labels.

        With cached gradients of coupled losses, the result includes the term `CACHED`.
        """
        sums: dict[Term, Tensor] = self._engine(batch, teachers, labels, cached)
        return sums

    def backward(self, objective: Tensor) -> None:
        """Accumulate the gradient of a scalar that was computed from the result of `forward`.

        DeepSpeed then averages gradients over processes.
        """
        # At stage 0 DeepSpeed divides by the accumulation steps the gradient of a tensor that is itself an output of
        # the forward pass, so `objective` has to be computed outside of it.
        self._engine.backward(objective, scale_wrt_gas=False)

    def finish_micro_batch(self, lr: float, active: Collection[str]) -> None:
        """Finish a micro-batch; after the last one of a step, update the weights with learning rate `lr`.

        Parameters that no `active` loss reaches remain exactly unchanged. If gradients overflow and the step is
        skipped, `skipped` is set; if the loss scale cannot be lowered, `scale_is_exhausted` is set.
        """
        for group, labels in zip(self._engine.optimizer.param_groups, self._group_losses, strict=True):
            group["lr"] = 0.0 if labels.isdisjoint(active) else lr
        updates = self._engine.is_gradient_accumulation_boundary()
        if updates and self._engine.zero_optimization_stage() == 0:  # at other stages DeepSpeed computes the norm
            gradients = list(self._gradients())
            if not self._engine.gradient_clipping():
                self.grad_norm = nn.utils.get_total_norm(gradients)
        skipped_before = self._engine.skipped_steps
        try:
            with plugin_faults(self._optimizer, "optimizer"):
                self._engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            self.skipped = self.scale_is_exhausted = True
            return
        if updates:
            self.skipped = self._engine.skipped_steps > skipped_before
            self._reset_inactive(active)

    def _wait_once(self) -> None:
        """Make a step at ZeRO stages 1 and 2 wait for the device only once: for the norm, which also reveals overflows.

        DeepSpeed itself would check all gradients first, and mask and check the norm of each parameter group.
        """
        from deepspeed.runtime.zero.utils import get_norm_dtype

        optimizer = self._engine.optimizer
        if not optimizer.compute_grad_norm:
            return

        def norm_of_group(gradients: Sequence[Tensor], parameters: Sequence[Tensor], norm_type: int = 2) -> Tensor:
            real = [gradient.to(get_norm_dtype()) for gradient in gradients if not hasattr(gradient, "_zero_padding")]
            own = [torch.linalg.vector_norm(gradient) for gradient in real]
            total = torch.stack(own).pow(2).sum().float() if own else torch.zeros((), device=optimizer.device)
            dist.all_reduce(total, group=optimizer.dp_process_group)
            return total.pow(0.5)

        def unscale_and_clip(gradients: Sequence[Tensor], norm: Tensor) -> None:
            scale = optimizer.loss_scale
            if optimizer.clip_grad > 0:
                scale = (((norm / scale) + 1e-6) / optimizer.clip_grad).clamp(min=1.0) * scale
            elif scale == 1.0:
                return
            for gradient in gradients:
                gradient.data.mul_(1.0 / scale)

        optimizer.get_grad_norm_direct = norm_of_group
        optimizer.check_overflow = lambda partition_gradients=True: None
        optimizer.unscale_and_clip_grads = unscale_and_clip

    def _clip_gradients(self) -> None:
        """Replace DeepSpeed's clipping at stage 0, which discards the norm and waits for the device."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        self.grad_norm = torch.stack([gradient.float().norm() for gradient in gradients]).pow(2).sum().pow(0.5)
        limit = torch.full_like(self.grad_norm, self._engine.gradient_clipping())
        factor = (limit / (self.grad_norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that was built, inside DeepSpeed's wrapper."""
        outer = self._engine.optimizer
        base: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
        return base

    def _gradients(self) -> Iterator[Tensor]:
        """Yield the gradients of all trained parameters, with zeros for missing ones, as DeepSpeed reduces them."""
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                yield parameter.grad

    def _reset_inactive(self, active: Collection[str]) -> None:
        """Reset the optimizer's state of groups that no active loss reaches.

        Their gradients in this step are zeros. Without the reset, their step count would advance, and Adam's bias
        correction would shrink the first real updates, to half their length after 10 inactive steps.
        """
        base = self._base_optimizer
        for group, labels in zip(base.param_groups, self._group_losses, strict=True):
            if labels.isdisjoint(active):
                for parameter in group["params"]:
                    self._optimizer.reset_state(base.state[parameter])

    def metrics(self) -> dict[str, float]:
        """Return the gradient norm, and in fp16 the loss scale and skipped steps; waits for the device."""
        metrics = {}
        norm = self._engine.get_global_grad_norm() if self.grad_norm is None else self.grad_norm
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        scale = self.loss_scale
        if scale is not None:
            metrics["loss_scale"] = scale.now
            metrics["skipped_steps"] = float(self._engine.skipped_steps)
        return metrics

    @property
    def loss_scale(self) -> LossScale | None:
        """The loss scale of fp16, known on the host; None in other precisions."""
        if not self._engine.fp16_enabled():
            return None
        scaler = self._engine.optimizer.loss_scaler
        now = float(scaler.cur_scale)
        if scaler.dynamic:
            return LossScale(now, float(scaler.min_scale))
        return LossScale(now, now if self.skipped else 0.0)  # a static scale cannot react to an overflow

    def largest_weight(self) -> float:
        """Return the largest absolute weight on this process, or NaN if any weight is NaN; waits for the device."""
        extremes = [torch.stack(torch.aminmax(parameter.detach())).float() for parameter in self.module.parameters()]
        return float(torch.cat(extremes).abs().max())

    def float32_student(self) -> dict[str, Tensor]:
        """Gather the student's weights in float32 on the CPU, from the master copy; every process must call this."""
        return self._float32_weights(self.module.student)

    def _float32_weights(self, module: nn.Module) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        whole = {
            id(parameter): self._frozen[name]
            for name, parameter in self.module.named_parameters()
            if name in self._frozen
        }
        weights = {}
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):
                weights[name] = tensor  # a module's extra state
                continue
            if id(tensor) not in whole:
                master = None
                if tensor.requires_grad and self._engine.zero_optimization_stage() > 0:
                    master = safe_get_full_fp32_param(tensor)
                source = (tensor if master is None else master).detach()
                dtype = torch.float32 if source.is_floating_point() else source.dtype
                whole[id(tensor)] = source.to("cpu", dtype, copy=True)
            weights[name] = whole[id(tensor)]
        return weights

    def state_to_carry(self) -> CarriedState:
        """Copy the state for the engine of the next stage; every process must call this."""
        trained = {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        flat = self._engine.zero_optimization_stage() > 0
        base, states = self._base_optimizer, dict[str, dict[str, Any]]()
        for group, names in zip(base.param_groups, self._group_names, strict=True):
            for name in names:
                parameter = trained[name]
                state = base.state.get(group["params"][0] if flat else parameter, {})
                states[name] = {
                    key: _whole_state(parameter, value) if flat and _is_elementwise(value) else _on_cpu(value)
                    for key, value in state.items()
                }
        fp16 = self._engine.fp16_enabled()
        return CarriedState(
            self._float32_weights(self.module),
            states,
            {name: parameter.shape for name, parameter in trained.items()},
            self._engine.optimizer.loss_scaler if fp16 else None,
            {name: getattr(self._engine, name) for name in _COUNTERS},
        )

    def take_over(
        self, before: CarriedState, sources: Mapping[str, ParameterSource], weights: Mapping[str, Tensor]
    ) -> None:
        """Load the optimizer state of the previous engine; called before the first step.

        Args:
            before: state of the previous stage's engine.
            sources: sources of this engine's parameters; parameters without a source start without state.
            weights: float32 values of all parameters, from which this engine's module was cast.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        base, flat = self._base_optimizer, self._engine.zero_optimization_stage() > 0
        parameters = dict(self.module.named_parameters())
        for group, names in zip(base.param_groups, self._group_names, strict=True):
            states = {
                name: _selected(before.optimizer[sources[name].name], before.shapes, sources[name])
                for name in names
                if name in sources and sources[name].name in before.optimizer
            }
            if flat:
                for name in names:
                    safe_set_full_fp32_param(parameters[name], weights[name].to(self.processes.device))
                self._set_flat_state(group["params"][0], {name: parameters[name] for name in names}, states)
            else:
                for name, state in states.items():
                    if state:
                        base.state[parameters[name]] = state
        move_state(base)
        if before.loss_scaler is not None:
            self._engine.optimizer.loss_scaler = before.loss_scaler
        for name, value in before.counters.items():
            setattr(self._engine, name, value)

    def _set_flat_state(
        self, flat: Tensor, parameters: Mapping[str, nn.Parameter], states: Mapping[str, dict[str, Any]]
    ) -> None:
        """Copy the state of a group's parameters to this process's part of the flat group."""
        first = next((state for state in states.values() if state), None)
        if first is None:
            return
        state = self._base_optimizer.state[flat]
        for key, example in first.items():
            if not _is_elementwise(example):
                state[key] = example  # equal within a group, because its parameters have taken the same steps
                continue
            state[key] = torch.zeros_like(flat)
            for name, values in states.items():
                mapping: Any = parameters[name]._hp_mapping  # type: ignore[attr-defined]
                if mapping is not None:
                    inside, part = mapping.hp_fragment_address, mapping.lp_fragment_address
                    value = values[key].flatten().narrow(0, part.start, part.numel)
                    state[key].narrow(0, inside.start, inside.numel).copy_(value)

    def close(self) -> None:
        """Release DeepSpeed's engine and the memory of the module, which other objects may still refer to.

        Hooks and parameters of the module refer to DeepSpeed's engine and to its flat weights and gradients, so a
        module that is kept alive would keep all of them alive.
        """
        module = self.module
        with suppress_output():
            self._engine.destroy()
        del self._engine
        for part in module.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        for parameter in module.parameters():
            vars(parameter).clear()
            parameter.grad = None
            parameter.data = parameter.data.new_empty(0)

    def save(self, folder: Path) -> list[Path]:
        """Write this process's part of the state into `folder`; every process must call this.

        Returns:
            The files written by this process.

        Raises:
            OSError: the disk fails. Raised after all processes have finished.
        """
        writer = _Writer()
        self._engine.checkpoint_engine.save = writer.save
        self._engine._copy_recovery_script = lambda folder: None  # DeepSpeed would add its scripts
        frozen = {_FROZEN: self._frozen}
        self._engine.save_checkpoint(str(folder), tag=ENGINE_FOLDER, client_state=frozen, save_latest=False)
        if writer.error is not None:
            raise writer.error
        return writer.written

    def unsaveable(self) -> str | None:
        """Find state that cannot be stored because it is neither a tensor nor a plain value; None if there is none.

        Returns:
            Its location and type: extra state of a loss or the student, or an entry of the optimizer's state.
        """
        for name, value in self.module.state_dict().items():
            if found := _not_plain(value):
                owner, label, *_ = name.split(".")
                who = f"the loss `{label}`" if owner == "losses" else "the student"
                return f"{who}: its state `{name}` contains {found}"
        outer = self._engine.optimizer
        base = getattr(outer, "optimizer", outer)
        who = f"the optimizer {type(self._optimizer).__name__}"
        names = {id(parameter): f"`{name}`" for name, parameter in self.module.named_parameters()}
        for number, group in enumerate(base.param_groups):
            for parameter in group["params"]:
                for key, value in base.state[parameter].items() if parameter in base.state else ():
                    if found := _not_plain(value):
                        of = names.get(id(parameter), f"parameter group {number}")
                        return f"{who}: its state `{key}` of {of} contains {found}"
            for key, value in group.items():
                if key != "params" and (found := _not_plain(value)):
                    return f"{who}: `{key}` of parameter group {number} contains {found}"
        return None

    def state_bytes(self) -> int:
        """Estimate the bytes that `save` writes on this process, after the first step."""
        outer = self._engine.optimizer
        base = getattr(outer, "optimizer", outer)
        tensors = [value for state in base.state.values() for value in state.values() if isinstance(value, Tensor)]
        if self._engine.zero_optimization_stage() > 0:
            tensors += [parameter for group in base.param_groups for parameter in group["params"]]
        elif not self.processes.is_main:
            return 0
        if self.processes.is_main:
            tensors += [value for value in self.module.state_dict().values() if isinstance(value, Tensor)]
            tensors += self._frozen.values()
        storages = [tensor.untyped_storage() for tensor in tensors]  # parameters may share one
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def load(self, folder: Path, world_size: int) -> None:
        """Restore what `save` wrote; every process must call this.

        DeepSpeed reads its files through `read_tensors`. If a different number of processes wrote them, the optimizer's
        state is resharded.

        Args:
            folder: the checkpoint.
            world_size: the number of processes that wrote it.

        Raises:
            InputError: a file is damaged, or does not match this run.
        """
        stage = self._engine.zero_optimization_stage()
        place = folder / ENGINE_FOLDER
        own_part: dict[str, Any] | None = None
        if stage > 0 and world_size != self.processes.world_size:
            try:
                own_part = {"optimizer_state_dict": reshard(read_parts(place), self._engine.optimizer, place)}
            except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"does not match this run: {first_line(error)}", where=str(place)) from error

        def read(path: str, map_location: object = None) -> Any:
            name = Path(path).name
            if part_rank(name) is not None:
                if own_part is not None:
                    return own_part
                part = read_part(place / name)
                state = part["optimizer_state_dict"]
                pairs = zip(state["single_partition_of_fp32_groups"], state["group_paddings"], strict=True)
                sizes = [torch.empty(weights.numel() + padding, device="meta") for weights, padding in pairs]
                self._check_shapes([{"weights": size} for size in sizes], place / name)  # DeepSpeed would pad any
                return part
            content = read_tensors(place / name)
            if name == _MODEL_FILE and isinstance(content, dict):
                content["dp_world_size"] = self.processes.world_size
            return content

        self._engine.checkpoint_engine.load = read
        try:
            # DeepSpeed finds files by glob patterns, which break on special characters in paths.
            with suppress_output(), chdir(folder):
                path, stored = self._engine.load_checkpoint(".", tag=ENGINE_FOLDER)
            self._restore_frozen((stored or {}).get(_FROZEN, {}))
            base = self._base_optimizer
            move_state(base)
            self._check_shapes([base.state[one] for group in base.param_groups for one in group["params"]], place)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"does not match this run: {first_line(error)}", where=str(place)) from error
        except RuntimeError as error:
            if type(error) is not RuntimeError or any(word in str(error) for word in ("gloo", "CUDA")):
                raise  # a fault of memory, network or device
            text = " ".join(str(error).split())  # the parameter is not in the first line
            file = place / _MODEL_FILE if "loading state_dict" in text else place
            raise InputError(f"does not match this run: {text[:500]}", where=str(file)) from error
        if path is None:
            raise InputError(f"{_MODEL_FILE} is missing", where=str(place))

    def _restore_frozen(self, stored: Mapping[str, Tensor]) -> None:
        """Restore the float32 values of parameters that are not trained; older versions did not store them."""
        for name, parameter in self.module.named_parameters():
            if name in self._frozen:
                loaded = parameter.detach().cpu()
                precise = stored.get(name, self._frozen[name])
                rounded = precise.to(loaded.dtype)
                self._frozen[name] = precise if torch.equal(rounded, loaded) else loaded.float()

    def _check_shapes(self, states: Sequence[Mapping[str, Any]], where: Path) -> None:
        """Reject elementwise state that differs from its parameter in shape: fused optimizers would read past its end.

        Args:
            states: state of each parameter in the order of groups; above ZeRO stage 0, state of each group's flat
                parameter.
            where: the checkpoint, for messages.

        Raises:
            InputError: a shape differs; the message names the first parameter affected, or the first one of its group.
        """
        groups = zip(self._base_optimizer.param_groups, self._group_names, strict=True)
        named = [pair for group, names in groups for pair in zip(group["params"], names, strict=False)]
        for (parameter, name), state in zip(named, states, strict=True):
            for key, value in state.items() if self._optimizer.elementwise else ():
                if _is_elementwise(value) and value.shape != parameter.shape:
                    found = f"(found {tuple(value.shape)}, expected {tuple(parameter.shape)})"
                    what = f"does not match this run: the shape of `{key}` of `{name}` differs {found}"
                    raise InputError(what, where=str(where))


def _not_plain(value: Any) -> str | None:
    """Describe the first object in a value that `read_tensors` rejects, by its type; None if there is none.

    Types are compared exactly: a value of a subclass, such as a named tuple or a Counter, is pickled with a reference
    to its class.
    """
    if isinstance(value, Tensor) and type(value) in _PLAIN:
        return _unusual(value)
    if type(value) in _PLAIN:
        return None
    if type(value) in (dict, OrderedDict):
        return next(filter(None, (_not_plain(item) for pair in value.items() for item in pair)), None)
    if type(value) in (list, tuple, torch.Size):
        return next(filter(None, map(_not_plain, value)), None)
    return f"an object of type {type(value).__qualname__} (expected tensors, numbers, text, lists and maps)"


def _unusual(tensor: Tensor) -> str | None:
    """Describe a tensor that torch does not store as a plain dense tensor; None for a dense tensor."""
    kinds = {
        "sparse": tensor.layout != torch.strided,
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "meta": tensor.is_meta,
    }
    found = [kind for kind, holds in kinds.items() if holds]
    if not found and is_expanded(tensor):
        return "an expanded tensor (expected one that stores all its elements)"
    if not found and tensor.__dict__:
        return f"a tensor with the attribute `{next(iter(tensor.__dict__))}` (expected one without)"
    return f"a {found[0]} tensor (expected a dense one)" if found else None


def _is_elementwise(value: Any) -> bool:
    """Return whether a value of an optimizer's state has an element for each element of the parameter."""
    return isinstance(value, Tensor) and value.ndim > 0


def move_state(optimizer: torch.optim.Optimizer) -> None:
    """Move an optimizer's state to its parameters' devices; step counts are moved only if a kernel reads them there."""
    for group in optimizer.param_groups:
        takes_steps = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and (value.ndim or takes_steps):
                    state[key] = value.to(parameter.device)


def _on_cpu(value: Any) -> Any:
    """Copy a value to the CPU; step counts stay on the device, where some kernels need them."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", copy=True) if value.ndim else value.detach().clone()


def _whole_state(parameter: nn.Parameter, flat: Tensor) -> Tensor:
    """Gather a parameter's state from all parts of its flat group on the CPU; every process must call this."""
    whole = torch.zeros(parameter.numel(), dtype=flat.dtype, device=parameter.device)
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is not None:
        inside, part = mapping.hp_fragment_address, mapping.lp_fragment_address
        whole.narrow(0, part.start, part.numel).copy_(flat.narrow(0, inside.start, inside.numel))
    torch.distributed.all_reduce(whole, group=parameter._dp_group)  # type: ignore[attr-defined]
    return whole.reshape(parameter.shape).cpu()


def _selected(state: dict[str, Any], shapes: Mapping[str, torch.Size], source: ParameterSource) -> dict[str, Any]:
    """Return the transformed optimizer state of a changed parameter; empty if a tensor cannot be transformed."""
    if source.select is None:
        return dict(state)
    selected = {}
    for key, value in state.items():
        if _is_elementwise(value) and value.shape != shapes[source.name]:
            return {}  # a factored moment: only the optimizer knows its layout
        selected[key] = source.select(value).clone() if _is_elementwise(value) else value
    return selected


class _Writer:
    """Write files in place of DeepSpeed.

    An error must not abort `save_checkpoint` on one process: the others would hang at the next barrier. Therefore the
    first error is stored, and nothing more is written.
    """

    def __init__(self) -> None:
        self.written: list[Path] = []
        self.error: OSError | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        if self.error is None:
            try:
                write_tensors(state_dict, Path(path))
            except OSError as error:
                self.error = error
            self.written.append(Path(path))


def deepspeed_config(settings: TrainingSettings, world_size: int) -> dict[str, Any]:
    """Compose DeepSpeed's configuration for these settings.

    Raises:
        RecipeError: `training.deepspeed` has a key that kdcore sets itself or that DeepSpeed does not support.
    """
    if "activation_checkpointing" in settings.deepspeed:
        raise RecipeError(
            "`activation_checkpointing` has no effect: DeepSpeed only reads it for models that call its functions",
            key="training.deepspeed.activation_checkpointing",
            hint="set `training.gradient_checkpointing: true`",
        )
    for key in settings.deepspeed:
        if key in _OWN_KEYS:
            raise RecipeError(f"`{key}` is set by kdcore from the recipe's own keys", key=f"training.deepspeed.{key}")
        if key not in _PASSED_ON:
            raise RecipeError(
                f"DeepSpeed would ignore the key `{key}`",
                key=f"training.deepspeed.{key}",
                allowed=sorted(_PASSED_ON),
            )
    for section, key, own_key in _OWN_INNER_KEYS:
        if key in (settings.deepspeed.get(section) or {}):
            raise RecipeError(
                f"`{section}.{key}` is set by kdcore from `{own_key}`", key=f"training.deepspeed.{section}"
            )
    micro, steps = accumulation(settings, world_size)
    own = {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": settings.gradient_clipping,
        "zero_optimization": {"stage": zero_stage(settings)},
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": settings.precision == "fp16"},
        "bf16": {"enabled": settings.precision == "bf16"},
    }
    return _merge(settings.deepspeed, own)


def _merge(user: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(user)
    for key, value in own.items():
        both_maps = isinstance(value, dict) and isinstance(user.get(key), dict)
        merged[key] = _merge(user[key], value) if both_maps else value
    return merged


def float32_student_of(folder: Path, stage: int) -> dict[str, Tensor]:
    """Return the student's part of `float32_weights_of`, by names within the student.

    Raises:
        InputError: the folder is incomplete.
    """
    prefix = "student."
    weights = float32_weights_of(folder, stage)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def float32_weights_of(folder: Path, stage: int) -> dict[str, Tensor]:
    """Read all weights in float32, including those of losses, from the output of `Engine.save`, without an engine.

    Raises:
        InputError: the folder is incomplete.
    """
    path = folder / ENGINE_FOLDER / _MODEL_FILE
    state = read_tensors(path)
    try:
        weights = dict(state["module"])  # in training precision, including untrained weights
        weights |= state.get(_FROZEN, {})
        if stage > 0:
            masters = float32_weights(read_parts(folder / ENGINE_FOLDER))
            weights |= {name: masters[name].view_as(weights[name]) for name in masters}
            tied: Mapping[str, str] = state["shared_params"]
            weights |= {name: weights[other] for name, other in tied.items() if other in masters}
        floating = {name for name, value in weights.items() if isinstance(value, Tensor) and value.is_floating_point()}
        return {name: value.to(torch.float32) if name in floating else value for name, value in weights.items()}
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot be read: {first_line(error)}", where=str(path)) from error


def check_weights(module: nn.Module, weights: Mapping[str, Any], folder: Path) -> None:
    """Reject weights of a checkpoint that belong to a different module.

    Args:
        module: the module that the weights are for.
        weights: result of `float32_weights_of` or `float32_student_of`.
        folder: the checkpoint.

    Raises:
        InputError: a weight is missing, is unknown or has the wrong shape; the message names the first one.
    """
    expected, where = module.state_dict(), str(folder / ENGINE_FOLDER / _MODEL_FILE)
    other = sorted(expected.keys() ^ weights.keys())
    if other:
        what = "lacks" if other[0] in expected else "contains an unknown"
        raise InputError(f"does not match this run: {what} `{other[0]}`", where=where)
    for name, tensor in expected.items():
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else None for one in (weights[name], tensor)]
        if shapes[0] != shapes[1]:
            found = f"(found {shapes[0]}, expected {shapes[1]})"
            raise InputError(f"does not match this run: the shape of `{name}` differs {found}", where=where)
