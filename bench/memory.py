"""Peak memory of one call, above what stood before it. To be used in a fresh process: peaks never come down."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sparse_xmc._heap import give_back

_STATUS = Path("/proc/self/status")
_M_MMAP_THRESHOLD = -3


def return_memory_at_once() -> None:
    """Makes glibc give freed blocks back to the system, so that resident memory follows what is alive."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 1 << 16)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def _reset_peak() -> bool:
    """Sets the kernel's record of peak resident memory back to the present; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return abs(_status_bytes("VmHWM") - _status_bytes("VmRSS")) < 16 << 20
    except OSError:
        return False


def _sampled_growth(call: Callable[[], object]) -> int:
    """For systems without a resettable peak: resident memory sampled every half millisecond by a thread."""
    import psutil

    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(5e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, process.memory_info().rss) - before


def peak_growth(call: Callable[[], object], device: str) -> int:
    """Bytes that ``call`` needs at its peak above what is allocated when it starts; its result is alive at the end."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    elif sys.platform == "linux" and _reset_peak():
        give_back()
        _reset_peak()
        before = _status_bytes("VmRSS")
        result = call()
        peak = _status_bytes("VmHWM") - before
    else:
        return _sampled_growth(call)
    del result
    return max(0, peak)
