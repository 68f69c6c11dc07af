"""Small sentence encoders in the classic schema of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeFolder = Callable[..., Path]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def make_sentence_folder(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> MakeFolder:
    """Make a sentence encoder of the small teacher: `make("mean", ("Dense", "Normalize"), prompts={...})`."""
    import torch
    from safetensors.torch import save_file

    def make(
        modes: tuple[str, ...] = ("mean_tokens",),
        layers: tuple[str, ...] = ("Dense", "Normalize"),
        *,
        prompts: dict[str, str] | None = None,
        max_seq_length: int = 40,
        package: str = "sentence_transformers.models.",
    ) -> Path:
        folder = tmp_path_factory.mktemp("sentences") / "model"
        shutil.copytree(teacher_folder, folder)
        entries = [("", "Transformer"), ("1_Pooling", "Pooling")]
        write(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
        pooling = {"word_embedding_dimension": 32, **{f"pooling_mode_{mode}": True for mode in modes}}
        write(folder / "1_Pooling/config.json", pooling)
        width = 32 * len(modes)
        torch.manual_seed(3)
        for number, kind in enumerate(layers, start=2):
            own = folder / f"{number}_{kind}"
            entries.append((own.name, kind))
            own.mkdir()
            if kind == "Dense":
                activation = "torch.nn.modules.activation.Tanh"
                sizes = {"in_features": width, "out_features": 24, "bias": True}
                write(own / "config.json", sizes | {"activation_function": activation})
                weights = {"linear.weight": torch.randn(24, width), "linear.bias": torch.randn(24)}
                torch.save(weights, own / "pytorch_model.bin")
                width = 24
            elif kind == "LayerNorm":
                write(own / "config.json", {"dimension": width})
                save_file(
                    {"norm.weight": torch.rand(width), "norm.bias": torch.randn(width)}, own / "model.safetensors"
                )
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": package + kind}
            for number, (path, kind) in enumerate(entries)
        ]
        write(folder / "modules.json", modules)
        write(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})
        return folder

    return make


@pytest.fixture(scope="session")
def sentence_folder(make_sentence_folder: MakeFolder) -> Path:
    """A sentence encoder with mean pooling, Dense to 24 and Normalize, 40 tokens, and prompts."""
    return make_sentence_folder(prompts={"query": "of ", "document": "the "})


@pytest.fixture(scope="session")
def some_texts() -> list[str]:
    """70 different texts of different lengths."""
    words = ["the", "teacher", "of", "student", "and", "abc", "efg"]
    return [" ".join(words[(i * k + k // 3) % 7] for i in range(1, 2 + k % 17)) + f" {k}" for k in range(70)]
