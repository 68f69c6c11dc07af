"""Describe the supported Hugging Face encoders: where blocks, embeddings and heads are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from kdcore.errors import DataError
from kdcore.models.attention import IMPLEMENTATION
from kdcore.models.heads import head_outputs
from kdcore.models.mpnet import use_fused_attention


def _no_offset(config: Any) -> int:
    return 0


def padding_offset(config: Any) -> int:
    """Return the number of rows of the position table up to and including the padding token's row, as in RoBERTa."""
    return int(config.pad_token_id) + 1


def _nothing_to_adapt(base: nn.Module) -> None:
    pass


def _never(config: Any) -> bool:
    return False


def _classify_by_pooler(network: Any, pooler: nn.Module | None, states: Tensor) -> Tensor:
    assert pooler is not None
    logits: Tensor = network.classifier(network.dropout(pooler(states[:, None])))
    return logits


def _classify(network: Any, pooler: nn.Module | None, states: Tensor) -> Tensor:
    logits: Tensor = network.classifier(states[:, None])  # a separate module, which takes the first token
    return logits


def _classify_distilbert(network: Any, pooler: nn.Module | None, states: Tensor) -> Tensor:
    logits: Tensor = network.classifier(network.dropout(torch.relu(network.pre_classifier(states))))
    return logits


def _classify_modernbert(network: Any, pooler: nn.Module | None, states: Tensor) -> Tensor:
    logits: Tensor = network.classifier(network.drop(network.head(states)))
    return logits


def _save(network: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    network.save_pretrained(folder, state_dict=weights)


@dataclass(frozen=True)
class Architecture:
    """A `model_type` of transformers and the location of its parts.

    The type must be registered with transformers' Auto classes. A package that adds a type registers it with
    `AutoConfig`, `AutoModel`, `AutoModelForMaskedLM`, and with `AutoModelForSequenceClassification` if it has a
    `class_head`. Attention must be called through transformers' `AttentionInterface`, where query, key, value and mask
    are captured.

    Attributes:
        model_type: the name in `config.json`.
        blocks: dotted path of the list of blocks inside the base model. The base model's forward pass must iterate over
            it.
        lm_head: function that applies the masked-LM head of a `...ForMaskedLM` network: rows (n, d) -> (n, V).
        lm_head_classes: transformers classes whose checkpoints contain trained weights of that head.
        embeddings: modules of the base model that compute the embeddings; the last one present returns their output.
        intermediate_size: configuration key of the feed-forward width.
        position_offset: function that returns the number of unused rows at the start of the position table for a
            configuration. The last unused row, if any, belongs to the padding token, whose id is the row's number.
        first_block_differs: whether the first block lacks weights that the others have.
        adapt: function that replaces the attention of a new or loaded base model, if it cannot be selected by name.
        relatives: other model types with the same weights under the same names. Each is mapped to the configuration
            keys and values that make this architecture compute the same results. Folders of these types are read as
            this type.
        use: configuration keys, besides the number of heads and tied weights, that change how weights are used without
            changing their shapes; blocks are copied only if these keys are equal in source and student.
        equal: configuration keys of a student that default to the value of another key.
        after_first_block: path of a module of the base model that is applied to the output of the first block. The
            module's output is used as that block's hidden states. The module may be None.
        attention: name of the attention function that the network uses.
        described: False for transformers encoders of unknown structure; only their outputs are read.
        save: function that writes the configuration and weights of a network to a folder.
        class_head: function that applies the head of a `...ForSequenceClassification` network to one state per sequence
            (B, d) and returns (B, C); it also receives the base model's pooler, which is stored separately. None if the
            architecture is not used with a head of this kind.
        class_head_pools: whether the pooler is a part of the classification head.
        packs: whether the base model supports packing the real tokens of all sequences in a single row: it accepts
            `position_ids`, computes everything but attention per token, and uses the masks of transformers'
            `masking_utils`. If False, it receives padded batches.
        class_mean: function that returns whether, for a configuration, the classification head uses the mean over a
            sequence's tokens instead of the first token.
    """

    model_type: str
    blocks: str
    lm_head: Callable[[Any, Tensor], Tensor]
    lm_head_classes: tuple[str, ...]
    embeddings: tuple[str, ...] = ("embeddings",)
    intermediate_size: str = "intermediate_size"
    position_offset: Callable[[Any], int] = _no_offset
    first_block_differs: bool = False
    adapt: Callable[[nn.Module], None] = _nothing_to_adapt
    relatives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    use: tuple[str, ...] = ()
    equal: Mapping[str, str] = field(default_factory=dict)
    after_first_block: str | None = None
    attention: str = IMPLEMENTATION
    described: bool = True
    save: Callable[[Any, Path, Mapping[str, Tensor]], None] = _save
    class_head: Callable[[Any, nn.Module | None, Tensor], Tensor] | None = None
    class_head_pools: bool = False
    class_mean: Callable[[Any], bool] = _never
    packs: bool = False

    @property
    def needs_padding_id(self) -> bool:
        """Return whether positions depend on the pad_token_id."""
        return self.position_offset is not _no_offset

    def block_list(self, base: nn.Module) -> nn.ModuleList:
        """Return the list of blocks of a base model."""
        blocks = base.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def embedding_output(self, base: nn.Module) -> nn.Module:
        """Return the module whose output is the input of the first block."""
        present = [getattr(base, name) for name in self.embeddings if hasattr(base, name)]
        module = present[-1]
        assert isinstance(module, nn.Module)
        return module


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture(
            "bert",
            blocks="encoder.layer",
            lm_head=lambda network, rows: network.cls(rows),
            lm_head_classes=("BertForMaskedLM", "BertForPreTraining"),
            packs=True,
            class_head=_classify_by_pooler,
            class_head_pools=True,
        ),
        Architecture(
            "distilbert",
            blocks="transformer.layer",
            lm_head=lambda network, rows: network.vocab_projector(
                network.vocab_layer_norm(network.activation(network.vocab_transform(rows)))
            ),
            lm_head_classes=("DistilBertForMaskedLM",),
            packs=True,
            intermediate_size="hidden_dim",
            class_head=_classify_distilbert,
        ),
        Architecture(
            "electra",
            blocks="encoder.layer",
            lm_head=lambda network, rows: network.generator_lm_head(network.generator_predictions(rows)),
            lm_head_classes=("ElectraForMaskedLM",),  # ElectraForPreTraining is the discriminator
            packs=True,
            embeddings=("embeddings", "embeddings_project"),
            class_head=_classify,
        ),
        Architecture(
            "modernbert",
            blocks="layers",
            lm_head=lambda network, rows: network.decoder(network.head(rows)),
            lm_head_classes=("ModernBertForMaskedLM",),
            packs=True,
            first_block_differs=True,  # the embeddings end with the norm that other blocks start with
            class_head=_classify_modernbert,
            class_mean=lambda config: config.classifier_pooling == "mean",
        ),
        Architecture(
            "mpnet",
            blocks="encoder.layer",
            lm_head=lambda network, rows: network.lm_head(rows),
            lm_head_classes=("MPNetForMaskedLM",),
            packs=True,
            position_offset=lambda config: 2,  # its padding id is always 1, independent of the configuration
            adapt=use_fused_attention,
            class_head=_classify,
        ),
        Architecture(
            "roberta",
            blocks="encoder.layer",
            lm_head=lambda network, rows: network.lm_head(rows),
            lm_head_classes=("RobertaForMaskedLM",),
            packs=True,
            position_offset=padding_offset,
            class_head=_classify,
        ),
    )
}
"""Supported encoders by model type."""

