"""Implement the two elementwise moments of the gradient that adam, adamw and lamb share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from kdcore.optimizers.base import OptimizerConfig, ParameterGroup

Beta = Annotated[float, Field(ge=0, lt=1)]


class MomentConfig(OptimizerConfig):
    """Common keys of optimizers with Adam's moments."""

    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="Decay rates of the averages of the gradient and the squared gradient."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the averaged squared gradient.")
    bias_correction: bool = Field(
        True, description="Correct the averages for their initial value of 0; BERT was trained without this correction."
    )


class MomentOptimizer(TorchOptimizer):
    """Maintain the averages of the gradient and the squared gradient, for all tensors of a group at once.

    State of a parameter: `step`, `exp_avg`, `exp_avg_sq`, as in torch.
    """

    def __init__(self, groups: list[ParameterGroup], config: MomentConfig) -> None:
        super().__init__(groups, {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": 0.0})

    @abstractmethod
    def update(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        averages: list[Tensor],
        squares: list[Tensor],
        steps: list[int],
    ) -> None:
        """Update one group in place; `averages` and `squares` do not include `gradients` yet."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state[parameter] for parameter in parameters]
            for parameter, state in zip(parameters, states, strict=True):
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(parameter)}
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
            if parameters:
                self.update(
                    group,
                    parameters,
                    [parameter.grad for parameter in parameters],
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    [state["step"] for state in states],
                )
        return loss


def average(
    group: dict[str, Any], gradients: list[Tensor], averages: list[Tensor], squares: list[Tensor]
) -> list[Tensor]:
    """Update both averages in place, and return the square roots of the averaged squares as new tensors."""
    beta1, beta2 = group["betas"]
    torch._foreach_lerp_(averages, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
    return list(torch._foreach_sqrt(squares))


class UncorrectedAdam(MomentOptimizer):
    """Adam without bias correction, which torch's fused kernels do not support.

    Args:
        groups: parameter groups with their `weight_decay`.
        config: learning rate, betas and eps.
        decoupled: whether weight decay is decoupled (AdamW) or added to the gradient (Adam).
    """

    def __init__(self, groups: list[ParameterGroup], config: MomentConfig, *, decoupled: bool) -> None:
        super().__init__(groups, config)
        self.decoupled = decoupled

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: list[Tensor],
        averages: list[Tensor],
        squares: list[Tensor],
        steps: list[int],
    ) -> None:
        """Update the parameters of one group."""
        lr, decay = group["lr"], group["weight_decay"]
        if decay and not self.decoupled:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        roots = average(group, gradients, averages, squares)
        torch._foreach_add_(roots, group["eps"])
        if decay and self.decoupled:
            torch._foreach_mul_(parameters, 1 - lr * decay)
        torch._foreach_addcdiv_(parameters, averages, roots, value=-lr)
