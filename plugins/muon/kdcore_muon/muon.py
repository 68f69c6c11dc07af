"""Muon for the matrices of blocks, and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Optimizer, OptimizerConfig, ParameterGroup

Decay = Annotated[float, Field(ge=0, lt=1)]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial a x + b x^3 + c x^5 that each step applies to singular values (Jordan et al. 2024)."""


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the weight matrices of blocks, and AdamW for all other parameters.

    The update of a matrix is its momentum with all singular values moved to about 1, times 0.2 * sqrt(max(rows,
    columns)). The factor gives it the root mean square of AdamW's updates (Liu et al. 2025, section 2.2), so that one
    learning rate and weight decay suit both. Embeddings, heads, biases, norms and the learned parameters of losses are
    updated by AdamW with bias correction. Weight decay is decoupled.
    """

    class Config(OptimizerConfig):
        """Muon's keys."""

        momentum: Decay = Field(0.95, description="Decay rate of the average of a matrix's gradient.")
        nesterov: bool = Field(True, description="Use Nesterov momentum.")
        iterations: int = Field(5, ge=1, description="Newton-Schulz steps that move singular values to about 1.")
        betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="Decay rates of AdamW's averages.")
        eps: float = Field(1e-8, gt=0, description="Added to the square root of AdamW's second moment.")

    elementwise: ClassVar[bool] = False

    config: Config

    def build(self, groups: list[ParameterGroup]) -> MuonOptimizer:
        """Build one optimizer for all groups, which updates each parameter according to its role."""
        return MuonOptimizer(groups, self.config)


class MuonOptimizer(torch.optim.Optimizer):
    """Update parameters whose role is `matrix` by Muon, and all others by AdamW.

    The state of a matrix is `momentum_buffer`; other parameters have `step`, `exp_avg` and `exp_avg_sq`, as in torch.
    """

    def __init__(self, groups: list[ParameterGroup], config: Muon.Config) -> None:
        self._config = config
        # Determined here, because loading a state replaces the groups with plain ones.
        self._matrices = {one.parameter for group in groups for one in group.parameters if one.role == "matrix"}
        super().__init__(groups, {"lr": config.lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            decay = 1 - group["lr"] * group["weight_decay"]
            if decay != 1:
                torch._foreach_mul_(parameters, decay)
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            others = []
            for parameter in parameters:
                if parameter in self._matrices:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
                else:
                    others.append(parameter)
            for matrices in by_shape.values():
                self._update_matrices(matrices, group["lr"])
            if others:
                self._update_others(others, group["lr"])
        return loss

    def _update_matrices(self, matrices: list[Tensor], lr: float) -> None:
        """Update matrices of one shape at once."""
        gradients: list[Any] = []
        buffers = []
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            buffers.append(state["momentum_buffer"])
            gradients.append(matrix.grad)
        momentum = self._config.momentum
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, buffers, momentum) if self._config.nesterov else buffers
        stacked = torch.stack([direction.flatten(1) for direction in directions])
        updates = orthogonalize(stacked, self._config.iterations)
        scale = 0.2 * max(stacked.shape[1:]) ** 0.5
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.add_(update.view_as(matrix), alpha=-lr * scale)

    def _update_others(self, parameters: list[Tensor], lr: float) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state["step"] += 1
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        averages, squares = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = self._config.betas
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2 ** state["step"]) ** 0.5 for state in states])
        torch._foreach_add_(roots, self._config.eps)
        torch._foreach_addcdiv_(parameters, averages, roots, [-lr / (1 - beta1 ** state["step"]) for state in states])


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """Move all singular values of matrices to about 1 (0.7 to 1.2) by Newton-Schulz steps.

    On GPUs this is computed in bfloat16, as published; its rounding errors are far smaller than this range.

    Args:
        matrices: (n, rows, columns).
        iterations: number of steps.

    Returns:
        A tensor of the same shape and type.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result