_RENAMED = {
    "camembert": ("roberta", ("CamembertForMaskedLM",)),
    "data2vec-text": ("roberta", ("Data2VecTextForMaskedLM",)),
    "ernie": ("bert", ("ErnieForMaskedLM", "ErnieForPreTraining")),
    "roberta-prelayernorm": ("roberta", ("RobertaPreLayerNormForMaskedLM",)),
    "xlm-roberta": ("roberta", ("XLMRobertaForMaskedLM",)),
    "xlm-roberta-xl": ("roberta", ("XLMRobertaXLForMaskedLM",)),
}
"""Model types with the same layout as another architecture, with their masked-LM classes."""

ARCHITECTURES |= {
    model_type: replace(ARCHITECTURES[like], model_type=model_type, lm_head_classes=classes)
    for model_type, (like, classes) in _RENAMED.items()
}


def architecture_of(model_type: str, where: str, architectures: Mapping[str, Architecture]) -> Architecture:
    """Look up the architecture of a model type; the model `transformers` also supports types without a description.

    Raises:
        DataError: the model type is not supported.
    """
    if model_type in architectures:
        return architectures[model_type]
    if architectures is ARCHITECTURES and model_type in MODEL_MAPPING_NAMES:
        return _undescribed(model_type)
    whose = "the model `transformers`" if architectures is ARCHITECTURES else "this model"
    raise DataError(
        f"the model type `{model_type}` is not supported by {whose}",
        where=where,
        allowed=sorted(architectures),
        hint="a package can add support with a subclass of kdcore.Model, registered in the group `kdcore.models`",
    )


def _undescribed(model_type: str) -> Architecture:
    """Describe an encoder of transformers by its Auto classes only."""
    predicting = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(model_type)
    return Architecture(
        model_type,
        blocks="",
        lm_head=lambda network, rows: head_outputs(network, rows[None], None)[0],
        lm_head_classes=() if predicting is None else (str(predicting),),
        class_head_pools=True,
        attention="eager",
        described=False,
    )
