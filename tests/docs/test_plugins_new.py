"""A package made by `kdcore plugins new`, built and installed by pip: its tests pass there, and it trains by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from kdcore_testing.scaffold.new_package import KINDS

from kdcore.commands.main import main

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `python ...` in an environment in which the generated package is installed beside kdcore."""
    folder = tmp_path_factory.mktemp("generated")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # Not a plain path: what is installed as editable there is found by further .pth files.
    running = sysconfig.get_path("purelib")
    (site / "running.pth").write_text(f"import site; site.addsitedir({running!r})\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        kinds = [word for kind in KINDS for word in ("--kind", kind)]
        assert main(["plugins", "new", "kdcore-mine", *kinds]) == 0
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*command, *options, str(folder / "kdcore-mine")], check=True)
    # Only its tests stay: what they import is what was installed.
    (folder / "kdcore-mine" / "tests").rename(folder / "tests")
    shutil.rmtree(folder / "kdcore-mine")

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        here = [argument.replace("TESTS", str(folder / "tests")) for argument in arguments]
        return subprocess.run([str(python), *here], capture_output=True, text=True, timeout=300)

    return start


@pytest.mark.sample
def test_its_tests_pass_unchanged_where_it_is_installed(run: Run) -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "TESTS")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "21 passed" in done.stdout


def test_it_is_listed_and_its_components_work(run: Run) -> None:
    rows = [line.split() for line in run("-m", "kdcore.commands.main", "plugins", "list").stdout.splitlines()]
    checked = run("-m", "kdcore.commands.main", "plugins", "check").stdout
    for kind in KINDS:
        assert [kind, "mine", "kdcore-mine", "0.1.0"] in rows
        assert f"{kind} mine of kdcore-mine 0.1.0: ok" in checked


@pytest.mark.parametrize("kinds", [["loss"], list(KINDS)], ids=["loss", "all_kinds"])
def test_it_trains_by_its_name(
    run: Run, small_recipe: Path, teacher_folder: Path, tmp_path: Path, kinds: list[str]
) -> None:
    words = ["teacher", "student", "the", "of", "and"]
    documents = [{"text": " ".join(words[(n * k) % 5] for k in range(3 + n % 20))} for n in range(60)]
    json_lines = tmp_path / "text.jsonl"
    json_lines.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    overrides = {
        "loss": ["losses.hidden_mse=null", "losses.mine={layers: uniform}"],
        "model": [
            f"teacher={{name: mine, path: {teacher_folder}}}",
            "student={name: mine, config: {num_hidden_layers: 2}}",
        ],
        "task": [f"task={{name: mine, data: {{tokenizer: {teacher_folder}, sequence_length: 48, held_out: 0.1}}}}"],
        "optimizer": ["optimizer={name: mine, lr: 1e-3}"],
        "scheduler": ["scheduler={name: mine, warmup: 0.1}"],
        "corpus": [f"task.data.corpora=[{{name: mine, path: {json_lines}}}]"],
        "tracker": ["tracking=[jsonl, mine]"],
    }
    chosen = [override for kind in kinds for override in overrides[kind]]
    done = run("-m", "kdcore.commands.main", "train", str(small_recipe), *chosen, "training.budget.steps=12")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small" / "1"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row["held_out/mine"] for row in rows if "held_out/mine" in row]
    assert 0 < held_out[-1] < 0.9 * held_out[0]
    if "tracker" in kinds:
        assert "train/mine" in (folder / "mine.csv").read_text(encoding="utf-8")
