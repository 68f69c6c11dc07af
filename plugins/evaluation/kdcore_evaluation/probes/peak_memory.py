"""Peak memory of a process beyond its initial memory."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_FORGET_PEAK = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measure peak memory since construction: device memory on a GPU, resident memory of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._now()

    def reset(self) -> None:
        """Reset the peak, for example after loading a model."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            try:
                _FORGET_PEAK.write_text("5", encoding="ascii")
            except OSError:
                self._before = None  # otherwise the peak would include loading

    def peak(self) -> int | None:
        """Return the peak in bytes; None if it cannot be measured."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        most = _resident("VmHWM")
        return None if most is None or self._before is None else max(0, most - self._before)

    def _now(self) -> int | None:
        return 0 if self._device.type == "cuda" else _resident("VmRSS")


def _resident(key: str) -> int | None:
    """Read a size in bytes from Linux's status of this process."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None
