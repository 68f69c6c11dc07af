"""Define the model `budget_bert`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from kdcore import Architecture, TransformersModel
from kdcore_budget_bert.modeling_budget_bert import (
    BudgetBertConfig,
    BudgetBertForMaskedLM,
    BudgetBertForSequenceClassification,
    BudgetBertModel,
)

PLAIN = {"norm_position": "post", "norm": "layer_norm", "embedding_norm": True}
"""The configuration with which the encoder is equivalent to BERT."""

PLAIN_CLASSES = {
    BudgetBertModel: BertModel,
    BudgetBertForMaskedLM: BertForMaskedLM,
    BudgetBertForSequenceClassification: BertForSequenceClassification,
}


def save(network: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Save a plain BERT if the network is equivalent to one; otherwise, include the modelling file in the folder."""
    config = network.config
    if all(getattr(config, key) == value for key, value in PLAIN.items()):
        own = {*PLAIN, "model_type", "architectures", "auto_map"}
        stated = {key: value for key, value in config.to_dict().items() if key not in own}
        with torch.device("meta"):
            network = PLAIN_CLASSES[type(network)](BertConfig.from_dict(stated))
    network.save_pretrained(folder, state_dict=weights)


def classify(network: Any, pooler: Callable[[Tensor], Tensor] | None, states: Tensor) -> Tensor:
    """Compute class logits (B, C) from the states (B, d) of first tokens."""
    assert pooler is not None, "the head pools"
    logits: Tensor = network.classifier(network.dropout(pooler(states[:, None])))
    return logits


class BudgetBert(TransformersModel):
    """academic-budget-bert's encoder (Izsak et al., EMNLP 2021, "How to Train BERT with an Academic Budget").

    A BERT with norms before the attention and feed-forward layers (`norm_position: pre`) or after them (`post`), with
    `norm: layer_norm` or `rms_norm`, and with or without a norm of the embeddings (`embedding_norm`). All other keys of
    `config` are the same as for BERT. With `pre`, the last block's hidden state is taken after the final norm. The form
    `post`, `layer_norm`, `embedding_norm: true` is BERT itself: it is loaded from BERT folders and exported as BERT.
    """

    architectures = {  # noqa: RUF012
        BudgetBertConfig.model_type: Architecture(
            BudgetBertConfig.model_type,
            blocks="encoder.layer",
            lm_head=lambda network, rows: network.cls(rows),
            lm_head_classes=("BudgetBertForMaskedLM", "BertForMaskedLM", "BertForPreTraining"),
            relatives={"bert": PLAIN},
            use=tuple(PLAIN),
            packs=True,
            save=save,
            class_head=classify,
            class_head_pools=True,
        )
    }
