"""Score pairs of a query and a document with a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from kdcore import DataError, first_line, load_tokenizer

_BATCH = 32


@torch.inference_mode()
def cross_encoder_logits(source: str, pairs: Sequence[tuple[str, str]], device: torch.device) -> NDArray[np.float32]:
    """Return the raw logits (n,) of pairs, without an activation function; longer pairs are truncated.

    Args:
        source: folder or hub name of a sequence classifier with one output.
        pairs: queries and documents.
        device: device on which logits are computed.

    Raises:
        DataError: the model cannot be read or has more than one output, or logits are not finite.
    """
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise DataError(f"is not a cross-encoder ({first_line(error)})", where=source) from error
    if report["missing_keys"] or model.config.num_labels != 1:
        outputs = "none with weights" if report["missing_keys"] else model.config.num_labels
        raise DataError(
            f"a cross-encoder needs one output (found {outputs})",
            where=source,
            hint="use a reranker: a sequence classifier with a single label",
        )
    model, tokenizer = model.eval().to(device), load_tokenizer(source)
    longest = min(tokenizer.model_max_length, int(getattr(model.config, "max_position_embeddings", 512)))
    order = np.argsort([len(query) + len(document) for query, document in pairs], kind="stable")
    logits = np.empty(len(pairs), np.float32)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        sides = [[pairs[number][side] for number in chosen] for side in (0, 1)]
        encoded = tokenizer(*sides, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        logits[chosen] = model(**encoded).logits[:, 0].float().cpu().numpy()
    broken = int((~np.isfinite(logits)).sum())
    if broken:
        raise DataError(f"the logits of {broken:,} of {len(pairs):,} pairs are not finite", where=source)
    return logits
