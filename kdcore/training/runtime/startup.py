"""Measure how long each part of starting a run takes."""

from __future__ import annotations

import os
import time


class StartupTimer:
    """Seconds of each part of a start; the first part is the time before this object was created."""

    def __init__(self, first: str) -> None:
        """Attribute the process's time so far to `first`, such as imports."""
        self._last = time.monotonic()
        self._parts = {first: _age_of_process()}

    def done(self, part: str) -> None:
        """Attribute the time since the last call to `part`."""
        now = time.monotonic()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        total = sum(self._parts.values())
        return f"started in {total:.1f} s: " + ", ".join(f"{part} {spent:.1f} s" for part, spent in self._parts.items())


def _age_of_process() -> float:
    """Return the seconds since the operating system started this process; 0 if unknown."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
