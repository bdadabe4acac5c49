"""Clocks: wall time on a CPU; on a GPU the time of its kernels alone, by replaying a captured graph, and the host's apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Call = Callable[[], object]
_FLUSH_BYTES = {"cpu": 96 << 20, "cuda": 512 << 20}  # beyond any last-level cache that is not shared by a whole server
_SPIN_SECONDS = 0.5  # of work until a GPU runs at its boost clock
_HEAD_START_CYCLES = 3_000_000  # the device sleeps so long (1.7 ms at 1.75 GHz) while the host launches what is timed


class Clock(Protocol):
    def prepared(self, call: Call) -> tuple[Call, str]:
        """What is timed in place of ``call``, and how: "wall", "graph" or "eager"."""

    def flush(self) -> None:
        """Puts other data into the caches."""

    def sample(self, call: Call) -> float:
        """Milliseconds of one call."""

    def host_sample(self, call: Call) -> float | None:
        """Milliseconds until the call returns, the device being idle; None where that is the whole time."""


class CpuClock:
    def __init__(self) -> None:
        self._junk = torch.zeros(_FLUSH_BYTES["cpu"] // 4)

    def prepared(self, call: Call) -> tuple[Call, str]:
        return call, "wall"

    def flush(self) -> None:
        self._junk.add_(1)

    def sample(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def host_sample(self, call: Call) -> float | None:
        return None


class CudaClock:
    """Times the device only. What cannot be captured is launched while the device sleeps, so that it never waits."""

    def __init__(self) -> None:
        self._junk = torch.zeros(_FLUSH_BYTES["cuda"] // 4, device="cuda")
        square = torch.zeros(2048, 2048, device="cuda")
        end = time.perf_counter() + _SPIN_SECONDS
        while time.perf_counter() < end:
            square @ square
            torch.cuda.synchronize()

    def prepared(self, call: Call) -> tuple[Call, str]:
        graph = _captured(call)
        return (call, "eager") if graph is None else (graph.replay, "graph")

    def flush(self) -> None:
        """By reading: written lines would be flushed back to memory by the call that is timed."""
        self._junk.sum()

    def sample(self, call: Call) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_HEAD_START_CYCLES)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def host_sample(self, call: Call) -> float | None:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
        torch.cuda.synchronize()
        return taken * 1e3


def _captured(call: Call) -> torch.cuda.CUDAGraph | None:
    """The call as a graph; None where it waits for the host or refuses to be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except Exception:  # of any kind: the call's own refusal, or the driver's
        torch.cuda.synchronize()
        return None
    return graph


def clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()
