"""Define the interface of a model: describe it first, then load only the parts that are requested."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from kdcore.deprecated import warn_deprecated
from kdcore.errors import InputError
from kdcore.recipe.schema import ComponentConfig
from kdcore.signals import SEQUENCE_CLASSES, Batch, Head, ModelInfo, SignalRequest, Signals
from kdcore.utils.model_files import model_file_hashes

if TYPE_CHECKING:
    from kdcore.tasks.base import Split, Task

Role = Literal["teacher", "student"]


class Encoder(ABC, nn.Module):
    """A loaded network that computes requested signals.

    Attributes:
        info: description of the whole model, even if only a part of it is loaded.
        packs: whether the network processes only the real tokens of a padded batch. Encoders that support this set it
            to true. The signals must not depend on it.
        keeps_precision: whether a teacher stays in the precision in which it was loaded, instead of being cast to the
            training precision.
    """

    info: ModelInfo
    packs: bool = False
    keeps_precision: bool = False

    @property
    def unexported_heads(self) -> tuple[str, ...]:
        """Return the names of trained heads that `export` leaves out."""
        return ()

    @abstractmethod
    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Compute the requested signals; run only the blocks and heads that they need."""

    def prefetch(self, batch: Batch) -> None:
        """Start reading the data of a teacher's signals for a training batch, in a background thread.

        Args:
            batch: the teacher's view of the batch in host memory; `forward` receives it in the next step.
        """

    def compile_parts(self) -> None:
        """Compile the parts that form a single graph, with dynamic numbers of sequences and tokens.

        Raises:
            InputError: this model does not support compilation.
        """
        raise InputError("this model does not support compilation", key="compile", hint="remove training.compile")

    def checkpoint_gradients(self) -> None:
        """Keep only the inputs of blocks in training, and recompute the rest in the backward pass.

        Signals and gradients must not change. `keep_blocks` preserves this setting.

        Raises:
            InputError: this model does not support it.
        """
        raise InputError(
            "this model does not support gradient checkpointing",
            key="gradient_checkpointing",
            hint="remove training.gradient_checkpointing",
        )

    def keep_blocks(self, blocks: Sequence[int]) -> None:
        """Drop all blocks except the given ones; used by transforms that make a student shallower.

        Args:
            blocks: 0-based blocks to keep, at least one, in increasing order.

        Raises:
            InputError: this model requires a block that is not kept.
        """
        raise InputError("this model cannot drop blocks", hint="use another model as student")

    def head_parameters(self) -> Collection[str]:
        """Return the names of the parameters of heads, which optimizers may treat differently from blocks."""
        return ()

    @abstractmethod
    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a Hugging Face folder (weights and configuration) that `AutoModel` loads without missing keys.

        Args:
            folder: an existing, empty folder.
            weights: a float32 tensor on the CPU for every name in `self.state_dict()`.
        """


class Model(ABC):
    """A model in a recipe. The constructor reads descriptions only; other methods load weights.

    Subclasses are constructed as `Model(config, role, teacher)`; a student receives the recipe's teacher (or None) and
    can take missing settings from it.
    """

    class Config(ComponentConfig):
        """The keys of the recipe's `teacher` and `student` sections."""

    info: ModelInfo

    def __init__(self, config: ComponentConfig, role: Role, teacher: Model | None) -> None:
        self.config = config

    def set_heads(self, heads: Sequence[Head]) -> None:
        """Set the heads that the task trains a student for; called before losses read `info`.

        A model adds the heads that it supports to `info.heads`; losses that read other heads then raise an error. The
        first head is the task's own, whose weights and labels an export must contain.

        Raises:
            InputError: a head is incompatible with the model's settings.
        """
        for head in heads:
            if head.name == SEQUENCE_CLASSES and type(self).set_classes is not Model.set_classes:
                self.set_classes(head)  # a model that was written for kdcore 0.1

    def set_classes(self, head: Head) -> None:
        """Deprecated: use `set_heads`."""
        warn_deprecated("Model.set_classes", "Model.set_heads")
        self.set_heads((head,))

    @property
    def described(self) -> Model:
        """Return the model whose configuration a student copies: this model, or the one that it wraps."""
        return self

    def check_task(self, task: Task, requests: Mapping[Split, SignalRequest]) -> None:  # noqa: B027 - most models compute
        """Reject a task if a teacher has no signals for its samples; called before weights are loaded.

        A teacher that looks signals up finds the samples of a batch by `Batch.split`, `samples` and `epochs`, and
        compares `Task.batch_identity` with the identity of its stored data.

        Args:
            task: the task.
            requests: the signals that are read in batches of the splits `train` and `held_out`.

        Raises:
            InputError: the task does not match; the message names the difference.
        """

    def save_description(self, folder: Path) -> None:
        """Write a teacher's configuration and tokenizer to a folder.

        If used as `path`, the folder describes the teacher without its weights.

        Raises:
            InputError: this model cannot be described without its weights.
        """
        raise InputError("this model cannot be described without its weights")

    def file_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file that a teacher's signals depend on, by name; resumed runs compare them."""
        return {} if self.source is None else model_file_hashes(self.source)

    def find_heads(self, heads: Sequence[Head]) -> None:  # noqa: B027
        """Extend a teacher's `info.heads` with the task's heads that have a module in its folder."""

    def load_export(self, folder: Path, request: SignalRequest) -> Encoder | None:
        """Load a student exported to `folder`, with the parts that `request` needs; None if this is not supported."""
        return None

    @abstractmethod
    def load_teacher(self, request: SignalRequest) -> Encoder:
        """Load the blocks and heads that `request` needs, in float32.

        The encoder may look up its signals instead of computing them, because the batches passed to its `forward`
        include split, samples and epochs.
        """

    @abstractmethod
    def build_student(self, request: SignalRequest) -> Encoder:
        """Build the whole student in float32, with the configured sizes and initialisation."""

    @property
    @abstractmethod
    def source(self) -> str | None:
        """Return the folder or hub name of the weights; None if they are random."""

    def vocabulary(self) -> Mapping[str, int] | None:
        """Return the token-to-id map of the initial weights; None if they are random or the vocabulary is unknown.

        A task compares it with the data's vocabulary, because mismatched ids would otherwise go unnoticed.
        """
        return None

    def tokenizer(self) -> Any | None:
        """Return the fast tokenizer saved with the initial weights; None if there is none or the weights are random.

        A task checks that it tokenises text like the data's tokenizer: the vocabulary alone does not show whether text
        is lowercased.
        """
        return None
