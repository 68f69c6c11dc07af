"""Stopped and continued: bit for bit the same, in two processes too; in another number of them, within rounding.

And what must not be continued: with other data, another teacher, or while another run is at it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import kdcore
from kdcore.recipe.loading import load_recipe
from kdcore.training.loop.trainer import Trainer
from kdcore.training.run.run import train_recipe

PAIR = Path(__file__).with_name("pair.py")
LAYOUTS = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2), ("fp16", 1), ("fp16", 2)]
# Without dropout, with which another number of processes draws otherwise. bf16 rounds each process's sums to 8 bits.
RESHARDED = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
WEIGHT_TOLERANCE = {"fp32": 1e-6, "bf16": 2e-3}
# The stop at step 3 falls between two rows of metrics, and after the scale of fp16 has been lowered.
COMMON = ["logging.every=2", "training.micro_batch_size=2", "scheduler.warmup=0.0", "losses.masked_lm={weight: 0.1}"]
DROPOUT = ["student.config.hidden_dropout_prob=0.1"]
FP16 = "training.deepspeed={fp16: {initial_scale_power: 20, hysteresis: 2}}"


def layout(precision: str, stage: int) -> list[str]:
    scale = [FP16] if precision == "fp16" else []
    return [*COMMON, *DROPOUT, f"training.precision={precision}", f"training.zero_stage={stage}", *scale]


def losses_of(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def weights_of(run: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(run / "exports" / "final" / "model.safetensors")


def in_two_processes(recipe: Path, jobs: list[list[object]]) -> None:
    (recipe.parent / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(PAIR), str(recipe), str(recipe.parent / "jobs.json")]
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    messages = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], messages


@dataclass(frozen=True)
class Runs:
    folder: Path
    recipe: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher_folder, corpus_file, cache_folder) -> Runs:
    """Everything that trains, in as few starts of processes as can be."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "small.yaml"
    recipe.write_text(
        f"""\
run: {{name: small, folder: {folder}}}
seed: 3
teacher: {{path: {teacher_folder}}}
student: {{config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}}}
task:
  name: masked_lm
  data:
    tokenizer: {teacher_folder}
    sequence_length: 48
    held_out: 0.1
    corpora: [{{name: text, path: {corpus_file}, documents: lines}}]
losses: {{hidden_mse: {{layers: last}}}}
optimizer: {{name: adamw, lr: 1.0e-3}}
training: {{budget: {{steps: 6}}, batch_size: 8}}
validation: {{every: never}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCORE_CACHE", str(cache_folder))
        resharded = {
            f"{precision}-{stage}": [*COMMON, f"training.precision={precision}", f"training.zero_stage={stage}"]
            for precision, stage in RESHARDED
        }
        for name, common in resharded.items():
            train_recipe(load_recipe(recipe, [*common, f"run.id=one-{name}"]))
            train_recipe(load_recipe(recipe, [*common, f"run.id=grown-{name}"]), exit_steps=3)
        jobs: list[list[object]] = []
        for precision, stage in LAYOUTS:
            common, name = layout(precision, stage), f"{precision}-{stage}"
            jobs += [
                [None, *common, f"run.id=whole-{name}"],
                [3, *common, f"run.id=stopped-{name}"],
                [None, *common, f"run.id=stopped-{name}"],
            ]
        for name, common in resharded.items():
            jobs += [[None, *common, f"run.id=grown-{name}"], [3, *common, f"run.id=shrunk-{name}"]]
        in_two_processes(recipe, jobs)
        for name, common in resharded.items():
            train_recipe(load_recipe(recipe, [*common, f"run.id=shrunk-{name}"]))
        for stage in (1, 2):
            common = layout("bf16" if stage == 2 else "fp32", 2)
            train_recipe(load_recipe(recipe, [*common, f"run.id=alone-whole-{stage}"]))
            train_recipe(load_recipe(recipe, [*common, f"run.id=alone-stopped-{stage}"]), exit_steps=3)
            train_recipe(load_recipe(recipe, [*common, f"run.id=alone-stopped-{stage}"]))
    return Runs(folder / "small", recipe)


def continued(run: Path) -> bool:
    return "continued from step-0000003" in (run / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("precision", "stage"), LAYOUTS)
def test_two_processes_end_like_undisturbed_ones(runs, precision, stage):
    whole, stopped = (runs.folder / f"{kind}-{precision}-{stage}" for kind in ("whole", "stopped"))
    assert continued(stopped)
    assert losses_of(stopped) == losses_of(whole)
    for name, tensor in weights_of(whole).items():
        assert np.array_equal(tensor, weights_of(stopped)[name]), name


@pytest.mark.parametrize("which", [1, 2], ids=["fp32 stage 2", "bf16 stage 2"])
def test_one_process_ends_like_an_undisturbed_one(runs, which):
    whole, stopped = (runs.folder / f"alone-{kind}-{which}" for kind in ("whole", "stopped"))
    assert continued(stopped)
    assert losses_of(stopped) == losses_of(whole)
    for name, tensor in weights_of(whole).items():
        assert np.array_equal(tensor, weights_of(stopped)[name]), name


@pytest.mark.parametrize("kind", ["grown", "shrunk"])
@pytest.mark.parametrize(("precision", "stage"), RESHARDED)
def test_another_number_of_processes_sees_the_same_samples_and_ends_within_rounding(runs, kind, precision, stage):
    """From one process to two and from two to one; the row of step 4 holds step 3 of before and step 4 of after."""
    one, other = (runs.folder / f"{which}-{precision}-{stage}" for which in ("one", kind))
    assert continued(other)
    np.testing.assert_allclose(losses_of(other), losses_of(one), rtol=LOSS_TOLERANCE[precision])
    for name, tensor in weights_of(one).items():
        # A key's bias has no gradient but rounding, which Adam makes as large as any.
        if not name.endswith("key.bias"):
            tolerance = WEIGHT_TOLERANCE[precision]
            np.testing.assert_allclose(weights_of(other)[name], tensor, atol=tolerance, err_msg=name)
    assert not [path for path in (other / "checkpoints").iterdir() if path.name.startswith(".")]


SLOW_AND_KILLED = """
import os
import signal
import time

from kdcore.training.checkpoint import manager as checkpoint

original, count = checkpoint.write_process_state, 0


def write_process_state(state, folder, rank):
    global count
    written = original(state, folder, rank)
    count += 1
    time.sleep(0.2)
    if os.environ.get("KILLED") and count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return written


if os.environ["RANK"] == "1":
    checkpoint.write_process_state = write_process_state
"""


def test_a_process_killed_while_it_saves_costs_the_steps_since_the_last_checkpoint(runs, monkeypatch):
    """The whole command, with process 1 slow and killed in its second save; then started again."""
    (runs.recipe.parent / "killed.py").write_text(SLOW_AND_KILLED, encoding="utf-8")
    overrides = [
        *layout("fp32", 1),
        "run.id=killed",
        "checkpoints.every=2",
        f"imports=[{runs.recipe.parent}/killed.py]",
    ]
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(runs.recipe), *overrides, "--processes", "2"]
    done = subprocess.run(
        command, env={**os.environ, "KILLED": "1"}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    folder = runs.folder / "killed"
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-0000002"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "continued from step-0000002" in done.stderr
    assert not list((folder / "checkpoints").glob(".*"))
    assert losses_of(folder) == losses_of(runs.folder / "whole-fp32-1")
    for name, tensor in weights_of(runs.folder / "whole-fp32-1").items():
        assert np.array_equal(tensor, weights_of(folder)[name]), name


@pytest.fixture
def train(small_recipe: Path) -> Callable[..., Path]:
    return lambda *overrides: kdcore.train(small_recipe, list(overrides)).folder


def test_other_data_is_refused(train, corpus_file, tmp_path):
    shutil.copy(corpus_file, tmp_path / "corpus.txt")
    own = "task.data.corpora=[{name: text, path: corpus.txt, documents: lines}]"
    train(own)
    text = (tmp_path / "corpus.txt").read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(text + "one more line\n", encoding="utf-8")
    with pytest.raises(kdcore.RecipeError, match=r"task\.data: the run was started with other data"):
        train(own, "training.budget.steps=9")


def test_another_teacher_in_the_same_place_is_refused_with_its_files(train, teacher_folder, tmp_path):
    import torch
    from transformers import AutoModelForMaskedLM

    shutil.copytree(teacher_folder, tmp_path / "teacher")
    folder = train("teacher.path=teacher")
    assert train("teacher.path=teacher", "training.budget.steps=7") == folder, "equal weights are not a change"
    weights = tmp_path / "teacher" / "model.safetensors"
    before = weights.stat()
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher")
    with torch.no_grad():
        model.bert.encoder.layer[3].output.dense.bias[0] += 1
    model.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    with pytest.raises(kdcore.RecipeError) as caught:
        train("teacher.path=teacher", "training.budget.steps=9")
    assert "the teacher's weights have changed since" in str(caught.value)
    assert "teacher.path: model.safetensors has changed (found sha256 " in str(caught.value)
    assert "config.json" not in str(caught.value)


WAITING = """
import time
from pathlib import Path

from kdcore.training.loop.trainer import Trainer

original = Trainer._train_step


def train_step(self, *arguments):
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    original(self, *arguments)


Trainer._train_step = train_step
"""


def test_a_second_run_in_one_folder_is_refused_while_the_first_goes_on(small_recipe, train, tmp_path, monkeypatch):
    # The last run imports `waiting.py` into this process, which must not wait in other tests.
    monkeypatch.setattr(Trainer, "_train_step", Trainer._train_step)
    (tmp_path / "waiting.py").write_text(WAITING, encoding="utf-8")
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), "imports=[waiting.py]"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        try:
            while not (tmp_path / "began").exists():
                assert first.poll() is None
                time.sleep(0.02)
            with pytest.raises(kdcore.InputError, match="another run is active in this folder") as caught:
                train()
            assert f"process {first.pid} on {socket.gethostname()}, since 20" in str(caught.value)
            assert "run.id=NEW" in str(caught.value)
            (tmp_path / "go").touch()
            message = first.communicate(timeout=100)[1]
        finally:
            first.kill()
    assert first.returncode == 0, message
    assert train("imports=[waiting.py]", "training.budget.steps=7").name == "1", "the lock has gone with its process"
