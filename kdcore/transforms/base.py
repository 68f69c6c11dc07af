"""Define the interface of a transform (registry `kdcore.transforms`), which changes the student between two stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from kdcore.models.base import Encoder
from kdcore.recipe.schema import ComponentConfig, Share
from kdcore.signals import ModelInfo


class TransformConfig(ComponentConfig):
    """Keys common to all entries of `stages`; the `Config` of a transform adds further keys."""

    at: Share = Field(description="Fraction of the budget after which the stage begins.")


@dataclass(frozen=True)
class ParameterSource:
    """The old parameter from which a parameter of the changed student inherits its optimizer state.

    Attributes:
        name: name of the parameter in the student before the change.
        select: function that maps a tensor of the old parameter's shape to the new parameter's shape, for example by
            slicing; None if the shape does not change. It is applied to every optimizer state that has the parameter's
            shape (Adam's two moments).
    """

    name: str
    select: Callable[[Tensor], Tensor] | None = None


class Transform(ABC):
    """Change the student at the beginning of a stage. Subclasses are constructed as `Transform(config)`.

    A resumed run rebuilds the structure of a stage from the recipe and then loads weights into it. The structure
    (modules, parameter names and shapes) that `apply` produces may therefore depend only on the configuration, the
    previous structure and the generator. Only the values of weights may depend on the previous weights.
    """

    class Config(TransformConfig):
        """The keys of this transform's entry in `stages`."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config

    @abstractmethod
    def describe(self, student: ModelInfo) -> ModelInfo:
        """Describe the changed student. Called for every stage before training starts.

        The number of blocks, the hidden size and the number of attention heads may change. The vocabulary, the maximum
        length and the model's `heads` may not.

        Raises:
            InputError: the transform does not support this student.
        """

    @abstractmethod
    def apply(self, student: Encoder, generator: torch.Generator) -> tuple[Encoder, Mapping[str, ParameterSource]]:
        """Change the student in place, or construct a new one.

        Args:
            student: the student in float32 on the CPU, with the trained weights.
            generator: the only source of randomness; identical on every process and after every restart.

        Returns:
            The changed student, whose `info` is the result of `describe`, and the sources of its parameters by their
            new names. A parameter that is still the same `Parameter` object needs no entry. All other parameters
            without an entry keep their current values and start without optimizer state.
        """
