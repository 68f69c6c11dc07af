"""docs/benchmarks/history.json: what `make bench` appends, and its figures against docs/performance.md."""

from __future__ import annotations

import datetime
import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
HISTORY = json.loads((ROOT / "docs" / "benchmarks" / "history.json").read_text(encoding="utf-8"))
KEYS = {"date", "commit", "command", "name", "against", "padding", "ratio", "lowest", "highest"}
HISTORY_MODULE = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "history.py"))


def test_every_record_has_a_date_a_commit_and_a_ratio_within_its_range() -> None:
    for record in HISTORY:
        assert set(record) == KEYS
        assert datetime.date.fromisoformat(record["date"])
        assert re.fullmatch(r"[0-9a-f]{7}\+?", record["commit"])
        assert 0 < record["lowest"] <= record["ratio"] <= record["highest"]
    assert [record["date"] for record in HISTORY] == sorted(record["date"] for record in HISTORY)


def test_the_newest_steps_are_those_of_the_page_on_performance() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = page.partition("| objective | padding | bare | plain |")[2].partition("\n\n")[0]
    steps = [record for record in HISTORY if record["command"] == "bench_steps.py"]
    newest = [record for record in steps if record["commit"] == steps[-1]["commit"]]
    assert len(newest) == 20
    for record in newest:
        assert f"{record['ratio']:.2f} ({record['lowest']:.2f} to {record['highest']:.2f})" in table


def test_rows_of_benchmarks_are_recorded(tmp_path: Path) -> None:
    steps = {"objective": "hidden_mse", "padding": 0.298, "bare": "1.50 (1.40 to 1.60)", "plain": "1.90 (1.80 to 2.00)"}
    losses = {"loss": "soft_targets", "padding": 0.0, "speed": 5.5, "lowest": 5.0, "highest": 6.0, "memory": 0.2}
    file = tmp_path / "history.json"
    file.write_text("[]\n", encoding="utf-8")
    for command, row in (("bench_steps.py", steps), ("bench_losses.py", losses)):
        output = ['{"processor": "x"}\n', "a warning\n", json.dumps(row) + "\n"]
        found = HISTORY_MODULE["records"](command, output, datetime.date(2026, 1, 2), "abcdef1")
        HISTORY_MODULE["append"](file, found)
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert all(set(row) == KEYS for row in rows)
    assert [
        tuple(row[key] for key in ("name", "against", "padding", "ratio", "lowest", "highest")) for row in rows
    ] == [
        ("hidden_mse", "bare", 0.3, 1.5, 1.4, 1.6),
        ("hidden_mse", "plain", 0.3, 1.9, 1.8, 2.0),
        ("soft_targets", "plain", 0.0, 5.5, 5.0, 6.0),
    ]


def test_plots_show_every_record() -> None:
    files = runpy.run_path(str(ROOT / "docs" / "site" / "benchmark_page.py"))["benchmark_files"](HISTORY)
    plots = "".join(text for name, text in files.items() if name.endswith(".svg"))
    assert plots.count("<circle") - plots.count('r="4"') == len(HISTORY)
    page = files["benchmark-history.md"]
    for record in HISTORY:
        assert f"{record['ratio']:.2f} ({record['lowest']:.2f} to {record['highest']:.2f}) |" in page
    assert all(f"]({name})" in page for name in files if name.endswith(".svg"))
