"""Measure how long each part of starting a run takes."""

from __future__ import annotations

import time


class StartupTimer:
    """Seconds of each part of a start."""

    def __init__(self, first: str, began: float) -> None:
        """Attribute the time since `began` on the monotonic clock to the part `first`, such as imports."""
        self._last = time.monotonic()
        self._parts = {first: self._last - began}

    def done(self, part: str) -> None:
        """Attribute the time since the last call to `part`."""
        now = time.monotonic()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        total = sum(self._parts.values())
        return f"started in {total:.1f} s: " + ", ".join(f"{part} {spent:.1f} s" for part, spent in self._parts.items())
