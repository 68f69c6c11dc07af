"""Commands that load a finished run: verify, export, debug batch, summary, predictions, evaluate."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import torch
from material import write_material
from recording import Setting
from safetensors.torch import load_file
from transformers import AutoModel

import kdcore
from kdcore.commands.main import main

SUITE = """\
name: gpu
tasks:
  mood:
    data:
      train: mood.csv
      text: text
      label: mood
      labels: [sad, glad]
      split: {validation: 0.2, test: 0.2}
      max_length: 24
learning_rates: [1.0e-2]
batch_sizes: [16]
seeds: [1]
budget: {epochs: 4}
references: []
"""


def run_command(setting: Setting, *arguments: str) -> str:
    """Run `kdcore ARGUMENTS` in this process, expect that it succeeds, and return its output."""
    with redirect_stdout(io.StringIO()) as output:
        code = main(list(arguments))
    setting.findings.expect(code == 0, f"kdcore {' '.join(arguments[:2])}: exit code {code}")
    return output.getvalue()


def write_moods(setting: Setting) -> Path:
    """Write labelled texts, whose first word decides the label, and a suite on them."""
    words = setting.folder.joinpath("text.txt").read_text(encoding="utf-8").split()
    lines = []
    for number in range(200):
        first = words[0] if number % 2 else words[1]
        lines.append(f"{first} {' '.join(words[number : number + 5])},{'glad' if number % 2 else 'sad'}")
    setting.folder.joinpath("mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    suite = setting.folder / "suite.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    return suite


def check_commands(setting: Setting) -> None:
    """Train a few steps, then run every command that loads the run, and compare what can be compared."""
    findings, folder = setting.findings, setting.folder
    recipe, suite = write_material(setting), write_moods(setting)
    settings = ["run.id=commands", "training.budget.steps=6", "checkpoints.every=3", "validation.every=3"]
    result = kdcore.train(recipe, settings)
    run = str(result.folder)
    run_command(setting, "checkpoint", "verify", run)
    run_command(setting, "export", run, str(folder / "export"))
    weights = [load_file(path / "model.safetensors") for path in (result.export, folder / "export")]
    equal = weights[0].keys() == weights[1].keys() and all(map(torch.equal, weights[0].values(), weights[1].values()))
    findings.expect(equal, "kdcore export: its weights differ from those of the run's own export")
    findings.note("export", len(weights[1]))
    findings.note("similarity", _compare_devices(setting, folder / "export"))
    report = run_command(setting, "debug", "batch", run, "2")
    findings.note("debug_batch_lines", len(report.splitlines()))
    findings.expect("hidden_mse" in report, "kdcore debug batch: the report contains no loss `hidden_mse`")
    findings.note("summary_lines", len(run_command(setting, "summary", run).splitlines()))
    _predictions(setting)
    output, processes = folder / "evaluations", "1" if setting.small else "2"
    run_command(setting, "evaluate", run, "--on", str(suite), "--output", str(output), "--processes", processes)
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [row["value"] for row in rows if row["metric"] == "accuracy" and row["split"] == "test"]
    findings.note("accuracy", scores)
    findings.expect(bool(scores) and all(0 <= score <= 1 for score in scores), f"kdcore evaluate: accuracies {scores}")


def _compare_devices(setting: Setting, export: Path) -> float:
    """Compare the exported model on the device with the CPU in float64."""
    model = AutoModel.from_pretrained(export).eval()
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        found = model.to(setting.device)(ids.to(setting.device)).last_hidden_state.double().cpu()
        expected = model.cpu().double()(ids).last_hidden_state
    error = float((found - expected).norm() / expected.norm())
    setting.findings.expect(error < 1e-4, f"the export computes something else on this device (error {error:.1e})")
    return error


def _predictions(setting: Setting) -> None:
    """Train a classifier, whose predictions are written at its end."""
    folder, recipe = setting.folder, setting.folder / "classify.yaml"
    recipe.write_text(
        f"""\
run: {{name: gpu, id: predictions, folder: {folder}/runs}}
student: {{initialize: {{from: {folder}/teacher}}}}
task:
  name: sequence_classification
  data:
    tokenizer: {folder}/teacher
    train: {folder}/mood.csv
    text: text
    label: mood
    labels: [sad, glad]
    split: {{validation: 0.2, test: 0.2}}
    max_length: 24
losses: {{classification: {{}}}}
optimizer: {{name: adamw, lr: 1.0e-3}}
training: {{budget: {{steps: 6}}, batch_size: 16}}
validation: {{every: 6}}
checkpoints: {{every: 6}}
tracking: [jsonl]
""",
        encoding="utf-8",
    )
    run = kdcore.train(recipe).folder
    scores = json.loads((run / "predictions" / "scores.json").read_text(encoding="utf-8"))
    setting.findings.note("predictions", scores)
