"""Small random encoders of every architecture, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
OWN_KEYS: dict[str, dict[str, Any]] = {
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 20},
    "modernbert": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "local_attention": 6,
    },
    "ernie": {"use_task_id": True},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """Make the configuration of a small encoder: `tiny_config(model_type, **changes)`."""

    def make(model_type: str, **changes: Any) -> Any:
        from transformers import AutoConfig

        keys = SIZES | OWN_KEYS.get(model_type, {}) | changes
        if model_type == "distilbert":
            keys.pop("intermediate_size")
        return AutoConfig.for_model(model_type, **keys)

    return make


@pytest.fixture(scope="session")
def saved_model(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a small encoder with random weights, also of norms: `saved_model(model_type, head, **changes)`."""
    made: dict[str, Path] = {}

    def save(model_type: str, head: bool = True, **changes: Any) -> Path:
        from transformers import AutoModel, AutoModelForMaskedLM

        key = repr((model_type, head, sorted(changes.items())))
        if key not in made:
            config = tiny_config(model_type, **changes)
            network = (AutoModelForMaskedLM if head else AutoModel).from_config(config)
            generator = torch.Generator().manual_seed(len(made) + 1)
            with torch.no_grad():
                for parameter in network.parameters():
                    around = 1.0 if parameter.dim() == 1 else 0.0
                    parameter.normal_(around, 0.3, generator=generator)
            made[key] = tmp_path_factory.mktemp(model_type)
            network.save_pretrained(made[key])
        return made[key]

    return save


@pytest.fixture(scope="session")
def token_batch() -> Callable[..., Any]:
    """Make a batch of ragged sequences: `token_batch(lengths, width)`; its tokens depend on their places alone."""

    def make(lengths: Sequence[int], width: int | None = None) -> Any:
        from kdcore.signals import Batch

        width = width or max(lengths)
        tokens = np.random.default_rng(5).integers(3, 60, size=(len(lengths), 40))[:, :width]
        real = np.arange(width) < np.asarray(lengths)[:, None]
        tokens = np.where(real, tokens, 1)
        predicted = real & (np.arange(width) % 3 == 1)
        return Batch(
            input_ids=torch.from_numpy(tokens),
            attention_mask=None if real.all() else torch.from_numpy(real),
            lengths=np.asarray(lengths, dtype=np.int64),
            token_index=torch.from_numpy(np.flatnonzero(real)),
            masked_index=torch.from_numpy(np.flatnonzero(predicted)),
            masked_labels=torch.from_numpy(tokens[predicted]),
        )

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
