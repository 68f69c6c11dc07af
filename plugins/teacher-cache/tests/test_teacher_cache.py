"""A cache contains the signals that the live teacher computes, and training is the same with both."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import kdcore
from kdcore.commands.main import main
from kdcore.training.engine.module import DistillationModule
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.loop.plan import Plan
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import train_recipe

LOSSES = """\
losses:
  states: {name: hidden_mse, layers: last}
  words: {name: soft_targets, positions: masked}
  relations: {name: minilm_v2, layers: [[2, 1]], relation_heads: 4}
"""


LABELS = ("loss", "states", "words", "relations")


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path, cache_folder: Path
) -> Iterator[Path]:
    """A folder with `recipe.yaml`, whose masks repeat after two epochs, and `cache`, the cache of its teacher."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "recipe.yaml").write_text(
        f"""\
run: {{name: cached, id: 1}}
seed: 3
teacher: {{path: {teacher_folder}}}
student:
  config: {{num_hidden_layers: 2, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  initialize: {{from: teacher, blocks: uniform}}
task:
  name: masked_lm
  masking: {{duplicates: 2}}
  data:
    tokenizer: {teacher_folder}
    sequence_length: 48
    held_out: 0.1
    corpora:
      - {{name: text, path: {corpus_file}, documents: lines}}
{LOSSES}
optimizer: {{name: adamw, lr: 1.0e-3}}
training: {{budget: {{epochs: 3}}, batch_size: 8}}
validation: {{every: 100}}
checkpoints: {{every: 100, export_at_start: false, export_at_end: false}}
logging: {{every: 1}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCORE_CACHE", str(cache_folder))
        patch.chdir(folder)
        assert main(["teacher", "cache", "recipe.yaml", "cache"]) == 0
        yield folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_of(folder: Path) -> dict[tuple[int, str], float]:
    """The logged losses by step and name."""
    return {
        (row["step"], name): value
        for row in rows_of(folder)
        for name, value in row.items()
        if name.split("/")[0] in ("train", "held_out") and name.split("/")[1] in LABELS
    }


def train(project: Path, *overrides: str) -> dict[tuple[int, str], float]:
    result = train_recipe(kdcore.load_recipe(project / "recipe.yaml", overrides))
    return losses_of(result.folder)


@pytest.fixture(scope="module")
def live(project: Path) -> dict[tuple[int, str], float]:
    return train(project, "run.id=live")


@pytest.fixture(scope="module")
def cached(project: Path) -> dict[tuple[int, str], float]:
    return train(project, "run.id=cached", "teacher.cache=cache")


def sums(plan: Plan, batch: kdcore.Batch) -> dict[str, torch.Tensor]:
    teachers = FrozenTeachers(plan.load_teachers(), plan.composites)
    module = DistillationModule(plan.build_student().eval(), plan.losses)
    module.counts(batch)
    with torch.no_grad():
        found = module.sums(batch, teachers(batch, module.requests(list(plan.losses)).teachers), list(plan.losses))
    return {str(term): value for term, value in found.items()}


def test_losses_of_identical_batches_are_equal_bit_for_bit(project: Path) -> None:
    live, cached = (
        make_plan(kdcore.load_recipe(project / "recipe.yaml", overrides)) for overrides in ([], ["teacher.cache=cache"])
    )
    for split, epoch in (("train", 0), ("train", 1), ("train", 3), ("held_out", 0)):
        samples = np.arange(min(8, live.task.num_samples(split)), dtype=np.int64)
        batch = live.task.draw(split, samples, np.full_like(samples, epoch))
        expected, found = sums(live, batch), sums(cached, batch)
        assert expected.keys() == found.keys()
        assert len(expected) >= 3
        for term, value in expected.items():
            assert torch.equal(value, found[term]), (split, epoch, term)


def test_a_run_logs_the_losses_of_the_live_teacher(live: Any, cached: Any) -> None:
    assert live.keys() == cached.keys()
    assert len({step for step, _ in live}) > 20
    for key, value in live.items():
        assert cached[key] == pytest.approx(value, rel=1e-6), key
    for (step, name), value in live.items():
        if step == 0 and name.startswith("held_out/"):  # the same batches, and the same weights of the student
            assert cached[step, name] == value, name


def test_a_resumed_run_continues_with_the_same_losses(project: Path, cached: Any) -> None:
    overrides = ["run.id=resumed", "teacher.cache=cache"]
    recipe = kdcore.load_recipe(project / "recipe.yaml", overrides)
    stopped = losses_of(train_recipe(recipe, exit_steps=11).folder)
    assert max(step for step, _ in stopped) == 11
    found = train(project, *overrides)
    assert {key: found[key] for key in cached} == cached


@pytest.mark.processes
@pytest.mark.sample
def test_two_processes_log_the_losses_of_the_live_teacher(project: Path, live: Any) -> None:
    command = ["train", "recipe.yaml", "--processes", "2", "run.id=two", "teacher.cache=cache"]
    subprocess.run([sys.executable, "-m", "kdcore", *command], check=True, capture_output=True)
    found = losses_of(project / "runs" / "cached" / "two")
    assert found.keys() == live.keys()
    # Sums of halves of a batch are rounded differently than those of whole batches, also with a live teacher.
    halves = train(project, "run.id=halves", "training.micro_batch_size=4")
    epoch = max(step for step, _ in live) // 3
    for key, value in live.items():
        assert found[key] == pytest.approx(halves[key], rel=1e-6), key
        if key[0] <= epoch:
            assert found[key] == pytest.approx(value, rel=1e-6), key


def test_a_cache_describes_its_teacher_without_the_teachers_folder(project: Path) -> None:
    live, cached = (
        make_plan(kdcore.load_recipe(project / "recipe.yaml", ["student.initialize=null", *overrides]))
        for overrides in ([], ["teacher.path=null", "teacher.cache=cache"])
    )
    theirs, own = live.teachers["teacher"], cached.teachers["teacher"]
    assert own.info == theirs.info
    assert own.vocabulary() == theirs.vocabulary()
    assert cached.student.info == live.student.info
    batch = live.task.draw("train", np.arange(8), np.zeros(8, np.int64))
    request = live.teacher_requests("train")["teacher"]
    with torch.no_grad():
        expected = theirs.load_teacher(request).eval()(batch, request)
    found = own.load_teacher(request)(batch, request)
    assert torch.equal(found.tokens(3), expected.tokens(3))
    assert torch.equal(found.first(3), expected.first(3))
    assert torch.equal(found.logits("masked"), expected.logits("masked"))


def test_a_cached_run_loads_no_weights_of_the_teacher(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(kdcore.load_recipe(project / "recipe.yaml", ["teacher.cache=cache"]))

    def refuse(self: Any, request: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(kdcore.TransformersModel, "load_teacher", refuse)
    encoder = plan.load_teachers()["teacher"]
    assert list(encoder.parameters()) == list(encoder.buffers()) == []


def test_a_finished_run_is_summarised_and_repeated_without_its_cache(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "cache", project / "gone")
    overrides = ["run.id=card", "teacher.cache=gone", "training.budget={steps: 2}", "checkpoints.export_at_end=true"]
    train(project, *overrides)
    shutil.rmtree(project / "gone")
    run = project / "runs" / "cached" / "card"
    card = (run / "exports" / "final" / "README.md").read_text(encoding="utf-8")
    assert "| signals of the teacher | read from a cache" in card
    recipe = kdcore.load_recipe(yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]))
    assert recipe.settings.teacher is not None
    assert recipe.settings.teacher.keys() - {"name"} == {"path"}
    capsys.readouterr()
    assert main(["summary", str(run)]) == 0
    assert f"read from a cache ({project / 'gone'})" in capsys.readouterr().out


def test_a_run_that_only_a_removed_cache_describes_is_summarised_without_its_teacher(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "cache", project / "only")
    overrides = ["run.id=only", "teacher.path=null", "teacher.cache=only", "training.budget={steps: 2}"]
    overrides += ["student.initialize=null", "checkpoints.export_at_end=true"]
    found = train(project, *overrides)
    run, last = project / "runs" / "cached" / "only", found[2, "held_out/states/hidden_mse"]
    capsys.readouterr()
    assert main(["summary", str(run)]) == 0
    before = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    shutil.rmtree(project / "only")
    assert main(["summary", str(run)]) == 0
    after = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert f"{last:.4f} at the end" in after["held-out states/hidden_mse"]
    assert {row: after[row] for row in after if row.startswith("held-out ")}.items() <= before.items()
    assert after["blocks"] == "2"
    assert str(run / "exports" / "final") in after["student"]
    assert f"only the cache {project / 'only'} describes the teacher, and it does not exist" in after["not shown"]


@pytest.mark.processes
def test_two_processes_write_the_bytes_of_one(project: Path) -> None:
    command = ["teacher", "cache", "recipe.yaml", "parallel", "--processes", "2"]
    subprocess.run([sys.executable, "-m", "kdcore", *command], check=True, capture_output=True)
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (project / "cache", project / "parallel")
    ]
    assert contents[0] == contents[1]
