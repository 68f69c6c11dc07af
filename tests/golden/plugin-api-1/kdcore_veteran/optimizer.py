"""The optimizer `veteran`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from kdcore import Optimizer, OptimizerConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class VeteranOptimizer(Optimizer):
    """Adamax (Kingma and Ba 2015): Adam with the largest gradient seen instead of the root of the mean square."""

    class Config(OptimizerConfig):
        """Keys of the section `optimizer`, beside `lr` and `weight_decay`."""

        betas: tuple[Beta, Beta] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)

    elementwise: ClassVar[bool] = True

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Adamax:
        """One `torch.optim.Adamax` over all groups, each of which has its own weight decay."""
        config = self.config
        return torch.optim.Adamax(groups, lr=config.lr, betas=config.betas, eps=config.eps)

    def forget(self, state: dict[str, Any]) -> None:
        """Let a parameter begin anew."""
        super().forget(state)
