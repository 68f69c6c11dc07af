"""Checks that plugin authors call from their own tests; kdcore's plugins call the same ones.

- `compute_loss`: the value of an objective on given arrays, to compare with an independent computation.
- `check_loss`: what must hold for every objective (see its docstring for the list).
- `check_optimizer`, `check_scheduler`: the same for optimizers and schedules.
"""

from kdcore.testing.components import check_optimizer, check_scheduler
from kdcore.testing.losses import check_loss, compute_loss

__all__ = ["check_loss", "check_optimizer", "check_scheduler", "compute_loss"]
