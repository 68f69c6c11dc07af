"""Collects what the resume matrix measured and prints it as a table at the end."""

from __future__ import annotations

from typing import Any

import pytest

ROWS = pytest.StashKey[list[tuple[str, ...]]]()
HEADER = ("precision", "ZeRO", "processes", "losses", "held-out", "weights", "verdict")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Any:
    """Takes one row of the table."""
    rows = request.config.stash.setdefault(ROWS, [])

    def add(*row: str) -> None:
        rows.append(row)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table; a sample prints a shorter one."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("resume matrix: largest relative difference to the undisturbed run")
        table = [HEADER, *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())
