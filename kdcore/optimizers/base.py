"""Define the interface of an optimizer."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from kdcore.deprecated import warn_deprecated
from kdcore.recipe.schema import ComponentConfig

ParameterRole = Literal["embedding", "matrix", "vector", "head", "loss"]
"""Role of a parameter: an embedding table of the student, a weight with two or more dimensions (`matrix`) or one
(`vector`) of its blocks, any parameter of its heads, or any learned parameter of a loss."""


@dataclass(frozen=True)
class NamedParameter:
    """A parameter that an optimizer updates.

    Attributes:
        name: its name in the trained module, such as `student.network.bert.encoder.layer.0.output.dense.weight` or
            `losses.hidden_mse.projections.0.weight`.
        role: its role; see `ParameterRole`.
        parameter: the tensor.
    """

    name: str
    role: ParameterRole
    parameter: Tensor


class ParameterGroup(dict[str, Any]):
    """A parameter group for torch's optimizers, with `params` and `weight_decay`, that also names its parameters.

    Attributes:
        parameters: the tensors under `params` in the same order, with names and roles.
    """

    def __init__(self, parameters: Sequence[NamedParameter], weight_decay: float) -> None:
        super().__init__(params=[one.parameter for one in parameters], weight_decay=weight_decay)
        self.parameters = tuple(parameters)


class OptimizerConfig(ComponentConfig):
    """Common keys of all optimizers."""

    lr: float = Field(1e-4, ge=0, description="Peak learning rate; the scheduler multiplies it by a factor.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay; not applied to biases and norm weights.")


class Optimizer(ABC):
    """Build a `torch.optim.Optimizer` from parameter groups. Subclasses are constructed as `Optimizer(config)`."""

    class Config(OptimizerConfig):
        """The keys of the recipe's `optimizer` section."""

    elementwise: ClassVar[bool] = True
    """Whether the update of each element depends on its own gradient only. ZeRO stages 1 and 2 flatten and split
    tensors, so an optimizer that needs whole tensors (a trust ratio, a factored second moment) is rejected there."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config

    @abstractmethod
    def build(self, groups: list[Any]) -> TorchOptimizer:
        """Build the optimizer.

        Args:
            groups: list of `ParameterGroup`, which every optimizer of torch accepts. Regardless of how the optimizer
                treats roles, it must preserve the order and the content of the groups, because they are part of the
                checkpoint format.
        """

    def reset_state(self, state: dict[str, Any]) -> None:
        """Reset the optimizer state of one parameter to its initial values, in place.

        The engine calls this while no active loss depends on the parameter. Tensors and numbers are set to 0; an
        optimizer with other initial values, such as a running product that starts at 1, must override this method.
        """
        for name, value in state.items():
            state[name] = value.zero_() if isinstance(value, Tensor) else type(value)(0)

    def forget(self, state: dict[str, Any]) -> None:
        """Call `reset_state` under its name in kdcore 0.1."""
        warn_deprecated("Optimizer.forget", "reset_state")
        # A class written for kdcore 0.1 overrides `forget`, and calls this method by `super()`.
        overridden = type(self).forget is not Optimizer.forget
        Optimizer.reset_state(self, state) if overridden else self.reset_state(state)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forget" in vars(cls) and "reset_state" not in vars(cls):
            warnings.warn("`Optimizer.forget` is deprecated: override `reset_state`", DeprecationWarning, stacklevel=2)
            cls.reset_state = cls.forget  # type: ignore[method-assign]
