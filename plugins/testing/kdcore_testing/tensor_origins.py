"""Follow which tensors others are computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorOrigins(TorchDispatchMode):
    """While active, record from which marked tensors each result is computed.

    Tensors that share memory, such as views, share their origins.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: dict[int, frozenset[str]] = {}
        self._kept: list[Tensor] = []  # so that memory, which identifies tensors, is not used again
        self._meetings: dict[tuple[str, str], set[str]] = {}

    def mark(self, tensor: Tensor, origin: str) -> None:
        """Name the origin of a tensor."""
        self._add(tensor, frozenset({origin}))

    def meetings(self, one: str, other: str) -> set[str]:
        """Return the operations on a tensor whose only origin is `one` and a tensor whose only origin is `other`."""
        return self._meetings.get((one, other), set())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and record the origins of its results."""
        result = func(*args, **(kwargs or {}))
        inputs = [self._of(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        single = {next(iter(origins)) for origins in inputs if len(origins) == 1}
        for one in single:
            for other in single - {one}:
                name = str(func).removeprefix("aten.").partition(".")[0]
                self._meetings.setdefault((one, other), set()).add(name)
        union = frozenset().union(*inputs)
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._add(one, union)
        return result

    def _of(self, tensor: Tensor) -> frozenset[str]:
        return self._origins.get(tensor.untyped_storage().data_ptr(), frozenset())

    def _add(self, tensor: Tensor, origins: frozenset[str]) -> None:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer and origins:
            self._kept.append(tensor)
            self._origins[pointer] = self._origins.get(pointer, frozenset()) | origins
