"""What the machine is, and how many GPUs a process touches."""

from __future__ import annotations

import ctypes
import inspect
import os
import subprocess
from contextlib import suppress

import torch
from material import write_material
from recording import Setting

import kdcore
from kdcore.training.runtime.distributed import find_accelerator


def check_versions(setting: Setting) -> None:
    """Note capability, memory and attention kernels; DeepSpeed must use the same device as torch."""
    findings = setting.findings
    found = find_accelerator().device_name()
    findings.note("deepspeed_device", found)
    findings.expect(
        found == setting.device, f"DeepSpeed uses another device (found {found}, expected {setting.device})"
    )
    try:
        from torch.nn.attention.varlen import varlen_attn

        findings.note("varlen_attn", list(inspect.signature(varlen_attn).parameters))
    except ImportError:
        findings.note("varlen_attn", None)
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        findings.note("capability", list(torch.cuda.get_device_capability(0)))
        findings.note("memory_gb", round(properties.total_memory / 1e9, 1))
        findings.note("multiprocessors", properties.multi_processor_count)
        findings.note("devices", torch.cuda.device_count())


def check_contexts(setting: Setting) -> None:
    """Train with validation, and count the GPUs on which this process has a context: its own and no other."""
    recipe = write_material(setting)
    kdcore.train(recipe, ["training.budget.steps=4", "validation.every=2", "run.id=contexts"])
    touched = active_contexts()
    setting.findings.note("devices", torch.cuda.device_count())
    setting.findings.note("contexts", touched)
    expected = [0] if setting.device == "cuda" else []
    setting.findings.expect(
        touched == expected, f"the process has contexts on other devices than its own (found {touched})"
    )
    with suppress(OSError):  # containers often hide processes from it
        query = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10).stdout.splitlines()
        setting.findings.note("nvidia_smi_processes", len(lines))
        own = [line for line in lines if line.startswith(f"{os.getpid()},")]
        setting.findings.expect(len(own) <= 1, f"nvidia-smi lists this process on several GPUs: {own}")


def active_contexts() -> list[int]:
    """List the devices on which this process has a CUDA context, from the driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for device in range(count.value):
        driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
        if active.value:
            found.append(device)
    return found
