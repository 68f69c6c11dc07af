"""`kdcore evaluate --profile`: the trials are one array of jobs, and their scores come back."""

from __future__ import annotations

import json

SUITE = """\
seeds: [1, 2]
budget: {steps: 2}
recipe: {validation: {every: 2}}
"""


def test_fine_tunings_run_as_jobs_and_are_not_sent_twice(cluster, sender, teacher_folder, write_mood_suite):
    write_mood_suite(sender.folder, SUITE)
    profile = ["--profile", str(sender.profile(nodes=1, processes_per_node=1))]
    done = sender.kdcore("evaluate", str(teacher_folder), "--on", "suite.yaml", *profile)
    assert done.returncode == 0, done.stderr
    folder = sender.folder / "evaluations" / "tiny"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["seed"], row["split"]) for row in rows} == {(s, p) for s in (1, 2) for p in ("validation", "test")}
    for run in {folder / "cells" / row["cell"] for row in rows}:
        history = (run / "launch" / "history.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["event"] for line in history] == ["submitted", "start", "end"]
    again = sender.kdcore("evaluate", str(teacher_folder), "--on", "suite.yaml", *profile)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 trials are already finished" in again.stderr
    assert len(list((folder / "sweeps").iterdir())) == 1
