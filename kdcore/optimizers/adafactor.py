"""Adafactor."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from kdcore.optimizers.base import Optimizer, OptimizerConfig, ParameterGroup


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018), which stores only row and column averages of a matrix's squared gradients.

    Uses the implementation of transformers (from fairseq). The learning rate comes from the recipe, as for every
    optimizer. The paper's relative step sizes are disabled, because they would act as a second schedule.
    `torch.optim.Adafactor` is not used, because it cannot disable relative step sizes and scaling by the weights. There
    is no momentum, as in the paper's main variant; at step t, the averages decay by a factor of 1 - t ** -0.8. Weight
    decay, which is not part of the paper, is decoupled.
    """

    class Config(OptimizerConfig):
        """Adafactor's keys."""

        clip_threshold: float = Field(
            1.0, gt=0, description="Maximum root mean square of a tensor's update before the learning rate is applied."
        )
        scale_parameter: bool = Field(
            False,
            description="Scale updates by the root mean square of the updated tensor, as in the paper.",
        )

    elementwise: ClassVar[bool] = False

    config: Config

    def build(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Build one `transformers.optimization.Adafactor` for all groups."""
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
