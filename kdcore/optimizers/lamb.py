"""LAMB."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcore.optimizers.base import Optimizer, ParameterGroup
from kdcore.optimizers.moments import MomentConfig, MomentOptimizer, average


class LambOptimizer(MomentOptimizer):
    """The update of LAMB (You et al. 2020, algorithm 2), on any device.

    With Adam's direction r, optionally corrected for bias, a tensor x moves by
    -lr * clamp(|x| / |r + weight_decay * x|, min_coeff, max_coeff) * (r + weight_decay * x).
    The ratio is 1 where either norm is 0.
    """

    def __init__(self, groups: list[ParameterGroup], config: Lamb.Config) -> None:
        super().__init__(groups, config)
        self.bias_correction = config.bias_correction
        self.min_coeff, self.max_coeff = config.min_coeff, config.max_coeff

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
        beta1, beta2 = group["betas"]
        roots = average(group, gradients, averages, squares)
        if self.bias_correction:
            torch._foreach_div_(roots, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        directions = list(torch._foreach_div(averages, roots))
        if self.bias_correction:
            torch._foreach_div_(directions, [1 - beta1**step for step in steps])
        if group["weight_decay"]:
            torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
        sizes, lengths = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(directions))
        ratios = (sizes / lengths).clamp(self.min_coeff, self.max_coeff)
        ratios = torch.where((sizes > 0) & (lengths > 0), ratios, 1.0)
        torch._foreach_mul_(directions, list(ratios.unbind()))  # no synchronization with the device
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])


class Lamb(Optimizer):
    """LAMB, Adam with updates scaled to the norm of the updated tensor, for very large batches (You et al. 2020).

    `max_coeff` and `min_coeff` clamp the ratio of the two norms as in DeepSpeed's FusedLamb, which requires a GPU and
    is not used here. Without bias correction, both compute the same update. With bias correction, FusedLamb scales only
    the learning rate, while the paper and this class correct the direction before adding weight decay and computing the
    norm.
    """

    class Config(MomentConfig):
        """LAMB's keys."""

        eps: float = Field(1e-6, gt=0, description="Added to the root of the averaged squared gradient.")
        max_coeff: float = Field(10.0, gt=0, description="Maximum ratio of a tensor's norm to its update's norm.")
        min_coeff: float = Field(0.01, ge=0, description="Minimum of this ratio.")

        @model_validator(mode="after")
        def _bounds_fit(self) -> Lamb.Config:
            if self.min_coeff > self.max_coeff:
                raise ValueError(f"`min_coeff` ({self.min_coeff:g}) exceeds `max_coeff` ({self.max_coeff:g})")
            return self

    elementwise: ClassVar[bool] = False

    config: Config

    def build(self, groups: list[ParameterGroup]) -> LambOptimizer:
        """Build one optimizer for all groups."""
        return LambOptimizer(groups, self.config)
