"""`kdcore launch` from its arguments to the input of sbatch, and the mistakes that it reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

SEND = ("launch", "recipe.yaml", "--profile", "profile.yaml", "profile.snapshot=false")


def script(slurm) -> str:
    """What sbatch was given."""
    return Path(slurm.calls("sbatch")[-1]).read_text(encoding="utf-8")


def refused(done: tuple[int, str, str]) -> str:
    code, _, said = done
    assert code == 2, said
    return said


def test_a_profile_becomes_an_sbatch_script(slurm, project, kdcore):
    code, text, _ = kdcore(*SEND, "--dry-run")
    assert code == 0
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --mem=100G",
        "#SBATCH --time=3600",
        "#SBATCH --constraint=a100",
        "#SBATCH --exclusive",
        "#SBATCH --mail-type=END",
        "#SBATCH --signal=USR2@300",
        "#SBATCH --requeue",
        "module load cuda",
    ):
        assert line in text.splitlines()
    assert slurm.calls("sbatch") == []
    assert not (project / "runs").exists()


def test_a_dry_run_needs_no_slurm(slurm, project, kdcore):
    for program in ("sbatch", "srun", "scontrol", "squeue"):
        slurm.remove(program)
    code, text, _ = kdcore(*SEND, "--dry-run")
    assert code == 0
    assert "submitit" in text


def test_sending_says_what_was_sent_and_how_to_follow_it(slurm, project, kdcore):
    code, said, _ = kdcore(*SEND, "training.batch_size=16")
    assert code == 0
    run = project / "runs" / "hidden" / "1"
    assert "job 7: hidden" in said
    assert f"run      {run}" in said
    assert f"tail -F {run}/launch/7_0_log.out" in said
    assert "scancel 7" in said
    assert "#SBATCH --job-name=hidden" in script(slurm)
    note = json.loads((run / "launch" / "submission.json").read_text(encoding="utf-8"))
    assert note["jobs"] == [
        {"folder": str(run), "arguments": ["train", str(project / "recipe.yaml"), "training.batch_size=16"]}
    ]


def test_a_snapshot_is_what_the_job_runs(slurm, project, kdcore):
    (project / "own.py").write_text("import kdcore\n", encoding="utf-8")
    code, _, said = kdcore(*SEND[:-1], "imports=[own.py]", "training.batch_size=16")
    assert code == 0, said
    launch = project / "runs" / "hidden" / "1" / "launch"
    recipe = (launch / "recipe.yaml").read_text(encoding="utf-8")
    assert "batch_size: 16" in recipe
    assert str(launch / "imports" / "0" / "own.py") in recipe
    assert f"export PYTHONPATH={launch}/code" in script(slurm)
    assert (launch / "code" / "kdcore" / "registry.py").is_file()
    assert (launch / "code" / "kdcore_launch" / "process.py").is_file()
    assert list((launch / "code").glob("kdcore_launch-*.dist-info/entry_points.txt"))


def test_a_sweep_is_an_array_with_a_limit(slurm, project, kdcore):
    code, said, _ = kdcore(*SEND, "--sweep", "seed=1,2,3", "--parallel", "2", "--name", "seeds")
    assert code == 0
    assert "#SBATCH --array=0-2%2" in script(slurm)
    for number in range(3):
        assert f"7_{number}" in said
    runs = project / "runs"
    assert sorted(path.name for path in (runs / "hidden").iterdir()) == ["seed=1", "seed=2", "seed=3"]
    assert f"kdcore launch --resume {runs}/sweeps/seeds" in said
    assert "a sweep with this name already exists" in refused(kdcore(*SEND, "--sweep", "seed=4", "--name", "seeds"))


def test_a_recipe_in_a_folder_of_a_sweep_can_be_sent(slurm, project, kdcore):
    (project / "seed=1").mkdir()
    (project / "recipe.yaml").rename(project / "seed=1" / "recipe.yaml")
    code, _, said = kdcore("launch", "seed=1/recipe.yaml", *SEND[2:], "seed=3")
    assert code == 0, said
    note = json.loads((project / "runs/hidden/1/launch/submission.json").read_text(encoding="utf-8"))
    assert note["jobs"][0]["arguments"] == ["train", str(project / "seed=1" / "recipe.yaml"), "seed=3"]


def test_a_value_may_be_longer_than_the_name_of_a_file(slurm, project, kdcore):
    losses = f"losses={{masked_lm: {{weight: 1.{'0' * 300}}}}}"
    code, _, said = kdcore(*SEND, losses)
    assert code == 0, said
    note = json.loads((project / "runs/hidden/1/launch/submission.json").read_text(encoding="utf-8"))
    assert note["jobs"][0]["arguments"][2:] == [losses]


def test_resuming_a_sweep_sends_what_has_not_finished(slurm, project, kdcore, write_history):
    assert kdcore(*SEND, "--sweep", "seed=1,2,3,4", "--name", "seeds")[0] == 0
    runs = project / "runs" / "hidden"
    (runs / "seed=1" / "exports" / "final").mkdir(parents=True)
    write_history(runs / "seed=2", {"event": "end", "job": "7_1", "code": 1, "requeued": False})
    write_history(runs / "seed=3", {"event": "start", "job": "7_2"})
    write_history(runs / "seed=4", {"event": "start", "job": "7_3"})  # and SLURM no longer knows it
    slurm.answer("squeue", "echo 7_2 RUNNING")
    slurm.answer("sbatch", "echo Submitted batch job 8")
    code, said, _ = kdcore("launch", "--resume", "runs/sweeps/seeds")
    assert code == 0
    assert f"{runs}/seed=1: finished, not resubmitted" in said
    assert f"{runs}/seed=3: running, not resubmitted" in said
    assert f"8_0      {runs}/seed=2" in said
    assert f"8_1      {runs}/seed=4" in said
    assert "#SBATCH --array=0-1%" in script(slurm)


def test_one_cell_of_a_sweep_can_be_sent_again_alone(slurm, project, kdcore, write_history):
    assert kdcore(*SEND, "--sweep", "seed=1,2", "--name", "seeds")[0] == 0
    write_history(project / "runs/hidden/seed=2", {"event": "end", "job": "7_1", "code": 1, "requeued": False})
    slurm.answer("sbatch", "echo Submitted batch job 8")
    code, said, _ = kdcore("launch", "--resume", "runs/hidden/seed=2")
    assert code == 0
    assert "job 8: hidden" in said


def test_waiting_ends_with_the_exit_code_of_the_run(slurm, project, kdcore):
    slurm.answer("sbatch", "echo Submitted batch job 7")
    run = project / "runs" / "hidden" / "1"
    line = json.dumps({"event": "end", "job": "7", "time": 0, "code": 3, "requeued": False})
    slurm.answer("scontrol", f"echo '{line}' >> {run}/launch/history.jsonl; echo JobId=7 JobState=FAILED ExitCode=3:0")
    assert kdcore(*SEND, "--wait")[0] == 3


def test_waiting_tells_that_the_nodes_do_not_see_the_folder(slurm, project, kdcore):
    slurm.answer("scontrol", "echo JobId=7 JobState=FAILED NodeList=node3 ExitCode=0:53")
    said = refused(kdcore(*SEND, "--wait"))
    assert "could not open its files on node3: the nodes cannot access the run folder" in said
    assert "run.folder" in said


def test_a_job_that_vanished_is_the_machines_failure(slurm, project, kdcore):
    slurm.answer("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    code, _, said = kdcore(*SEND, "--wait")
    assert code == 1
    assert "ended without recording an exit code" in said


def test_preparing_data_is_an_array_of_its_parts(slurm, project, kdcore):
    command = ("launch", "--prepare", "data.yaml", "out", "--tasks", "3", "--profile", "profile.yaml")
    code, _, said = kdcore(*command, "profile.snapshot=false")
    assert code == 0, said
    assert "#SBATCH --array=0-2%3" in script(slurm)
    assert "#SBATCH --nodes=1" in script(slurm)
    note = json.loads((project / "out-jobs" / "submission.json").read_text(encoding="utf-8"))
    data, out = str(project / "data.yaml"), str(project / "out")
    common = ["prepare", data, out, "--workers", "6", "--task"]
    assert [job["arguments"] for job in note["jobs"]] == [[*common, f"{number}/3"] for number in (1, 2, 3)]


CACHE = ("launch", "--cache", "recipe.yaml", "out", "--profile", "profile.yaml", "--tasks", "3")


def test_caching_a_teacher_is_an_array_of_its_parts_on_one_gpu_each(slurm, project, kdcore):
    options = ["--cache-options", "--values bf16 --sweep 'seed=1,2'"]
    code, _, said = kdcore(*CACHE, "profile.snapshot=false", "--parallel", "2", "training.batch_size=4", *options)
    assert code == 0, said
    lines = script(slurm).splitlines()
    for line in ("array=0-2%2", "nodes=1", "ntasks-per-node=1", "gpus-per-node=1", "requeue", "job-name=cache-out"):
        assert f"#SBATCH --{line}" in lines
    note = json.loads((project / "out-jobs" / "submission.json").read_text(encoding="utf-8"))
    common = ["teacher", "cache", str(project / "recipe.yaml"), str(project / "out"), "training.batch_size=4"]
    common += ["--values", "bf16", "--sweep", "seed=1,2", "--task"]
    assert [job["arguments"] for job in note["jobs"]] == [[*common, f"{number}/3"] for number in (1, 2, 3)]
    slurm.answer("sbatch", "echo Submitted batch job 8")
    assert kdcore("launch", "--resume", "out-jobs")[0] == 0
    again = json.loads((project / "out-jobs" / "submission.json").read_text(encoding="utf-8"))
    assert again == note


def test_a_dry_run_shows_the_script_of_caching_and_writes_nothing(slurm, project, kdcore):
    code, text, said = kdcore(*CACHE, "--dry-run")
    assert code == 0, said
    assert "#SBATCH --array=0-2%3" in text
    assert not (project / "out-jobs").exists()
    assert slurm.calls("sbatch") == []


def test_the_parts_of_a_cache_read_the_recipe_as_it_was_submitted(slurm, project, kdcore):
    code, _, said = kdcore(*CACHE, "training.batch_size=4")
    assert code == 0, said
    note = json.loads((project / "out-jobs" / "submission.json").read_text(encoding="utf-8"))
    copy = project / "out-jobs" / "recipe.yaml"
    assert note["jobs"][0]["arguments"] == ["teacher", "cache", str(copy), str(project / "out"), "--task", "1/3"]
    assert "batch_size: 4" in copy.read_text(encoding="utf-8")


REFUSED = {
    "sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job submission failed: Invalid partition": [
        "invalid partition specified: gpu",
        "allowed: debug, long",
        "profile.partition=",
    ],
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified": [
        "Invalid account",
        "allowed: mine",
    ],
    "sbatch: error: Batch job submission failed: Requested node configuration is not available": [
        "Requested node configuration is not available",
        "--dry-run",
    ],
}


@pytest.mark.parametrize("words", REFUSED)
def test_sbatchs_own_words_are_shown(slurm, project, kdcore, words):
    slurm.answer("sbatch", f"echo '{words}' >&2; exit 1")
    slurm.answer("sinfo", "echo debug; echo long")
    slurm.answer("sacctmgr", "echo mine")
    said = refused(kdcore(*SEND))
    assert all(word in said for word in REFUSED[words]), said
    assert said.count("error: ") - words.count("error: ") == 1
    assert not (project / "runs").exists()


def test_a_controller_that_does_not_answer_is_the_machines_failure(slurm, project, kdcore):
    slurm.answer("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    code, _, said = kdcore(*SEND)
    assert code == 1
    assert "Unable to contact slurm controller" in said


def test_without_slurm_the_way_out_is_told(slurm, project, kdcore, monkeypatch):
    slurm.remove("sbatch")
    slurm.remove("srun")
    monkeypatch.setenv("PATH", str(slurm.folder))
    said = refused(kdcore(*SEND))
    assert "SLURM is not available on this machine: sbatch, srun not found" in said
    assert "--local" in said


def test_a_run_that_is_in_the_queue_is_not_sent_twice(slurm, project, kdcore):
    assert kdcore(*SEND)[0] == 0
    slurm.answer("squeue", "echo 7 PENDING")
    said = refused(kdcore(*SEND))
    assert "the run is already queued as job 7 (PENDING)" in said
    assert "scancel 7" in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("JobId=9 JobState=RUNNING UserId=somebody(12) Comment=x", "it belongs to somebody"),
        ("JobId=9 JobState=RUNNING UserId=$USER_NAME(0) Comment=(null)", "it was submitted by another program"),
    ],
)
def test_a_job_that_is_not_ours(slurm, project, kdcore, monkeypatch, fields, words):
    import getpass

    slurm.answer("scontrol", f"echo '{fields.replace('$USER_NAME', getpass.getuser())}'")
    said = refused(kdcore("launch", "--resume", "9"))
    assert "job 9 is not one of your `kdcore launch` jobs" in said
    assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["launch", "recipe.yaml"], ["a profile with the resources of the job is required", "slurm-8xa100"]),
        (["launch", "--profile", "profile.yaml"], ["a recipe is required"]),
        (
            ["launch", "recipe.yaml", "--profile", "no.yaml"],
            ["profile `no.yaml` is neither an existing file nor shipped"],
        ),
        ([*SEND, "profile.gpus=2"], ["gpus", "gpus_per_node"]),
        ([*SEND, "trainig.batch_size=2"], ["trainig", "training"]),
        ([*SEND, "optimizer.lr=fast"], ["optimizer.lr"]),
        (["launch", "--resume", "nowhere"], ["the folder has no submission"]),
        (["launch", "--resume", "x", "recipe.yaml"], ["does not accept a recipe"]),
        (
            ["launch", "recipe.yaml", "--local", "--profile", "profile.yaml"],
            ["the profile has 2 nodes, but --local runs on one"],
        ),
        (["launch", "recipe.yaml", "--local", "--sweep", "seed=1,2"], ["--sweep requires SLURM"]),
        (["launch", "--prepare", "data.yaml", "--profile", "profile.yaml"], ["must be used together"]),
        (
            ["launch", "--prepare", "data.yaml", "--tasks", "2", "--profile", "profile.yaml"],
            ["requires exactly one output folder, found 0"],
        ),
        (["launch", "--cache", "recipe.yaml", "out", "--profile", "profile.yaml"], ["must be used together"]),
        ([*CACHE, "other"], ["--cache: requires exactly one output folder, found 2"]),
        ([*CACHE, "--cache-options", "--values fp8"], ["--cache-options: argument --values: invalid choice: 'fp8'"]),
        ([*CACHE, "--cache-options", "--task 1/2"], ["are set by `--tasks N`"]),
        ([*CACHE, "--local"], ["--cache requires SLURM"]),
        ([*CACHE, "trainig.batch_size=2"], ["trainig", "training"]),
        ([*SEND, "--tasks", "2"], ["--tasks: requires `--prepare DATA.yaml` or `--cache RECIPE`"]),
        ([*SEND, "--name", "x"], ["valid for a sweep only"]),
        ([*SEND, "--parallel", "0"], ["--parallel: must be at least 1, found 0"]),
    ],
)
def test_mistakes_are_told_and_nothing_is_sent(slurm, project, kdcore, arguments, words):
    said = refused(kdcore(*arguments))
    assert all(word in said for word in words), said
    assert slurm.calls("sbatch") == []
    assert not (project / "runs").exists()


def test_inside_of_a_job_its_variables_do_not_leak_into_the_next(slurm, project, kdcore, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("RANK", "0")
    seen = slurm.folder / "environment"
    slurm.answer("sbatch", f"env > {seen}; echo Submitted batch job 7")
    assert kdcore(*SEND)[0] == 0
    names = {line.partition("=")[0] for line in seen.read_text(encoding="utf-8").splitlines()}
    assert "SLURM_CONF" in names
    assert not {"SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "RANK"} & names
    assert os.environ["SLURM_JOB_ID"] == "3"


def test_runs_list_reads_the_queue_of_slurm(slurm, project, kdcore, write_history):
    runs = project / "runs" / "hidden"
    for name, job in (("seed=1", "7_1"), ("seed=2", "7_2"), ("seed=3", "7_3")):
        write_history(runs / name, {"event": "start", "job": job})
    slurm.answer("squeue", "echo 7_1 RUNNING; echo 7_2 PENDING; echo slurm_load_jobs warning about nothing")
    code, said, _ = kdcore("runs", "list")
    assert code == 0
    assert dict(line.split()[:2] for line in said.splitlines()[1:]) == {
        "hidden/seed=1": "running",
        "hidden/seed=2": "queued",
        "hidden/seed=3": "lost",
    }
    slurm.answer("squeue", "exit 1")
    _, said, _ = kdcore("runs", "list")
    assert [line.split()[1] for line in said.splitlines()[1:]] == ["running"] * 3, "without a queue the history counts"


def test_the_queue_is_available_under_its_old_name():
    import kdcore_launch.slurm_queries

    import kdcore

    with pytest.warns(DeprecationWarning, match=r"use `kdcore_launch\.slurm_queries\.slurm_queue`"):
        assert kdcore.slurm_queue is kdcore_launch.slurm_queries.slurm_queue
