"""Define the model `deberta`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdcore import Architecture, TransformersModel
from kdcore_deberta.disentangled import use_fused_attention

USE = (
    "relative_attention",
    "pos_att_type",
    "position_buckets",
    "max_relative_positions",
    "share_att_key",
    "norm_rel_ebd",
    "position_biased_input",
    "conv_kernel_size",
    "conv_groups",
    "conv_act",
    "legacy",
)
"""Keys of the configuration that change how weights are used."""


def predict(network: Any, rows: Tensor) -> Tensor:
    """Compute predictions over the vocabulary (n, V) from last hidden states (n, d).

    `legacy: false` is the head that DeBERTa was pre-trained with; `legacy: true` is the head of transformers.
    """
    if network.legacy:
        logits: Tensor = network.cls(rows)
    else:
        logits = network.lm_predictions(rows, network.deberta.embeddings.word_embeddings)
    return logits


def classify(network: Any, pooler: nn.Module | None, states: Tensor) -> Tensor:
    """Compute class logits (B, C) from the states (B, d) of first tokens; the pooler is part of the head."""
    logits: Tensor = network.classifier(network.dropout(network.pooler(states[:, None])))
    return logits


class Deberta(TransformersModel):
    """DeBERTa-v2 and DeBERTa-v3 (He et al., ICLR 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention").

    `config` has the keys of transformers' `deberta-v2`. Losses on attention read the projections of contents as query,
    key and value, and the scores between contents and relative positions as a bias. Batches are padded.
    """

    architectures = {  # noqa: RUF012
        "deberta-v2": Architecture(
            "deberta-v2",
            blocks="encoder.layer",
            lm_head=predict,
            lm_head_classes=("DebertaV2ForMaskedLM",),
            adapt=use_fused_attention,
            use=USE,
            equal={"pooler_hidden_size": "hidden_size"},
            after_first_block="encoder.conv",
            class_head=classify,
            class_head_pools=True,
        )
    }
