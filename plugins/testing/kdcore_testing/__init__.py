"""Conformance checks for the tests of packages that add components to kdcore.

- `compute_loss`: compute the value of a loss on given arrays, to compare with an independent computation.
- `check_loss`: check the requirements on every loss (see its docstring for the list).
- `check_model`, `check_task`, `check_optimizer`, `check_scheduler`, `check_corpus`, `check_transform`,
  `check_tracker`, `check_command`: the same for the other kinds.

`__init__.pyi` lists the public names with the modules that define them; each is imported at its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
