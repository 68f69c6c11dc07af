"""The interface of an optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from kdcore.recipe.schema import ComponentConfig


class OptimizerConfig(ComponentConfig):
    """Keys that every optimizer has."""

    lr: float = Field(1e-4, ge=0, description="Peak learning rate; the scheduler multiplies it.")
    weight_decay: float = Field(0.01, ge=0, description="Decay of weights; never of biases and norm weights.")


class Optimizer(ABC):
    """Builds a `torch.optim.Optimizer` from parameter groups. Subclasses are constructed as `Optimizer(config)`."""

    class Config(OptimizerConfig):
        """The keys of the recipe's `optimizer` section."""

    elementwise: ClassVar[bool] = True
    """Whether each element is updated from its own gradient alone. ZeRO stages 1 and 2 flatten and split tensors, so an
    optimizer that needs whole tensors (a trust ratio, a factored second moment) is refused there."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        """Make the optimizer for `groups`, whose `weight_decay` is already set per group."""

    def forget(self, state: dict[str, Any]) -> None:
        """Put what the optimizer remembers of one parameter back to its beginning, in place.

        The engine does this while no active loss reaches the parameter. Tensors and numbers become 0; an optimizer
        whose state begins in another way (a running product at 1) has to override this.
        """
        for name, value in state.items():
            state[name] = value.zero_() if isinstance(value, Tensor) else type(value)(0)
