"""From raw text to a student that carries the tokenizer learnt from it, as a user does it on the command line."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from kdcore.commands.main import main

DATA = """\
corpora: [{{name: text, path: {corpus}}}]
tokenizer: learnt
sequence_length: 32
held_out: 0.1
"""

RECIPE = """\
run: {{name: scratch, id: 1}}
seed: 1
student:
  config: {{model_type: bert, vocab_size: 60, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
           intermediate_size: 32, max_position_embeddings: 32}}
task: {{name: masked_lm, data: prepared}}
losses: {{masked_lm: {{}}}}
optimizer: {{name: adamw, lr: 1.0e-2}}
training: {{budget: {{steps: {steps}}}, batch_size: 8}}
tracking: [jsonl]
"""


@pytest.fixture
def working_folder(tmp_path: Path, corpus_file: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.yaml").write_text(DATA.format(corpus=corpus_file), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(steps=8), encoding="utf-8")
    return tmp_path


def test_a_student_is_trained_from_nothing_and_exported_with_the_tokenizer_that_was_learnt(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    train = ["tokenizer", "train", "data.yaml", "learnt", "--kind", "unigram", "--vocabulary", "60"]
    assert main(train) == 0
    assert "trained 60 tokens on" in capsys.readouterr().out
    assert main(["prepare", "data.yaml", "prepared"]) == 0
    assert main(["train", "recipe.yaml"]) == 0

    export = working_folder / "runs/scratch/1/exports/final"
    learnt, exported = (AutoTokenizer.from_pretrained(folder) for folder in (working_folder / "learnt", export))
    # SentencePiece distinguishes decomposed letters; preparation composes them, and the export has to do it itself.
    for text in ("abc de, cab!", "ab\u00e9 d", "[MASK] abc"):
        assert exported.tokenize(text) == learnt.tokenize(text)
        assert exported.tokenize(unicodedata.normalize("NFD", text)) == learnt.tokenize(text)
    assert exported.get_vocab() == learnt.get_vocab()
    student, report = AutoModelForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not report["missing_keys"]
    assert student.config.vocab_size == len(exported) == 60
    batch = exported("abc de", return_tensors="pt")
    assert batch["input_ids"][0, 0] == exported.cls_token_id
    assert student(**batch).logits.shape == (*batch["input_ids"].shape, 60)
    losses = [
        row["held_out/loss"]
        for line in (working_folder / "runs/scratch/1/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if "held_out/loss" in (row := json.loads(line))
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "words"], "invalid choice: 'words'"),
        (["--kind", "bpe", "--vocabulary", "3"], "--vocabulary: must be at least 16 (found 3)"),
        (["--kind", "bpe", "--sample", "0"], "--sample: must be at least 1 (found 0)"),
        (["--kind", "bpe", "--vocabulary", "50000"], "allowed: at most"),
        (["--kind", "bpe", "corpora.0.name=txet"], "unknown corpus `txet`"),
        (["--kind", "bpe", "corpora.0.path=nowhere.txt"], "no such file or folder"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    working_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    before = sorted(working_folder.iterdir())
    assert main(["tokenizer", "train", "data.yaml", "learnt", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert sorted(working_folder.iterdir()) == before
