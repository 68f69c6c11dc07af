"""Deprecated names of the conformance checks, which the package kdcore-testing provides."""

from __future__ import annotations

from typing import Any

from kdcore.deprecated import moved_name


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return moved_name(f"kdcore.testing.{name}", "kdcore_testing", "kdcore-testing")
