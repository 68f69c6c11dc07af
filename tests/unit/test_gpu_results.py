"""How checks on a GPU are run and recorded, with checks that need neither torch nor a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FACTS = {
    "suite": "test",
    "card": "a card",
    "date": "2026-01-02",
    "versions": {"torch": "2.13.0", "transformers": "5.23"},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of tests/gpu."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    before = set(sys.modules)
    import recording
    import run
    import table

    yield type("Modules", (), {"recording": recording, "run": run, "table": table})
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "tests" / "gpu")):
            del sys.modules[name]


def check(gpu: Any, name: str, code: str, seconds: float = 20.0) -> Any:
    """A check whose process runs `code` with `file`, where its findings go."""
    program = f"import json, os, sys, time; file = sys.argv[1]\n{code}"
    return gpu.recording.Check(name, seconds, [sys.executable, "-S", "-c", program])


def found(values: dict[str, Any], *failures: str) -> str:
    return f"open(file, 'w').write({json.dumps(json.dumps({'values': values, 'failures': failures}))})\n"


def run_all(gpu: Any, tmp_path: Path, *checks: Any, seconds: float = 60.0) -> tuple[bool, list[dict[str, Any]]]:
    file = tmp_path / "results" / "test.jsonl"
    passed = gpu.recording.run_checks(checks, seconds, FACTS, file, os.environ)
    return passed, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_failed_check_does_not_prevent_the_next_one(gpu: Any, tmp_path: Path) -> None:
    passed, lines = run_all(
        gpu,
        tmp_path,
        check(gpu, "good", found({"error": 0.5})),
        check(gpu, "wrong", found({"error": 2}, "error 2, expected below 1", "another")),
        check(gpu, "crashed", found({"cases": 3}) + "os.abort()"),
        check(gpu, "raised", "raise ValueError('no memory')"),
        check(gpu, "last", found({})),
    )
    assert not passed
    assert [line["passed"] for line in lines] == [True, False, False, False, True]
    assert lines[0] == {**FACTS, "check": "good", "passed": True, "error": None, "values": {"error": 0.5}} | {
        "seconds": lines[0]["seconds"]
    }
    assert lines[1]["error"] == "error 2, expected below 1; another"
    assert lines[2]["error"].startswith("exit code -6")
    assert lines[2]["values"] == {"cases": 3}
    assert lines[3]["error"] == "exit code 1: ValueError: no memory"
    assert run_all(gpu, tmp_path / "2", check(gpu, "good", found({})))[0]


def test_a_hanging_check_is_killed_with_its_children_and_keeps_its_values(gpu: Any, tmp_path: Path) -> None:
    code = found({"pid": 1}) + "child = os.fork()\n"
    code += f"child and open({str(tmp_path / 'child')!r}, 'w').write(str(child))\ntime.sleep(60)"
    started = time.monotonic()
    passed, lines = run_all(gpu, tmp_path, check(gpu, "hangs", code, seconds=1.5), check(gpu, "next", found({})))
    assert time.monotonic() - started < 20
    assert not passed
    assert lines[0]["error"].startswith("killed after")
    assert lines[0]["values"] == {"pid": 1}
    assert lines[1]["passed"]
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_checks_that_would_begin_too_late_are_recorded_as_not_run(gpu: Any, tmp_path: Path) -> None:
    hanging = check(gpu, "long", "time.sleep(60)", seconds=60)
    passed, lines = run_all(gpu, tmp_path, hanging, check(gpu, "late", found({})), seconds=1.2)
    assert not passed
    assert lines[0]["passed"] is False
    assert (lines[1]["check"], lines[1]["passed"], lines[1]["error"]) == ("late", None, "not run: out of time")


def test_every_line_is_on_disk_before_the_next_check(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "results" / "test.jsonl"
    code = (
        f"lines = open({str(file)!r}).read().splitlines()\nassert len(lines) == 1 and json.loads(lines[0])['passed']\n"
    )
    passed, _ = run_all(gpu, tmp_path, check(gpu, "first", found({})), check(gpu, "second", code + found({})))
    assert passed


@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_without_a_gpu_one_sentence_is_printed(target: str, tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = ["make", "-s", target, f"PYTHON={sys.executable}", f"GPU_RESULTS={tmp_path / 'results'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"make {target}: skipped, because torch finds no GPU.\n"
    assert not (tmp_path / "results").exists()


def test_missing_packages_are_named(gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    versions = {"torch": "2.11.0", "deepspeed": None, "kdcore": "0.1.0"}
    monkeypatch.setattr(gpu.run, "examine", lambda: {"card": "a card", "versions": versions})
    monkeypatch.setattr(sys, "argv", ["run.py", "test"])
    assert gpu.run.main() == 1
    assert "not installed: deepspeed. Hint: docs/offline.md" in capsys.readouterr().out


def test_the_suites_fit_into_four_minutes(gpu: Any) -> None:
    assert gpu.run.SECONDS <= 240
    child = (ROOT / "tests" / "gpu" / "child.py").read_text(encoding="utf-8")
    for suite in gpu.run.SUITES.values():
        for name in suite:
            assert f'"{name.split()[0]}": "check_' in child


def test_the_page_shows_the_recorded_results(gpu: Any) -> None:
    page = gpu.table.PAGE.read_text(encoding="utf-8")
    text = gpu.table.tables(gpu.table.newest_results(gpu.table.RESULTS))
    assert gpu.table.with_tables(page, text) == page, "run python tests/gpu/table.py"
    assert page.count(gpu.table.BEGIN) == page.count(gpu.table.END) == 1


def test_tables_show_the_newest_file_of_each_card(gpu: Any, tmp_path: Path) -> None:
    assert gpu.table.tables(gpu.table.newest_results(tmp_path)) == "No results recorded yet."
    line = {**FACTS, "check": "versions", "passed": True, "error": None, "seconds": 3.4, "values": {}}
    cell = {
        "sequences": 256,
        "length": 128,
        "padding": 0.3,
        "dropout": 0.1,
        "ratio": 1.504,
        "tokens_per_second": 123456.7,
    }
    cell |= {"mfu": None, "mfu_measured": 0.4449, "ours_gb": 3.21, "plain_gb": "out of memory"}
    speed = line | {"suite": "bench", "check": "speed hidden_mse", "values": {"cells": [cell]}}
    old = line | {"passed": False, "error": "older"}
    other = line | {"card": "other", "passed": None, "error": "not run: out of time"}
    failed = line | {"check": "training", "passed": False, "error": "a|b"}
    files = {
        "test-20260102T000000": [line, failed],
        "test-20260101T000000": [old],
        "test-2025": [other],
        "bench-2": [speed],
    }
    for name, lines in files.items():
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (tmp_path / f"{name}.jsonl").write_text(text + '{"check": "cut sh', encoding="utf-8")
    assert gpu.table.tables(gpu.table.newest_results(tmp_path)).splitlines() == [
        "| check | card | software | date | time | result |",
        "| --- | --- | --- | --- | --- | --- |",
        "| speed hidden_mse | a card | torch 2.13.0, transformers 5.23 | 2026-01-02 | 3 s | passed |",
        "| versions | a card | torch 2.13.0, transformers 5.23 | 2026-01-02 | 3 s | passed |",
        "| training | a card | torch 2.13.0, transformers 5.23 | 2026-01-02 | 3 s | failed: a/b |",
        "| versions | other | torch 2.13.0, transformers 5.23 | 2026-01-02 | 3 s | not run: out of time |",
        "",
        "| card | objective | batch | padding | dropout | times bare encoders | tokens/s | MFU (data sheet) "
        "| MFU (measured peak) | GB, kdcore / bare |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a card | hidden_mse | 256 x 128 | 30% | 0.1 | 1.50 | 123,457 | - | 0.44 | 3.2 / out of memory |",
    ]
