"""AdamW."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from kdcore.optimizers.base import Optimizer, OptimizerConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), torch's fused kernel."""

    class Config(OptimizerConfig):
        """AdamW's keys."""

        betas: tuple[Beta, Beta] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)

    config: Config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        """One `torch.optim.AdamW` over all groups."""
        return torch.optim.AdamW(groups, lr=self.config.lr, betas=self.config.betas, eps=self.config.eps, fused=True)
