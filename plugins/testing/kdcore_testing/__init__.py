"""Conformance checks for the tests of packages that add components to kdcore.

- `compute_loss`: compute the value of a loss on given arrays, to compare with an independent computation.
- `check_loss`: check the requirements on every loss (see its docstring for the list).
- `check_model`, `check_task`, `check_optimizer`, `check_scheduler`, `check_corpus`, `check_transform`: the same for the
  other kinds.
"""

from kdcore_testing.corpus_checks import check_corpus
from kdcore_testing.loss_checks import check_loss, compute_loss
from kdcore_testing.model_checks import check_model
from kdcore_testing.optimization_checks import check_optimizer, check_scheduler
from kdcore_testing.task_checks import check_task
from kdcore_testing.transform_checks import check_transform

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
