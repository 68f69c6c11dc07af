"""Exports load in the versions of transformers that their users have, each in an environment with nothing of kdcore."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

import kdcore

VERSIONS = ["4.57.6", "5.0.0"]
TEXTS = ["the teacher and the student", "of the " * 60, "The TEACHER is [MASK]"]
READ = """
import json, sys
import torch, transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

found = {"version": transformers.__version__}
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(json.loads(sys.argv[1]), truncation=True, padding=True, return_tensors="pt")
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not AutoModel.from_pretrained(folder, output_loading_info=True)[1]["missing_keys"]
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[inputs["attention_mask"].bool()]
    found[folder] = {
        "ids": inputs["input_ids"].tolist(), "logits": logits.double().tolist(), "names": sorted(inputs),
        "side": tokenizer.truncation_side, "longest": tokenizer.model_max_length,
        "special": sorted(tokenizer.all_special_tokens),
    }
print(json.dumps(found))
"""


def word_level(folder: Path, roberta: bool) -> None:
    """Save a tokenizer without a class of its own, with a special token and settings of its own."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta else ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    cls, pad, sep, unk, mask = names
    words = [*names, "<extra>", "the", "of", "and", "teacher", "student", "##s"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(cls, 0), (sep, 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token=cls, pad_token=pad, sep_token=sep, unk_token=unk, mask_token=mask,
        additional_special_tokens=["<extra>"], truncation_side="left",
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, teacher_folder: Path) -> list[Path]:
    """Students of three teachers, one of them untied, and a student of another architecture than its teacher."""
    root = tmp_path_factory.mktemp("consumers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    makers = {
        "generic": BertForMaskedLM(BertConfig(vocab_size=12, **sizes, pad_token_id=1, tie_word_embeddings=False)),
        "roberta": RobertaForMaskedLM(RobertaConfig(vocab_size=12, **sizes, max_position_embeddings=66)),
    }
    for name, model in makers.items():
        model.save_pretrained(root / name)
        word_level(root / name, name == "roberta")
    shorter = {"config": {"num_hidden_layers": 1, "max_position_embeddings": 40}}
    folders = []
    for name, teacher, student in (
        ("bert", teacher_folder, shorter),
        ("distilbert", teacher_folder, {"config": {"model_type": "distilbert", "num_hidden_layers": 1}}),
        ("generic", root / "generic", {"config": {"num_hidden_layers": 1}, "initialize": {"from": "teacher"}}),
        ("roberta", root / "roberta", {"config": {"num_hidden_layers": 1}, "initialize": {"from": "teacher"}}),
    ):
        corpora = [{"name": "text", "path": str(corpus_file), "documents": "lines"}]
        recipe = {
            "run": {"name": name, "id": 1, "folder": str(root / "runs")},
            "teacher": {"path": str(teacher)},
            "student": student,
            "task": {
                "name": "masked_lm",
                "data": {"tokenizer": str(teacher), "sequence_length": 32, "held_out": 0.1, "corpora": corpora},
            },
            "losses": {"masked_lm": {}},
            "training": {"budget": {"steps": 2}, "batch_size": 4},
            "validation": {"every": "never"},
            "tracking": ["jsonl"],
        }
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        export = kdcore.train(path).export
        assert export is not None
        folders.append(export)
    return folders


@pytest.mark.parametrize("version", VERSIONS)
def test_exports_load_and_compute_the_same_in_other_versions(
    version: str, exports: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--retries", "0", f"transformers=={version}"]
    done = subprocess.run(list(map(str, install)), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip finds no package index: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]), encoding="utf-8")  # after its own packages
    for name in ("PYTHONPATH", "PYTHONHOME"):
        monkeypatch.delenv(name, raising=False)
    command = [str(python), "-c", READ, json.dumps(TEXTS), *map(str, exports)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == version
    for export in exports:
        tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForMaskedLM.from_pretrained(export)
        inputs, theirs = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt"), found[str(export)]
        assert theirs["ids"] == inputs["input_ids"].tolist(), export
        assert theirs["names"] == sorted(inputs), export
        assert theirs["side"] == tokenizer.truncation_side, export
        assert theirs["special"] == sorted(tokenizer.all_special_tokens), export
        positions = model.config.max_position_embeddings - (2 if model.config.model_type == "roberta" else 0)
        assert theirs["longest"] == tokenizer.model_max_length == positions, export
        with torch.no_grad():
            logits = model.eval()(**inputs).logits[inputs["attention_mask"].bool()]
        torch.testing.assert_close(
            torch.tensor(theirs["logits"], dtype=torch.float64), logits.double(), rtol=1e-4, atol=1e-5
        )
        print(f"transformers {version}: {export.parents[2].name} equals transformers here")
