"""A teacher with random weights, made-up text and recipes: all that a run needs, without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from recording import Setting
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_words(number: int) -> list[str]:
    """Return different words of a few letters."""
    generator = random.Random(1)
    words: set[str] = set()
    while len(words) < number:
        words.add("".join(generator.choices("abcdefgh", k=generator.randint(3, 8))))
    return sorted(words)


def write_material(setting: Setting) -> Path:
    """Write teacher, text and `recipe.yaml` to the folder, and return the recipe.

    The recipe has a loss on hidden states, one on relations and one on predictions, no dropout, and rows of metrics
    every 10 steps. Small: 2 blocks of width 32; else 4 blocks of width 256, heads of size 64, sequences of 128 tokens.
    """
    folder, words = setting.folder, make_words(400)
    blocks, width, heads, length = (2, 32, 2, 32) if setting.small else (4, 256, 4, 128)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=length,
        initializer_range=0.05,  # larger than usual, so that blocks differ
    )
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder / "teacher")
    generator = random.Random(2)
    lines = [" ".join(generator.choices(words, k=generator.randint(5, 2 * length))) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""\
run: {{name: gpu, id: 1, folder: {folder}/runs}}
seed: 3
teacher: {{path: {folder}/teacher}}
student:
  config: {{num_hidden_layers: {blocks // 2}, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: teacher, blocks: uniform}}
task:
  name: masked_lm
  data:
    tokenizer: {folder}/teacher
    sequence_length: {length}
    held_out: 0.05
    corpora: [{{name: text, path: {folder}/text.txt, documents: lines}}]
losses:
  hidden_mse: {{layers: last}}
  minilm_v2: {{relation_heads: {heads}}}
  soft_targets: {{weight: 0.1}}
optimizer: {{name: adamw, lr: 5.0e-5, weight_decay: 0.01}}
training: {{budget: {{steps: 20}}, batch_size: 16, micro_batch_size: 8}}
validation: {{every: never}}
checkpoints: {{every: 1000}}
logging: {{every: 10}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    return recipe


def rows_of(run: Path) -> list[dict[str, float]]:
    """Return the losses in a run's rows of metrics: `loss` and each term."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    terms = ("train/loss", "train/hidden_mse", "train/minilm_v2", "train/soft_targets")
    return [
        {name.removeprefix("train/"): value for name, value in row.items() if name.startswith(terms)}
        for row in rows
        if "train/loss" in row
    ]


def distance(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Return the largest relative difference of losses; infinite if rows or terms are missing."""
    if not expected or [sorted(row) for row in found] != [sorted(row) for row in expected]:
        return float("inf")
    return max(abs(one[name] / other[name] - 1) for one, other in zip(found, expected, strict=True) for name in other)
