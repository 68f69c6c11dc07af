"""Adafactor."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from kdcore.optimizers.base import Optimizer, OptimizerConfig


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018): of the squared gradients of a matrix only row and column averages are kept.

    transformers' implementation, which is fairseq's. The learning rate is the recipe's, as for every optimizer: the
    paper's own relative step sizes, which are another schedule, are off. `torch.optim.Adafactor` cannot do without
    them, nor without scaling by the weights. There is no momentum, as in the paper's main variant; averages of step t
    decay by 1 - t ** -0.8; weight decay, of which the paper has none, is decoupled.
    """

    class Config(OptimizerConfig):
        """Adafactor's keys."""

        clip_threshold: float = Field(
            1.0, gt=0, description="Largest root mean square of a tensor's update before the learning rate."
        )
        scale_parameter: bool = Field(
            False,
            description="Whether updates are scaled by the root mean square of the tensor they move, as in the paper.",
        )

    elementwise: ClassVar[bool] = False

    config: Config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """One `transformers.optimization.Adafactor` over all groups."""
        from transformers.optimization import Adafactor as TransformersAdafactor

        config = self.config
        optimizer: torch.optim.Optimizer = TransformersAdafactor(
            groups,
            lr=config.lr,
            clip_threshold=config.clip_threshold,
            scale_parameter=config.scale_parameter,
            relative_step=False,
        )
        return optimizer
