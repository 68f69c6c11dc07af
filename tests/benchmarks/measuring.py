"""How variants are timed: interleaved in one process, by the CPU time of a single thread, as ratios of medians.

Wall-clock time swings with whatever else the machine does; CPU time of one thread swings far less, and what is left
hits interleaved variants alike.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """CPU seconds of a variant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Longest minus shortest as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def single_thread() -> None:
    """Compute on one thread, whose CPU time then is the work that was done."""
    torch.set_num_threads(1)


def interleaved(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Run every variant once to warm up, then all in turn `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()
    for repeat in range(repeats):
        names = list(variants)
        for name in names if repeat % 2 == 0 else reversed(names):
            started = time.process_time()
            variants[name]()
            seconds[name].append(time.process_time() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> tuple[float, float, float]:
    """How many times as fast `fast` is: the median over pairs that ran side by side, and the extremes of it."""
    pairs = [a / b for a, b in zip(timings[slow].seconds, timings[fast].seconds, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


class MatrixMultiply:
    """The machine's limit: float32 products of a feed-forward layer's shape, without anything around them."""

    def __init__(self, rows: int, width: int = 768, inner: int = 3072) -> None:
        self.one, self.other = torch.randn(rows, width), torch.randn(width, inner)
        self.out = torch.empty(rows, inner)
        self.repeats = 4
        self.flops = 2.0 * rows * width * inner * self.repeats

    def __call__(self) -> None:
        """Multiply."""
        for _ in range(self.repeats):
            torch.mm(self.one, self.other, out=self.out)


class PeakMemory:
    """The peak of this process's memory from `reset` on, in MB; Linux only."""

    @staticmethod
    def reset() -> None:
        """Forget earlier peaks."""
        with open(f"/proc/{os.getpid()}/clear_refs", "w") as file:
            file.write("5")

    @staticmethod
    def read() -> dict[str, float]:
        """Peak, and what is in use now."""
        found = {}
        with open(f"/proc/{os.getpid()}/status") as file:
            for line in file:
                for key, name in (("VmHWM", "peak"), ("VmRSS", "now")):
                    if line.startswith(key):
                        found[name] = int(line.split()[1]) / 1024
        return found


def processor() -> str:
    """The CPU's name and those of its flags that matrix products depend on, for example "AMD EPYC 7B13, avx2 fma"."""
    with open("/proc/cpuinfo") as file:
        found = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines())
    values = {key.strip(): value.strip() for key, value in found.items()}
    flags = [one for one in values["flags"].split() if one.startswith(("avx", "fma", "amx"))]
    return f"{values['model name']}, {' '.join(flags)}"
