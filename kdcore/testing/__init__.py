"""Conformance checks for the tests of plugins; kdcore's plugins use them as well.

- `compute_loss`: compute the value of a loss on given arrays, to compare with an independent computation.
- `check_loss`: check the requirements on every loss (see its docstring for the list).
- `check_model`, `check_task`, `check_optimizer`, `check_scheduler`, `check_corpus`, `check_transform`: the same for the
  other kinds.
"""

from kdcore.testing.components import check_optimizer, check_scheduler
from kdcore.testing.data import check_corpus, check_task
from kdcore.testing.losses import check_loss, compute_loss
from kdcore.testing.models import check_model
from kdcore.testing.transforms import check_transform

__all__ = [
    "check_corpus",
    "check_loss",
    "check_model",
    "check_optimizer",
    "check_scheduler",
    "check_task",
    "check_transform",
    "compute_loss",
]
