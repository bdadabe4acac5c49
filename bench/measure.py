"""Time of one call: variants interleaved, caches cold, warm-up by time, quantiles of the samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.clock import clock
from bench.environment import usable_cores

_QUICK_SECONDS = 0.02  # a CPU without 16-bit arithmetic needs seconds for a product that others do in this time
QUANTILES = (0.2, 0.5, 0.8)
_HOST_SAMPLES = 10


@dataclass(frozen=True)
class Budget:
    """Seconds of timed calls per variant, with bounds on their number; of warm-up before them; and of calls whose energy
    is counted after them."""

    seconds: float = 1.0
    warmup_seconds: float = 0.2
    min_samples: int = 3
    max_samples: int = 100
    energy_seconds: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Quantiles in milliseconds.

    clock: "wall"; on a GPU "graph" (a captured call, replayed) or "eager" (launched while the device slept).
    host_ms: median until a call returns, where that is not all of it.
    """

    p20_ms: float
    p50_ms: float
    p80_ms: float
    samples: int
    clock: str = "wall"
    host_ms: float | None = None

    @classmethod
    def of(cls, samples_ms: Sequence[float], clock: str = "wall", host_ms: Sequence[float] = ()) -> Timing:
        values = torch.tensor(samples_ms, dtype=torch.float64)
        p20, p50, p80 = values.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
        return cls(p20, p50, p80, len(samples_ms), clock, statistics.median(host_ms) if host_ms else None)


def warm_up(call: Callable[[], object], seconds: float, device: str) -> float:
    """Calls until ``seconds`` have passed, at least once; returns the seconds of the last call."""
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if now >= end:
            return now - start


def interleaved(calls: dict[str, Callable[[], object]], device: str, budget: Budget) -> dict[str, Timing]:
    """Times every call (warmed up before) in rounds, so that drift of the machine hits all alike.

    The first sample of a variant tells how many its time allows; a slow one still gets ``min_samples``. As many rounds are
    made as the slowest has samples, and the samples of the others are spread evenly over them.
    """
    timer = clock(device)
    timed = {name: timer.prepared(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    host: dict[str, list[float]] = {name: [] for name in calls}

    def sample(name: str) -> None:
        timer.flush()
        samples[name].append(timer.sample(timed[name][0]))
        taken = timer.host_sample(calls[name]) if len(host[name]) < _HOST_SAMPLES else None
        host[name] += [] if taken is None else [taken]

    for name in calls:
        sample(name)
    more = {name: _wanted(samples[name][0], budget) - 1 for name in calls}
    rounds = max(1, min(more.values()))
    for done in range(1, rounds + 1):
        for name in calls:
            while len(samples[name]) - 1 < more[name] * done // rounds:
                sample(name)
    return {name: Timing.of(taken, timed[name][1], host[name]) for name, taken in samples.items()}


def _wanted(first_ms: float, budget: Budget) -> int:
    """Samples that a variant gets whose first one took ``first_ms``."""
    affordable = budget.max_samples if first_ms <= 0 else int(budget.seconds * 1e3 / first_ms)
    return max(1, budget.min_samples, min(affordable, budget.max_samples))


def _alone(call: Callable[[], object], device: str) -> Timing:
    warm_up(call, 0.1, device)
    return interleaved({"call": call}, device, Budget(seconds=0.5, max_samples=20))["call"]


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a large copy, read and written bytes both counted: the roof of memory-bound work."""
    numel = (1 << 28) if device == "cuda" else (1 << 26)
    source = torch.ones(numel, device=device)
    target = torch.empty_like(source)
    timing = _alone(lambda: target.copy_(source), device)
    return 2 * source.nbytes / (timing.p20_ms * 1e-3)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP per second of a matrix product in ``dtype``, as large as is quick: the roof of compute-bound work."""
    largest = 8192 if device == "cuda" else 1024 * min(2, usable_cores())
    n = 256
    while True:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = warm_up(lambda: a @ b, 0.0, device)  # noqa: B023
        if n >= largest or seconds > _QUICK_SECONDS:
            break
        n *= 2
    timing = _alone(lambda: a @ b, device)
    return 2 * n**3 / (timing.p20_ms * 1e-3)
