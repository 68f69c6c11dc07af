"""A loss of kdcore inside `SentenceTransformerTrainer`: a smaller sentence encoder learns the teacher's token states.

Run it with `python examples/sentence_transformer_trainer.py TEACHER TEXT_FILE`. It needs sentence-transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

import kdcore


class TokenCosine(torch.nn.Module):
    """The cosine distance of token states between a student and a teacher with the same tokenizer."""

    def __init__(self, model: SentenceTransformer, teacher: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher.eval().requires_grad_(False)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: torch.Tensor) -> torch.Tensor:
        """Return the mean of `1 - cos` over real tokens."""
        (features,) = sentence_features
        with torch.no_grad():
            wanted = self.teacher(dict(features))["token_embeddings"]
        own = self.model(dict(features))["token_embeddings"]
        return kdcore.functional.hidden_cosine(own, wanted, features["attention_mask"].sum(-1)).mean


def main(teacher_folder: str, text_file: str) -> None:
    """Train a student of the teacher's first block."""
    teacher, student = SentenceTransformer(teacher_folder), SentenceTransformer(teacher_folder)
    network = student[0].auto_model
    network.encoder.layer = network.encoder.layer[:1]
    network.config.num_hidden_layers = 1
    texts = [text for text in Path(text_file).read_text(encoding="utf-8").splitlines() if text.strip()]
    settings = SentenceTransformerTrainingArguments("trained", max_steps=10, report_to="none", save_strategy="no")
    data = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    SentenceTransformerTrainer(student, settings, train_dataset=data, loss=TokenCosine(student, teacher)).train()
    student.save("trained/student")


if __name__ == "__main__":
    main(*sys.argv[1:])
