"""Energy of a call, from the driver's own counter: NVML on a NVIDIA GPU, RAPL on a CPU. Nothing where there is none."""

from __future__ import annotations

import ctypes
import glob
import time
from collections.abc import Callable
from pathlib import Path

import torch

_RAPL = "/sys/class/powercap/intel-rapl:*"  # AMD processors use the same name

_QUEUED = 16  # calls between two waits for a GPU, which would otherwise idle between short calls

Meter = Callable[[], float]


def _nvml_meter() -> Meter | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)):
        return None
    if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
        return None

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return read


def _is_socket(zone: Path) -> bool:
    """Whether a zone counts a whole processor: not a part of one (``intel-rapl:0:0``), nor the whole board ("psys")."""
    return zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")


def _rapl_meter() -> Meter | None:
    def read() -> float:
        return sum(int((zone / "energy_uj").read_text()) for zone in zones) / 1e6

    try:
        zones = [zone for zone in map(Path, glob.glob(_RAPL)) if _is_socket(zone)]
        return read if read() > 0 else None
    except (OSError, ValueError):
        return None


def meter(device: str) -> Meter | None:
    """Reads the joules used since some fixed moment by the current GPU or by all sockets; None: the driver tells nothing."""
    return _nvml_meter() if device == "cuda" else _rapl_meter()


def joules_per_call(call: Callable[[], object], device: str, read: Meter, seconds: float) -> float | None:
    """Mean energy of a call that is repeated back to back; None where the counter ran over.

    The counters move every 1 to 100 ms, so a second is right.
    """
    calls, start = 0, read()
    end = time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < end:
        for _ in range(_QUEUED if device == "cuda" else 1):
            call()
            calls += 1
        if device == "cuda":
            torch.cuda.synchronize()
    used = read() - start
    return used / calls if used >= 0 else None
