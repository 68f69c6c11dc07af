"""Mistakes of users with suites, runs and models: helpful messages, exit code 2, and nothing is measured."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kdcore_evaluation.run import pool
from kdcore_evaluation.run.evaluated_models import EvaluatedModel, find_models
from kdcore_evaluation.run.evaluator import Evaluation
from kdcore_evaluation.run.pool import run_and_wait
from kdcore_evaluation.run.suite import Suite
from kdcore_evaluation.run.trials import make_trials, read_task

from kdcore.commands.main import main
from kdcore.errors import InputError
from kdcore.recipe.loading import load_config
from kdcore.recipe.paths import shipped_recipes
from kdcore.training.runtime.shutdown import ending_on_request
from kdcore.utils.locks import locked

SUITE = """\
name: tiny
tasks:
  mood:
    data:
      train: mood.csv
      text: text
      label: mood
      labels: [sad, glad]
      split: {validation: 0.2, test: 0.2}
learning_rates: [1e-3, 1e-2]
seeds: [1, 2]
budget: {steps: 2}
probes:
  cost: {}
  linear: {texts: 30}
"""
RECIPE = """\
run: {name: small, id: 1}
seed: 3
teacher: {path: TEACHER}
student: {}
task: {name: masked_lm, data: data}
losses: {hidden_mse: {}}
training: {budget: {steps: 10}, batch_size: 8}
"""


@pytest.fixture
def project(tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose exports are the small teacher, a suite, and labelled texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = tmp_path / "runs" / "small" / "1"
    for export in ("budget-0.25", "budget-0.5", "final"):
        shutil.copytree(teacher_folder, run / "exports" / export)
    (run / "recipe.yaml").write_text(RECIPE.replace("TEACHER", str(teacher_folder)), encoding="utf-8")
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    lines = [f"{'very ' * (number % 7)}{'glad' if number % 2 else 'sad'} {number},{'glad' if number % 2 else 'sad'}"
             for number in range(60)]  # fmt: skip
    (tmp_path / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: tiny", "name: tiny\nmetrics: []", ["suite.yaml:2: metrics: unknown key"]),
        ("    data:", "    metric: acuracy\n    data:", ["suite.yaml:4: tasks.mood.metric", "allowed: accuracy, f1"]),
        ("    data:", "    metric: pearson\n    data:", ["tasks.mood", "cannot be used with labels that are classes"]),
        ("train: mood.csv", "train: mod.csv", ["mod.csv", "no such file"]),
        ("label: mood", "label: moood", ["mood.csv", "moood"]),
        (
            "labels: [sad, glad]",
            "labels: [sad, happy]",
            ["mood.csv: tasks.mood.data.labels", "line 3", "'glad'", "allowed: sad, happy"],
        ),
        ("split: {validation: 0.2, test: 0.2}", "max_length: 64", ["no labelled texts for validation", "split:"]),
        ("tasks:", "glue: {folder: ., tasks: [cola, nope]}\ntasks:", ["suite.yaml:2: glue.tasks.1", "'nope'", "sst2"]),
        ("seeds: [1, 2]", "seeds: [1, 1]", ["`seeds` names a value twice"]),
        ("seeds: [1, 2]", "recipe: {student: {}}", ["`recipe.student` is determined by the suite"]),
        ("seeds: [1, 2]", "recipe: {optimizer: {lrr: 1}}", ["recipes/", "optimizer.lrr", "unknown key"]),
        ("cost: {}", "costs: {}", ["suite.yaml:14: probes.costs", "Did you mean `cost`?"]),
    ],
)
def test_mistakes_of_a_suite(
    old: str, new: str, words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "suite.yaml").write_text(SUITE.replace(old, new), encoding="utf-8")
    assert main(["evaluate", "runs/small/1", "--on", "suite.yaml"]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message
    assert "Traceback" not in message
    assert not list(project.glob("evaluations/*/cells"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["empty"], "empty: this folder is empty"),
        (["no-such-model"], "the hub returned no such model"),
        (["./nowhere"], "no such folder"),
        (["runs/small/1", "--exports", "best"], "no student has been exported as best"),
        (["runs/small/1", "--exports", ","], "no export is named"),
        (["runs/small/1", "--processes", "0"], "at least 1"),
        (["seeds=[1]"], "no run or model is given"),
        (["runs/small/1", "--output", "mood.csv"], "mood.csv: the folder cannot be made"),
        (["runs/small/1", "--output", "mood.csv/below"], "mood.csv/below: the folder cannot be made"),
        (["runs/small/1", "seeds=x"], "override `seeds=x`"),
        (["runs/small/1", "--on", "kdcore:suites/quik.yaml"], "Did you mean `kdcore:suites/quick.yaml`?"),
    ],
)
def test_mistakes_of_the_command(
    arguments: list[str], words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--on", "suite.yaml", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message, message
    assert "Traceback" not in message


def test_two_evaluations_do_not_share_a_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(project / "evaluations" / "tiny" / ".lock"):
        assert main(["evaluate", "runs/small/1", "--on", "suite.yaml"]) == 2
    assert "another `kdcore evaluate` is running in this folder" in capsys.readouterr().err
    assert not list((project / "evaluations" / "tiny").iterdir())


def test_a_library_that_is_missing_is_told_before_anything_is_read(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    (project / "mood.csv").unlink()
    assert main(["evaluate", "runs/small/1", "--on", "suite.yaml"]) == 2
    assert "pip install kdcore-supervised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "code"), [((), 0), ((3, 2), 2), ((1, 3), 3), ((137,), 1), ((130,), 130), ((3, 130), 130)]
)
def test_the_exit_code_of_an_evaluation_follows_from_those_of_its_trials(codes: tuple[int, ...], code: int) -> None:
    failed = {f"trial {index}": own for index, own in enumerate(codes)}
    assert Evaluation(Path("evaluations"), [], failed).exit_code == code


def test_a_run_without_exports_is_an_error_alone_and_a_remark_beside_others(project: Path) -> None:
    shutil.copytree(project / "runs" / "small" / "1", project / "runs" / "small" / "2")
    shutil.rmtree(project / "runs" / "small" / "2" / "exports")
    remarks: list[str] = []
    found = find_models(["runs"], None, [], remarks.append)
    assert [model.name for model in found] == ["small/1"]
    assert any("small/2" in remark and "no student was exported yet" in remark for remark in remarks)


def test_of_an_unfinished_run_the_newest_export_is_taken_and_told(project: Path) -> None:
    shutil.rmtree(project / "runs" / "small" / "1" / "exports" / "final")
    remarks: list[str] = []
    (model,) = find_models(["runs/small/1"], None, [], remarks.append)
    assert (model.export, model.share) == ("budget-0.5", 0.5)
    assert "unfinished" in remarks[0]


def names(models: list[EvaluatedModel]) -> list[tuple[str, str, float | None]]:
    return [(model.name, model.role, model.share) for model in models]


def test_all_exports_and_what_they_are_measured_against(project: Path, teacher_folder: Path) -> None:
    found = find_models(["runs/small/1", "runs"], ["all"], ["teacher", "random"], lambda _: None)
    teacher = "/".join(teacher_folder.parts[-2:])
    assert names(found) == [
        ("small/1 budget-0.25", "student", 0.25),
        ("small/1 budget-0.5", "student", 0.5),
        ("small/1", "student", 1.0),
        (teacher, "teacher", None),
        ("random weights (bert, 4 blocks of 32)", "random", None),
    ]
    plain = find_models([str(teacher_folder)], None, ["teacher"], lambda _: None)
    assert names(plain) == [(teacher, "model", None)]


def test_the_student_before_training_is_a_reference_and_no_student(project: Path, teacher_folder: Path) -> None:
    export = project / "runs" / "small" / "1" / "exports" / "initial"
    shutil.copytree(export.parent / "final", export)
    remarks: list[str] = []
    found = find_models(["runs/small/1"], ["all"], ["random", "initial"], remarks.append)
    assert names(found)[-2:] == [
        ("small/1 before training", "initial", 0.0),
        ("random weights (bert, 4 blocks of 32)", "random", None),
    ]
    assert [model.export for model in found if model.role == "student"] == ["budget-0.25", "budget-0.5", "final"]
    assert names(find_models(["runs/small/1"], ["initial"], [], remarks.append))[0][1:] == ("student", 0.0)
    assert remarks == []
    for name in ("budget-0.25", "budget-0.5", "final"):
        shutil.move(export.parent / name, project / name)
    with pytest.raises(InputError, match="no student has been exported"):
        find_models(["runs/small/1"], None, [], remarks.append)
    remarks.clear()
    export.rename(export.parent / "final")
    assert len(find_models(["runs/small/1"], None, ["initial"], remarks.append)) == 1
    assert len(remarks) == 1
    assert remarks[0].endswith("the suite's reference `initial` is skipped: no exports/initial")


def test_trials_are_known_by_what_decides_them_and_not_by_where_it_lies(project: Path, tmp_path: Path) -> None:
    def ids(places: list[str], suite: str = SUITE) -> dict[str, list[str]]:
        (project / "suite.yaml").write_text(suite, encoding="utf-8")
        loaded = load_config("suite.yaml", Suite)
        tasks = {label: read_task(label, task) for label, task in loaded.all_tasks.items()}
        found = find_models(places, ["final"], loaded.references, lambda _: None)
        trials = make_trials(loaded, found, tasks, {})
        return {kind: [trial.id for trial in trials if trial.kind == kind] for kind in ("finetune", "cost", "linear")}

    before = ids(["runs/small/1"])
    assert [len(own) for own in before.values()] == [4, 1, 1]
    assert len({one for own in before.values() for one in own}) == 6
    shutil.move(project / "runs", project / "moved")
    shutil.copy(project / "mood.csv", project / "other.csv")
    assert ids(["moved/small/1"], SUITE.replace("mood.csv", "other.csv")) == before
    other = ids(["moved/small/1"], SUITE.replace("texts: 30", "texts: 31"))
    assert (other["finetune"], other["cost"]) == (before["finetune"], before["cost"])
    assert other["linear"] != before["linear"]
    assert not set(ids(["moved/small/1"], SUITE.replace("steps: 2", "steps: 3"))["finetune"]) & set(before["finetune"])
    more = ids(["moved/small/1"], SUITE.replace("seeds: [1, 2]", "seeds: [1, 2, 3]"))
    assert set(before["finetune"]) < set(more["finetune"])
    assert ids(["moved/small/1"], SUITE.replace("name: tiny", "name: renamed")) == before
    config = project / "moved" / "small" / "1" / "exports" / "final" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-6}))
    assert not set(ids(["moved/small/1"])["finetune"]) & set(before["finetune"])
    config.write_text((project / "moved" / "small" / "1" / "exports" / "budget-0.5" / "config.json").read_text())
    with (project / "mood.csv").open("a", encoding="utf-8") as file:
        file.write("one more,sad\n")
    assert not set(ids(["moved/small/1"])["finetune"]) & set(before["finetune"])


def test_files_that_register_a_model_are_known_by_their_content(project: Path) -> None:
    loaded = load_config("suite.yaml", Suite)
    tasks = {label: read_task(label, task) for label, task in loaded.all_tasks.items()}
    (model,) = find_models(["runs/small/1"], ["final"], [], lambda _: None)
    ids = []
    for folder, code in (("here", "pass"), ("there", "pass"), ("changed", "import os")):
        file = project / folder / "model.py"
        file.parent.mkdir()
        file.write_text(code, encoding="utf-8")
        trials = make_trials(loaded, [replace(model, imports=(str(file),))], tasks, {})
        ids.append({trial.id for trial in trials if trial.kind == "finetune"})
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]


def test_exports_of_one_architecture_share_what_inference_costs(project: Path) -> None:
    loaded = load_config("suite.yaml", Suite)
    weights = project / "runs" / "small" / "1" / "exports" / "budget-0.5" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = find_models(["runs/small/1"], ["budget-0.5", "final"], [], lambda _: None)
    trials = make_trials(loaded, found, {label: read_task(label, task) for label, task in loaded.all_tasks.items()}, {})
    assert len({trial.id for trial in trials if trial.kind == "cost"}) == 1
    assert len({trial.id for trial in trials if trial.kind == "linear"}) == 2


def test_shipped_suites_are_what_they_say() -> None:
    quick = load_config(shipped_recipes() / "suites" / "quick.yaml", Suite)
    assert list(quick.all_tasks) == ["sentiment"]
    glue = load_config(shipped_recipes() / "suites" / "glue.yaml", Suite, ["glue.folder=GLUE"])
    metrics = {label: task.main_metric for label, task in glue.all_tasks.items()}
    assert (metrics["cola"], metrics["stsb"], metrics["mrpc"], metrics["mnli"]) == (
        "matthews",
        "pearson",
        "f1",
        "accuracy",
    )


def test_the_suite_of_the_demo_holds_out_what_the_demo_does_not_train_on() -> None:
    assert load_config(shipped_recipes() / "suites" / "demo.yaml", Suite).seeds == []
    files = [shipped_recipes() / name for name in ("quickstart.yaml", "suites/demo.yaml")]
    demo, suite = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    trained = demo["task"]["data"]
    for probe in ("retrieval", "agreement"):
        data = suite["probes"][probe]["data"]
        same = ("held_out", "tokenizer", "seed")  # then the same documents are held out
        assert [data.get(key) for key in same] == [trained.get(key) for key in same]
        shown = [{key: value for key, value in corpus.items() if key != "weight"} for corpus in trained["corpora"]]
        assert all(corpus in data["corpora"] for corpus in shown if corpus["name"] != "labelled")
    tested = suite["tasks"]["sentiment"]["data"]
    (unlabelled,) = (corpus["data"] for corpus in trained["corpora"] if corpus["name"] == "labelled")
    assert unlabelled == {key: value for key, value in tested.items() if key != "max_length"}  # then the same split


def test_a_head_for_other_labels_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcore_evaluation.run import evaluator

    config = project / "runs" / "small" / "1" / "exports" / "final" / "config.json"
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **labels}), encoding="utf-8")
    monkeypatch.setattr(evaluator, "run_children", lambda *arguments: None)
    assert main(["evaluate", "runs/small/1", "--on", "suite.yaml"]) == 0
    assert "head for other labels (no, yes) than those of mood (sad, glad)" in capsys.readouterr().err


SAVING = """\
import os, pathlib, signal, sys, time
def save(*_):
    time.sleep(1)  # a checkpoint takes its time
    pathlib.Path(sys.argv[1]).write_text("saved", encoding="utf-8")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), signal.SIGTERM)
