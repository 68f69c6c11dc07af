"""Adam."""

from __future__ import annotations

import torch

from kdcore.optimizers.base import Optimizer, ParameterGroup
from kdcore.optimizers.moments import MomentConfig, UncorrectedAdam


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015) with weight decay as an L2 penalty.

    The decay is added to the gradient and therefore averaged and normalised with it, as in `torch.optim.Adam` and in
    DeepSpeed's FusedAdam without `adam_w_mode`. Uses torch's fused kernel, or a foreach implementation if bias
    correction is disabled.
    """

    class Config(MomentConfig):
        """Adam's keys."""

    config: Config

    def build(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Build one optimizer for all groups."""
        config = self.config
        if not config.bias_correction:
            return UncorrectedAdam(groups, config, decoupled=False)
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
