"""Named suites: which points are measured for which providers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.measure import Budget
from bench.registry import Point, get_provider, providers
from bench.worker import Task

# label counts of real data sets, smallest first
LABELS = {
    "Wiki10-31K": 30_938,
    "LF-AmazonTitles-131K": 131_073,
    "LF-WikiSeeAlso-320K": 312_330,
    "Amazon-670K": 670_091,
    "LF-AmazonTitles-1.3M": 1_305_265,
    "Amazon-3M": 2_812_281,
    "LF-Paper2Keywords-8.6M": 8_623_847,
}
ALL_LABELS = tuple(LABELS.values())
CORE = ("sparse_xmc", "dense", "torch_csr", "embedding_bag")


@dataclass(frozen=True)
class Sweep:
    """Points, the providers measured at each, and which figures are taken."""

    points: tuple[Point, ...]
    providers: tuple[str, ...]
    kinds: tuple[str, ...] = ("time", "memory")


def sweep(base: Point, providers: Sequence[str], kinds: Sequence[str] = ("time",), **axes: Iterable[object]) -> Sweep:
    """All combinations of the axes around ``base``: ``sweep(base, names, L=(1, 2), mode=("forward", "full"))``."""
    points = [base]
    for name, values in axes.items():
        points = [dataclasses.replace(p, **{name: value}) for p in points for value in values]
    return Sweep(tuple(points), tuple(providers), tuple(kinds))


def tasks(sweeps: Iterable[Sweep], budget: Budget, memory_limit: int | None = None) -> list[Task]:
    """One task per point with its providers interleaved, one per provider and point for memory; no job twice."""
    timed: dict[Point, dict[str, None]] = {}
    weighed: dict[tuple[Point, str], None] = {}
    for part in sweeps:
        for point in part.points:
            if "time" in part.kinds:
                timed.setdefault(point, {}).update(dict.fromkeys(part.providers))
            if "memory" in part.kinds:
                weighed.update(dict.fromkeys((point, name) for name in part.providers))
    dtypes = {point.dtype: point for point in [*timed, *(point for point, _ in weighed)]}
    roofs = [
        Task("roof", (), Point("forward", 1, 1, 1, dtype=dtype, device=point.device))
        for dtype, point in dtypes.items()
    ]
    times = [Task("time", tuple(names), point, budget, memory_limit=memory_limit) for point, names in timed.items()]
    memories = [Task("memory", (name,), point, budget, memory_limit=memory_limit) for point, name in weighed]
    return roofs + times + memories


def smoke(device: str) -> tuple[list[Sweep], Budget]:
    """Every provider and mode on a tiny point: seconds."""
    base = Point("forward", 512, D=64, K=8, B=8, device=device)
    names = tuple(providers())
    return [sweep(base, names, ("time",), mode=("forward", "full", "step")), sweep(base, CORE, ("memory",))], Budget(
        0.01, 0.0, 2, 3
    )


def demo(device: str) -> tuple[list[Sweep], Budget]:
    """The main comparison up to 670,091 labels: under three minutes on two CPU cores."""
    base = Point("full", ALL_LABELS[1], device=device)
    labels = ALL_LABELS[:4]
    return [
        sweep(base, CORE, ("time",), mode=("forward", "full", "step"), L=labels),
        sweep(base, CORE, ("memory",), mode=("step",), L=labels),
        sweep(base, [n for n in CORE if n != "dense"], ("time",), K=(8, 16, 32, 64, 128)),
    ], Budget(0.4, 0.1, 3, 30)


SUITES = {"smoke": smoke, "demo": demo}


def build(name: str, device: str, only: Sequence[str] = (), memory_limit: int | None = None) -> list[Task]:
    """Tasks of a suite, optionally restricted to some providers."""
    sweeps, budget = SUITES[name](device)
    if only:
        for provider in only:
            get_provider(provider)
        sweeps = [dataclasses.replace(s, providers=tuple(p for p in s.providers if p in only)) for s in sweeps]
        sweeps = [s for s in sweeps if s.providers]
    return tasks(sweeps, budget, memory_limit)
