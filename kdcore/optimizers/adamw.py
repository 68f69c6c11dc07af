"""AdamW."""

from __future__ import annotations

import torch

from kdcore.optimizers.base import Optimizer, ParameterGroup
from kdcore.optimizers.moments import MomentConfig, UncorrectedAdam


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Uses torch's fused kernel, or a foreach implementation if bias correction is disabled. BERT was trained without bias
    correction (Devlin et al. 2019).
    """

    class Config(MomentConfig):
        """AdamW's keys."""

    config: Config

    def build(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Build one optimizer for all groups."""
        config = self.config
        if not config.bias_correction:
            return UncorrectedAdam(groups, config, decoupled=True)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
