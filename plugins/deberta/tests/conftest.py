"""Small DeBERTas of every form, with a tokenizer and texts."""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The models are so small that more threads only wait for each other; torch reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHARACTERS = string.ascii_lowercase
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *CHARACTERS,
    *(f"##{one}" for one in CHARACTERS),
    "a1",
    "a2",
    "a3",
]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
}
FORMS: dict[str, dict[str, Any]] = {
    "v3": {
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "legacy": False,
    },
    "v2-xlarge": {
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "own-projections": {"type_vocab_size": 2, "max_relative_positions": 12},
    "c2p-only": {"pos_att_type": "c2p", "share_att_key": True},
    "p2c-only": {"pos_att_type": ["p2c"]},
    "unknown-term": {"pos_att_type": ["c2p", "p2c", "p2p"]},
    "absolute": {"relative_attention": False, "pos_att_type": None},
}


@pytest.fixture(scope="session")
def deberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a DeBERTa of 4 blocks with random weights, its head and its tokenizer: `deberta_folder(form, head)`."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertTokenizer, DebertaV2Config

    heads = {"masked_lm": AutoModelForMaskedLM, "classes": AutoModelForSequenceClassification}
    made: dict[tuple[str, str], Path] = {}

    def save(form: str = "v3", head: str = "masked_lm") -> Path:
        if (form, head) not in made:
            folder = made[form, head] = tmp_path_factory.mktemp(form)
            labels = {"id2label": {0: "con", 1: "neutral", 2: "pro"}} if head == "classes" else {}
            network = heads[head].from_config(DebertaV2Config(**SIZES | FORMS[form], **labels))
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3, generator=generator)
            network.save_pretrained(folder)
            BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
        return made[form, head]

    return save
