"""Write the sentence-transformers files of an exported student, in the classic schema of versions 2 to 6."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kdcore import load_head
from kdcore_embeddings.head import EmbeddingHead, StudentEmbedding
from kdcore_embeddings.sentence_folder import POOLING_KEYS

_TYPES = "sentence_transformers.models."


def write_sentence_folder(
    folder: Path,
    head: EmbeddingHead,
    *,
    max_length: int,
    prompts: Mapping[str, str],
    default_prompt: str | None,
    similarity: str,
) -> None:
    """Add the modules after the encoder to an exported folder, which already contains the encoder and the head.

    Args:
        folder: the folder.
        head: the student's head.
        max_length: longest sequence in tokens.
        prompts: prompts by name.
        default_prompt: name of the prompt that `encode` uses by default; None for no prompt.
        similarity: name of the similarity of two embeddings.
    """
    module = load_head(folder, head)
    assert isinstance(module, StudentEmbedding)
    hidden_size = head.num_outputs if module.dense is None else module.dense.linear.in_features
    mode = "mean" if head.pooling == "mean" else "cls"
    pooling = {"word_embedding_dimension": hidden_size, **{key: name == mode for key, name in POOLING_KEYS.items()}}
    entries = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": True})
    if module.dense is not None:
        linear = module.dense.linear
        dense = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
        }
        entries.append(("2_Dense", "Dense"))
        _write(folder / "2_Dense" / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
        write_dense(folder / "2_Dense", linear.state_dict())
    if head.normalize:
        name = f"{len(entries)}_Normalize"
        entries.append((name, "Normalize"))
        (folder / name).mkdir()
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": _TYPES + kind}
        for number, (path, kind) in enumerate(entries)
    ]
    _write(folder / "modules.json", modules)
    settings = {"prompts": dict(prompts), "default_prompt_name": default_prompt, "similarity_fn_name": similarity}
    _write(folder / "config_sentence_transformers.json", settings)


def write_dense(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights of a Dense module, given by their names in `torch.nn.Linear`, to its folder."""
    stored = {f"linear.{name}": tensor.contiguous() for name, tensor in weights.items()}
    save_file(stored, folder / "model.safetensors")
    torch.save(stored, folder / "pytorch_model.bin")  # versions before safetensors read this one


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
