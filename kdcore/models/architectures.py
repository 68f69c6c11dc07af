"""What differs between the Hugging Face encoders that kdcore knows: where blocks, norms and heads sit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdcore.errors import DataError


@dataclass(frozen=True)
class Architecture:
    """One `model_type` of transformers.

    Attributes:
        model_type: the name in `config.json`.
        blocks: dotted path of the list of blocks inside the base model.
        lm_head: applies the masked-LM head of a `...ForMaskedLM` network to rows (n, d), giving (n, V).
        lm_head_modules: names of the modules of that network that make up the head.
        pooler: whether `AutoModel` carries a pooler after the last block.
    """

    model_type: str
    blocks: str
    lm_head: Callable[[Any, Tensor], Tensor]
    lm_head_modules: tuple[str, ...]
    pooler: bool

    def block_list(self, base: nn.Module) -> nn.ModuleList:
        """The list of blocks of a base model."""
        blocks = base.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture(
            "bert",
            blocks="encoder.layer",
            lm_head=lambda network, rows: network.cls(rows),
            lm_head_modules=("cls",),
            pooler=True,
        ),
    )
}


def architecture_of(model_type: str, where: str) -> Architecture:
    """The architecture of a model type.

    Raises:
        DataError: kdcore's adapter does not know it.
    """
    if model_type not in ARCHITECTURES:
        raise DataError(
            f"the model type `{model_type}` is not supported by the model `transformers`",
            where=where,
            allowed=sorted(ARCHITECTURES),
            hint="a package can add one: a class derived from kdcore.Model, registered in the group `kdcore.models`",
        )
    return ARCHITECTURES[model_type]
