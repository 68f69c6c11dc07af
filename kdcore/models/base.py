"""The interface of a model: first described, then loaded for exactly what is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from kdcore.errors import InputError
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import Batch, ClassHead, ModelInfo, SignalRequest, Signals

Role = Literal["teacher", "student"]


class Encoder(ABC, nn.Module):
    """A live network that answers signal requests.

    Attributes:
        info: describes the whole model, whatever part of it is loaded.
        packs: whether padded batches are computed on their real tokens only. One that can sets it; answers must not
            depend on it.
    """

    info: ModelInfo
    packs: bool = False

    @abstractmethod
    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run only as much as `request` needs and answer it."""

    def compile_parts(self) -> None:
        """Have torch compile what it can make one graph of, whatever the numbers of sequences and tokens will be.

        Raises:
            InputError: this model cannot be compiled.
        """
        raise InputError("this model cannot be compiled", key="compile", hint="leave training.compile out")

    @abstractmethod
    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face folder (weights and configuration) that `AutoModel` loads with no missing key.

        Args:
            folder: an existing, empty folder.
            weights: a float32 tensor on the CPU for every name in `self.state_dict()`.
        """


class Model(ABC):
    """A model as a recipe names it. Constructing it reads descriptions only; weights are loaded when asked for.

    Subclasses are constructed as `Model(config, role, teacher)`; a student gets the recipe's teacher (or None), so that
    what its configuration does not say can be the teacher's.
    """

    class Config(ComponentConfig):
        """The keys of the recipe's `teacher` and `student` sections."""

    info: ModelInfo

    def __init__(self, config: ComponentConfig, role: Role, teacher: Model | None) -> None:
        self.config = config

    def set_classes(self, head: ClassHead) -> None:  # noqa: B027
        """Learn what a student's head on whole sequences is to predict; called before losses see `info`.

        A model that has such a head sets `info.num_classes` and `info.class_labels`. One that has none does nothing:
        losses that read classes then refuse it.

        Raises:
            InputError: the head does not fit the model's keys.
        """

    def load_export(self, folder: Path, request: SignalRequest) -> Encoder | None:
        """The student that was exported to `folder`, with what `request` needs; None if this model cannot read it."""
        return None

    @abstractmethod
    def load_teacher(self, request: SignalRequest) -> Encoder:
        """Load as many blocks as `request` needs, in float32, and a head only if it asks for what that predicts."""

    @abstractmethod
    def build_student(self, request: SignalRequest) -> Encoder:
        """Make the whole student in float32: sizes as configured, initialised as configured."""

    @property
    @abstractmethod
    def source(self) -> str | None:
        """Folder or hub name that weights come from; None when they are random."""

    def vocabulary(self) -> Mapping[str, int] | None:
        """Token to id, as the weights that the model starts from know them; None if they are random or it is unknown.

        A task compares it with its data: ids that mean other tokens would pass unnoticed.
        """
        return None
