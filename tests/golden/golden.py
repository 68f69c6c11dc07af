"""Copies of the stored runs of earlier formats, for the tests that resume or damage them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch

STORED = Path(__file__).with_name("format-1")
ONE_PROCESS = ["fp32-zero0", "adafactor-zero0", "lamb-zero0", "bf16-zero1", "bf16-zero2"]
TWO_PROCESSES = ["fp32-zero1-two-processes", "bf16-zero1-two-processes"]
STEP = "step-0000004"


def copy_golden(name: str, root: Path) -> Path:
    """Copy a stored run with its teacher, text and prepared data to `root`; gives the run's folder."""
    for part in ("teacher", "cache", f"runs/{name}"):
        shutil.copytree(STORED / part, root / part)
    shutil.copy(STORED / "corpus.txt", root)
    for file in [*root.rglob("*.yaml"), *root.rglob("*.json")]:
        text = file.read_text(encoding="utf-8")
        if "@ROOT@" in text:
            file.write_text(text.replace("@ROOT@", str(root)), encoding="utf-8")
    return root / "runs" / name


def is_the_writing_processor() -> bool:
    """Whether this processor and torch are those that wrote the stored runs, so that results are equal bit for bit."""
    stored = json.loads((STORED / "processor.json").read_text(encoding="utf-8"))
    flags = re.search(r"^flags\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    digest = hashlib.sha256(" ".join(sorted(flags[1].split())).encode()).hexdigest() if flags else ""
    return (
        digest == stored["sha256_of_flags"]
        and torch.backends.cpu.get_cpu_capability() == stored["capability"]
        and torch.__version__.partition("+")[0] == stored["torch"]
    )


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "train/tokens_per_second")} for row in rows]


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    """The weights in a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(file)


def rewrite_manifest(checkpoint: Path) -> None:
    """Write the manifest anew for the files that lie there, as somebody would who has changed one on purpose."""
    number = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["format"]
    found = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    files = {
        path.relative_to(checkpoint).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in found
    }
    write_manifest(checkpoint, {"format": number, "files": files})


def write_manifest(checkpoint: Path, content: dict) -> None:
    """Write a manifest with the hash over itself that belongs to it."""
    files = content["files"]
    entries = {name: files[name] for name in sorted(files)} if isinstance(files, dict) else files
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    whole = {**content, "files": entries, "sha256_of_files": digest}
    (checkpoint / "manifest.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
