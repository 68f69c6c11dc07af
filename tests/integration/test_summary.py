"""`kdcore summary`: the table at the end of the demo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcore
from kdcore import registry
from kdcore.commands.main import main
from kdcore.recipe.loading import load_recipe
from kdcore.training.run.build import make_plan


def test_it_tells_what_the_run_measured_and_what_the_models_are(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModel

    result = kdcore.train(small_recipe)
    assert main(["summary", str(result.folder)]) == 0
    rows = {line[:17].strip(): line for line in capsys.readouterr().out.splitlines() if line}
    metrics = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row["held_out/hidden_mse"] for row in metrics if "held_out/hidden_mse" in row]
    (loss,) = [line for line in rows.values() if line.startswith("held-out hidden_mse")]
    assert f"{held_out[0]:.4f} at the start, {held_out[-1]:.4f} at the end" in loss
    variance = variance_of_the_teacher(result.folder)
    assert [row["constant/hidden_mse"] for row in metrics if "constant/hidden_mse" in row] == pytest.approx(
        [variance] * len(held_out), rel=1e-5
    )
    assert f"best constant prediction: {variance:.4f}" in loss
    log = (result.folder / "train.log").read_text(encoding="utf-8")
    assert f"step 0: held-out loss {held_out[0]:.5g} (constant prediction: {variance:.5g})" in log
    explained = [1 - value / variance for value in held_out]
    assert [row["explained/hidden_mse"] for row in metrics if "explained/hidden_mse" in row] == pytest.approx(explained)
    baselines = (
        f"before training: {held_out[0]:.5g}, constant prediction: {variance:.5g}, explained: {explained[-1]:.1%}"
    )
    assert f"held-out loss {held_out[-1]:.5g} ({baselines})" in log
    assert f"(explained: {explained[-1]:.1%})" in loss
    assert result.export is not None
    card = (result.export / "README.md").read_text(encoding="utf-8")
    assert f"| held-out hidden_mse | {held_out[-1]:.5g} ({baselines}) |" in card
    parameters = sum(parameter.numel() for parameter in AutoModel.from_pretrained(result.export).parameters())
    text = "\n".join(rows.values())
    assert f"student {parameters:,}" in text
    assert "teacher 4, student 2" in text
    assert str(result.export) in text
    assert "losses.hidden_mse.layers=uniform" in text
    with (result.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "held_out/hid')  # as a process that is killed leaves it
    assert main(["summary", str(result.folder)]) == 0
    assert f"{held_out[0]:.4f} at the start, {held_out[-1]:.4f} at the end" in capsys.readouterr().out


def test_a_student_that_is_no_better_than_a_constant_is_called_so(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps from random weights: log, summary and model card warn after warm-up, and the run succeeds."""
    often = ["validation.every=1", "training.budget.steps=6", "scheduler={name: linear, warmup: 0.5}"]
    assert main(["train", str(small_recipe), *often]) == 0
    run = small_recipe.parent / "runs" / "small" / "1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row for row in rows if "held_out/loss" in row]
    numbers = "hidden_mse {held_out/hidden_mse:.5g} is no better than a constant prediction, {constant/hidden_mse:.5g}"
    expected = {row["step"]: numbers.format_map(row) for row in held_out if row["step"] >= 3}
    log = (run / "train.log").read_text(encoding="utf-8")
    start = "warning: step {}: the student may have collapsed or learned nothing: {}"
    assert [line.partition("INFO ")[2].partition(". Usually")[0] for line in log.splitlines() if "Usually" in line] == [
        start.format(step, text) for step, text in expected.items()
    ]
    assert "warning: step 6" in capsys.readouterr().err
    card = (run / "exports" / "final" / "README.md").read_text(encoding="utf-8")
    assert f"**Warning:** the student may have collapsed or learned nothing: {expected[6]}. Usually" in card
    assert "**Warning:**" not in (run / "exports" / "initial" / "README.md").read_text(encoding="utf-8")
    assert main(["summary", str(run)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split("  ")[0] == "warning"
    assert expected[6] in first
    page = small_recipe.parent / "page.html"
    assert main(["compare", str(run), "--html", str(page)]) == 0
    assert "warning: small/1: may have collapsed or learned nothing: held-out hidden_mse" in capsys.readouterr().err
    (warning,) = re.findall(r'<section class="warning".*?</section>', page.read_text(encoding="utf-8"), re.DOTALL)
    last = held_out[-1]
    for value in (last["held_out/hidden_mse"], last["constant/hidden_mse"]):
        assert f'<data value="{value!r}">{value:.5g}</data>' in warning
    teacher, texts = pooled_states(run, None), len(pooled_states(run, None))
    values = np.linalg.svd((teacher - teacher.mean(0)) / teacher.std(0), compute_uv=False)
    shares = values[values > 1e-9 * values[0]] / values.sum()
    rank = float(np.exp(-(shares * np.log(shares)).sum()))
    assert [row["check/teacher_rank"] for row in held_out] == pytest.approx([rank] * len(held_out), rel=1e-4)
    assert held_out[0]["check/texts"] == texts
    student = pooled_states(run, run / "exports" / "initial")
    assert held_out[0]["check/student_dead_units"] == np.mean(student.std(0) == 0)


def test_the_summary_does_not_judge_what_training_did_not_judge(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two equal losses, one becomes active within the last tenth of the budget and is therefore not judged."""
    late = "losses.late={name: hidden_mse, active: [0.95, 1.0]}"
    assert main(["train", str(small_recipe), "training.budget.steps=20", "optimizer.lr=0", late]) == 0
    run = small_recipe.parent / "runs" / "small" / "1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (last,) = [row for row in rows if row["step"] == 20 and "held_out/loss" in row]
    assert last["held_out/late/hidden_mse"] > last["constant/late/hidden_mse"]
    assert {name for name in last if name.startswith("finding/")} == {"finding/hidden_mse"}
    capsys.readouterr()
    assert main(["summary", str(run)]) == 0
    texts = [capsys.readouterr().out, (run / "train.log").read_text(encoding="utf-8")]
    texts.append((run / "exports" / "final" / "README.md").read_text(encoding="utf-8"))
    for text in texts:
        assert "hidden_mse {held_out/hidden_mse:.5g} is no better than a constant".format_map(last) in text
        assert "late/hidden_mse {held_out/late/hidden_mse:.5g} is no better".format_map(last) not in text


def pooled_states(run: Path, export: Path | None) -> np.ndarray:
    """Mean-pooled last states of held-out texts by transformers: of the teacher, or of an export."""
    from transformers import AutoModel

    plan = make_plan(load_recipe(run / "recipe.yaml"))
    samples = np.arange(plan.task.num_samples("held_out"))
    batch = plan.task.batch("held_out", samples, np.zeros_like(samples))
    model = AutoModel.from_pretrained(export or plan.recipe.data["teacher"]["path"]).eval()
    mask = torch.arange(batch.input_ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
    with torch.no_grad():
        states = model(input_ids=batch.input_ids, attention_mask=mask.long()).last_hidden_state.double()
    return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


def variance_of_the_teacher(run: Path) -> float:
    """The variance of a component of the teacher's last states on held-out tokens, by transformers and NumPy alone."""
    from transformers import AutoModel

    plan = make_plan(load_recipe(run / "recipe.yaml"))
    samples = np.arange(plan.task.num_samples("held_out"))
    batch = plan.task.batch("held_out", samples, np.zeros_like(samples))
    teacher = AutoModel.from_pretrained(plan.recipe.data["teacher"]["path"]).eval()
    mask = torch.arange(batch.input_ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
    with torch.no_grad():
        states = teacher(input_ids=batch.input_ids, attention_mask=mask.long()).last_hidden_state
    return float(states[mask].double().numpy().var(0).mean())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.data.held_out=0", "validation.every=never"], "no held-out text"),
        (
            ["losses.hidden_mse=null", "losses.masked_lm={}", "teacher=null", "student.initialize=null"],
            "no teacher to compare its student with",
        ),
    ],
)
def test_runs_that_it_cannot_compare_are_told(
    small_recipe: Path, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "student.config={model_type: bert, vocab_size: 146, hidden_size: 16, num_hidden_layers: 1, "
    config += "num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 64}"
    folder = kdcore.train(small_recipe, [*overrides, *([config] if "teacher=null" in overrides else [])]).folder
    assert main(["summary", str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_without_metrics_and_with_a_loss_that_has_no_layers_the_table_is_shorter(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["tracking=[]", "losses.hidden_mse=null", "losses.soft_targets={}"]
    folder = kdcore.train(small_recipe, overrides).folder
    assert main(["summary", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "held-out" not in table
    assert "try next" not in table


ROWS = """
from kdcore import InputError, SummaryRows
class Rows(SummaryRows):
    def add_arguments(self, parser):
        parser.add_argument("--measure", choices=["nothing"])
    def rows(self, run):
        if run.arguments.measure:
            raise InputError("there is nothing to measure", where=str(run.folder))
        ids, lengths = run.task.sequences("held_out", [0, 1])
        blocks = f"{run.teacher.config.num_hidden_layers} and {run.student.config.num_hidden_layers}"
        return {"shape": f"{ids.shape} {len(lengths)}", "depth": blocks, "export": run.export.name}
"""


def test_packages_add_rows_and_one_that_fails_costs_no_other_row(
    small_recipe: Path, packages: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kdcore.train(small_recipe).folder
    capsys.readouterr()
    packages.install("kdcore-rows", {"kdcore.summary_rows:mine": "summary_rows_a:Rows"}, {"summary_rows_a.py": ROWS})
    fails = ROWS.replace("run.export", "run.none").replace("measure", "b")
    broken = {"summary_rows_b.py": "import no_such_module", "summary_rows_c.py": fails}
    packages.install("kdcore-broken", {"kdcore.summary_rows:broken": "summary_rows_b:Rows"}, broken)
    packages.install("kdcore-fails", {"kdcore.summary_rows:fails": "summary_rows_c:Rows"})
    clash = ROWS.replace("--measure", "--allow-imports")
    packages.install("kdcore-z", {"kdcore.summary_rows:z": "summary_rows_z:Rows"}, {"summary_rows_z.py": clash})
    assert main(["summary", str(folder)]) == 0
    captured = capsys.readouterr()
    titles = [line.partition("  ")[0] for line in captured.out.splitlines()]
    assert "(2, 48) 2" in captured.out
    assert "4 and 2" in captured.out
    core = ["held-out hidden_mse", "blocks", "parameters", "student", "try next"]
    assert [title for title in titles if title in core] == core
    others = {"warning", "inference speed", "embeddings", "similarities", "shape", "depth", "export"}
    assert set(titles) - set(core) == others
    assert titles[-2:] == ["student", "try next"]
    assert "`kdcore-broken:broken` are left out" in captured.err
    assert "no_such_module" in captured.err
    assert "`kdcore-fails:fails` are left out" in captured.err
    assert "`kdcore-z:z` are left out" in captured.err
    assert "conflicting option string: --allow-imports" in captured.err
    assert main(["summary", str(folder), "--measure", "nothing"]) == 2
    assert f"{folder}: there is nothing to measure" in capsys.readouterr().err
    monkeypatch.setattr(registry.summary_rows, "entries", list)
    assert main(["summary", str(folder)]) == 0
    assert [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["warning", *core]
