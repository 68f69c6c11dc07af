"""A loss of kdcore inside `transformers.Trainer`: the student learns the teacher's last hidden states.

Run it with `python examples/transformers_trainer.py TEACHER TEXT_FILE`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

import kdcore


class DistillationTrainer(Trainer):
    """Train on an objective of `kdcore.functional` instead of the model's own loss."""

    def __init__(self, *args: Any, teacher: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().to(self.args.device)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the mean squared error of the last hidden states over real tokens."""
        with torch.no_grad():
            wanted = self.teacher(**inputs).last_hidden_state
        outputs = model(**inputs)
        lengths = inputs["attention_mask"].sum(-1)
        loss = kdcore.functional.hidden_mse(outputs.last_hidden_state, wanted, lengths).mean
        return (loss, outputs) if return_outputs else loss


def main(teacher_folder: str, text_file: str) -> None:
    """Train a student of the teacher's first block."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    teacher = AutoModel.from_pretrained(teacher_folder)
    student = AutoModel.from_pretrained(teacher_folder, num_hidden_layers=1)  # the first block of the teacher
    texts = Path(text_file).read_text(encoding="utf-8").splitlines()
    samples = [dict(tokenizer(text, truncation=True, max_length=48)) for text in texts if text.strip()]
    settings = TrainingArguments("trained", max_steps=20, logging_steps=5, report_to="none", save_strategy="no")
    collator = DataCollatorWithPadding(tokenizer)
    DistillationTrainer(student, settings, collator, samples, teacher=teacher).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