while True:
    signal.pause()
"""


def test_what_a_command_waits_for_may_save_its_state_when_it_is_interrupted(tmp_path: Path) -> None:
    with ending_on_request(), pytest.raises(KeyboardInterrupt):
        run_and_wait(["-c", SAVING, str(tmp_path / "state")])
    assert (tmp_path / "state").read_text(encoding="utf-8") == "saved"


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_a_command_that_a_signal_ended_has_an_exit_code_too(ending: str, code: int) -> None:
    assert run_and_wait(["-c", f"import os, signal, sys; {ending}"]) == code


SWEEP = """\
recipes: [sweep-recipe.yaml]
axes: {seed: [1, 2]}
suite: suite.yaml
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("suite: suite.yaml", "suite: suit.yaml", "suit.yaml"),
        ("seed: [1, 2]", "seed: []", "axes.seed: the axis `seed` has no values"),
        ("seed: [1, 2]", "seed: [1, '1']", "axes.seed: the axis `seed` has duplicate values"),
        ("seed: [1, 2]", "run.id: [a, b]", "`run.id` cannot be an axis, it is set by the sweep"),
        ("suite: suite.yaml", "suite: suite.yaml\nsuite_overrides: {seedz: [1]}", "seedz: unknown key"),
    ],
)
def test_mistakes_of_a_sweep_are_told_before_anything_is_trained(
    old: str, new: str, words: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[object] = []
    monkeypatch.setattr(pool, "run_children", lambda *arguments: trained.append(arguments))
    monkeypatch.setattr(pool, "run_and_wait", trained.append)
    (project / "sweep-recipe.yaml").write_text((project / "runs/small/1/recipe.yaml").read_text(), encoding="utf-8")
    (project / "sweep.yaml").write_text(SWEEP.replace(old, new), encoding="utf-8")
    assert main(["sweep", "sweep.yaml"]) == 2
    message = capsys.readouterr().err
    assert words in message, message
    assert not trained
