"""Named suites: which points are measured for which providers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.measure import Budget
from bench.point import Point
from bench.providers import get_provider
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
OURS = ("sparse_xmc", "sparse_xmc_group32")
FUSED = ("sparse_xmc_fused", "sparse_xmc_group32_fused")
STEP = (*FUSED, "sparse_xmc_fused_loss", *CORE, "dense_chunked", "bottleneck")
PRODUCTS = (
    *CORE,
    "fbgemm_tbe",
    "torchrec_triton_tbe",
    "sparse_xmc_group32",
    "bottleneck",
    "torch_bsr",
    "semi_structured_2_4",
    "gather_einsum",
)
TOP = ("sparse_xmc", *FUSED, "dense", "dense_chunked", "embedding_bag")
SOFTMAX = ("sparse_xmc_fused_loss", "sparse_xmc", "dense", "torch_linear_cross_entropy", "liger", "bottleneck")
REWIRE = ("sparse_xmc", "sparse_xmc_group32", "eager_rewire")


@dataclass(frozen=True)
class Sweep:
    """Points, the providers measured at each, and which figures are taken."""

    points: tuple[Point, ...]
    providers: tuple[str, ...]
    kinds: tuple[str, ...]


Plan = tuple[list[Sweep], Budget]
_ENERGY_SECONDS = 1.0


def sweep(base: Point, providers: Sequence[str], kinds: Sequence[str] = ("time",), **axes: Iterable[Any]) -> Sweep:
    """All combinations of the axes around ``base``: ``sweep(base, names, L=(1, 2), mode=("forward", "full"))``."""
    points = [base]
    for name, values in axes.items():
        points = [dataclasses.replace(p, **{name: value}) for p in points for value in values]
    return Sweep(tuple(points), tuple(providers), tuple(kinds))


def tasks(sweeps: Iterable[Sweep], budget: Budget, memory_limit: int | None = None) -> list[Task]:
    """One task per point with its providers interleaved, one per provider and point for memory; no job twice.

    The machine's limits are measured first, where anything is timed.
    """
    timed: dict[Point, dict[str, None]] = {}
    weighed: dict[tuple[Point, str], None] = {}
    for part in sweeps:
        for point in part.points:
            if "time" in part.kinds:
                timed.setdefault(point, {}).update(dict.fromkeys(part.providers))
            if "memory" in part.kinds:
                weighed.update(dict.fromkeys((point, name) for name in part.providers))
    dtypes = {point.dtype: point for point in timed}
    roofs = [
        Task("roof", (), Point("forward", 1, 1, 1, dtype=dtype, device=point.device)) for dtype, point in dtypes.items()
    ]
    times = [Task("time", tuple(names), point, budget, memory_limit=memory_limit) for point, names in timed.items()]
    memories = [Task("memory", (name,), point, budget, memory_limit=memory_limit) for point, name in weighed]
    return roofs + times + memories


def smoke(device: str) -> Plan:
    """The core providers and the fused head on a tiny point: seconds."""
    base = Point("forward", 512, D=64, K=8, B=8, device=device)
    return [
        sweep(base, CORE, ("time",), mode=("forward", "full")),
        sweep(base, (*FUSED, *CORE, "dense_chunked"), ("time",), mode=("step",)),
        sweep(base, REWIRE, ("time",), mode=("rewire",)),
        sweep(base, ("sparse_xmc", "dense"), ("memory",)),
    ], Budget(0.01, 0.0, 2, 3)


def demo(device: str) -> Plan:
    """The main comparison up to 670,091 labels: some four minutes on two CPU cores."""
    base = Point("full", ALL_LABELS[0], device=device)
    labels = (ALL_LABELS[0], ALL_LABELS[1], ALL_LABELS[3])
    return [
        sweep(base, (*FUSED, *CORE), mode=("step",), L=labels),
        sweep(base, (*FUSED, *CORE), ("memory",), mode=("step",), L=labels),
        sweep(base, CORE, mode=("forward",), L=labels),
        sweep(base, CORE, L=ALL_LABELS[:3]),
        sweep(base, [n for n in CORE if n != "dense"], K=(8, 16, 32, 64)),
    ], Budget(0.4, 0.3, 3, 30)


def quick(device: str) -> Plan:
    """Every provider and mode, at few points: two to six minutes on two CPU cores."""
    base = Point("full", 131_073, device=device)
    small = dataclasses.replace(base, L=30_938)
    everything = (*PRODUCTS, "scipy_csr", "sklearn", "haste", "sparse_xmc_deterministic")
    return [
        sweep(small, everything, mode=("forward", "backward_input", "backward_weight", "full")),
        sweep(small, STEP, L=(30_938, 131_073), mode=("step",)),
        sweep(base, FUSED, L=(670_091,), mode=("step",)),
        sweep(small, STEP, ("memory",), L=(30_938, 131_073), mode=("step",)),
        sweep(base, FUSED, ("memory",), L=(670_091, 2_812_281), mode=("step",)),
        sweep(small, TOP, mode=("topk",)),
        sweep(small, REWIRE, mode=("rewire",)),
        sweep(small, OURS, dtype=("bfloat16",)),
        sweep(small, FUSED, dtype=("bfloat16",), mode=("step",)),
    ], Budget(0.2, 0.05, 2, 15)


def target(device: str) -> Plan:
    """The points that the design sets goals for, at length."""
    if device == "cpu":
        base = Point("full", 200_000, device=device)
        return [
            sweep(base, (*CORE, "sparse_xmc_group32"), mode=("forward", "full")),
            sweep(base, (*FUSED, "sparse_xmc", "dense"), mode=("step",)),
            sweep(base, FUSED, ("memory",), mode=("step",), L=(2_812_281,)),
        ], Budget(2.0, 0.3, 5, 60)
    base = Point("full", 670_091, K=64, B=128, dtype="bfloat16", device=device)
    return [
        sweep(base, (*CORE, *OURS, "haste", "torchrec_triton_tbe"), mode=("forward", "full"), G=(1, 32)),
        sweep(base, STEP, mode=("step",)),
        sweep(base, FUSED, ("memory",), mode=("step",), L=(2_812_281,), K=(128,)),
        sweep(base, REWIRE, mode=("rewire",), L=(2_812_281,), K=(128,)),
    ], Budget(1.0, 0.3, 5, 100)


def full(device: str) -> Plan:
    """All sweeps: labels to 8.6M, fan-in, groups, batch, features, dtypes, every mode and provider. Hours on a CPU."""
    base = Point("full", 131_073, device=device)
    peers = (*PRODUCTS, "scipy_csr", "sklearn", "haste", "sparse_xmc_deterministic")
    dtypes = ("float32", "bfloat16") if device == "cpu" else ("float32", "float16", "bfloat16")
    products = ("forward", "backward_input", "backward_weight", "full")
    return [
        *target(device)[0],
        sweep(base, (*STEP, "dense_compiled"), ("time", "memory"), mode=("step",), L=ALL_LABELS),
        sweep(base, peers, mode=products, L=ALL_LABELS),
        sweep(base, ("dense_compiled",), mode=("forward", "full"), L=ALL_LABELS[:2]),
        sweep(base, TOP, ("time", "memory"), mode=("topk",), L=ALL_LABELS),
        sweep(base, REWIRE, ("time", "memory"), mode=("rewire",), L=ALL_LABELS),
        sweep(base, PRODUCTS, mode=("forward", "full"), K=(8, 16, 32, 64, 128, 256)),
        sweep(base, (*CORE, "haste"), mode=("forward", "full"), K=(64,), G=(1, 4, 16, 32, 64)),
        sweep(base, FUSED[:1], mode=("step",), K=(64,), G=(1, 4, 16, 32, 64)),
        sweep(base, (*CORE, *FUSED), mode=("step",), B=(16, 32, 128, 256, 512)),
        sweep(base, (*CORE, *FUSED), mode=("step",), D=(256, 512, 1024, 4096)),
        sweep(base, (*CORE, *FUSED), mode=("step",), dtype=dtypes),
    ], Budget(1.0, 0.2, 3, 60)


def memory(device: str) -> Plan:
    """Peak memory of a training step up to 8.6M labels; what other programs do meanwhile does not matter."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    base = Point("step", ALL_LABELS[0], dtype=dtype, device=device)
    labels = (ALL_LABELS[0], ALL_LABELS[1], ALL_LABELS[3], *ALL_LABELS[5:])
    return [sweep(base, (*FUSED, *CORE, "dense_chunked"), ("memory",), L=labels)], Budget()


def labels(device: str) -> Plan:
    """Time of a training step up to 8.6M labels, fused, unfused and dense. Six minutes on two cores."""
    base = Point("step", ALL_LABELS[0], dtype="float32" if device == "cpu" else "bfloat16", device=device)
    return [sweep(base, (*FUSED, "sparse_xmc", "dense", "dense_chunked"), L=ALL_LABELS)], Budget(0.5, 0.1, 2, 15)


def rewire(device: str) -> Plan:
    """Rewiring over labels and fan-in: time, bytes floor, peak memory, against eager torch. Three minutes on two cores."""
    base = Point("rewire", 131_073, device=device)
    labels = (131_073, 670_091, 2_812_281)
    return [sweep(base, ("sparse_xmc", "eager_rewire"), ("time", "memory"), L=labels, K=(16, 32, 64))], Budget(
        0.2, 0.0, 3, 15
    )


def gain(device: str) -> Plan:
    """The figures of the README's first screen: time and memory of a training step against what people use otherwise."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    base = Point("step", ALL_LABELS[1], dtype=dtype, device=device)
    names = ("sparse_xmc_fused", "dense", "torch_csr", "embedding_bag", "bottleneck")
    return [sweep(base, names, ("time", "memory"), L=(*ALL_LABELS[:2], *ALL_LABELS[3:6:2]))], Budget(1.0, 0.1, 3, 15)


def break_even(device: str) -> Plan:
    """From how many labels on a sparse head is faster than the dense one: small layers, fused and through autograd."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    base = Point("step", 128, dtype=dtype, device=device)
    sizes = (128, 512, 1024, 2048, 4096, 8192, 16_384)
    return [sweep(base, ("sparse_xmc_fused", "sparse_xmc", "dense"), L=sizes)], Budget(0.3, 0.1, 20, 200)


def softmax(device: str) -> Plan:
    """A wide softmax, loss and gradients: the streaming one against dense ones, whole and chunked."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    base = Point("softmax", ALL_LABELS[0], dtype=dtype, device=device)
    return [sweep(base, SOFTMAX, ("time", "memory"), L=ALL_LABELS[:2] if device == "cpu" else ALL_LABELS[1:4])], Budget(
        0.5, 0.1, 3, 15
    )


def gpu(device: str) -> Plan:
    """What a GPU shows in minutes: labels to 8.6M for the step, its memory and top-k; products, groups and rewiring."""
    base = Point("step", 670_091, K=64, B=128, dtype="bfloat16", device=device)
    full_sweep = (*STEP, "dense_compiled")
    return [
        sweep(base, STEP, ("time", "memory"), L=ALL_LABELS[::-1]),
        sweep(base, full_sweep, L=ALL_LABELS[1:2]),
        sweep(base, (*PRODUCTS, "haste", "sparse_xmc_deterministic"), mode=("forward", "full"), L=(131_072, 670_080)),
        sweep(base, (*OURS, "haste"), mode=("backward_input", "backward_weight"), L=(670_080,), G=(1, 16, 32, 64)),
        sweep(base, FUSED[:1], G=(1, 4, 16, 32, 64)),
        sweep(base, FUSED, K=(16, 32, 128, 256)),
        sweep(base, FUSED, B=(32, 512)),
        sweep(base, TOP, mode=("topk",), L=(670_091, 2_812_281)),
        sweep(base, REWIRE, mode=("rewire",), L=(670_091, 2_812_281)),
        *softmax(device)[0],
        sweep(base, (*FUSED, *CORE), dtype=("float32", "float16")),
    ], Budget(0.2, 0.1, 3, 50)


SUITES: dict[str, Callable[[str], Plan]] = {
    "smoke": smoke, "demo": demo, "quick": quick, "target": target, "full": full, "gpu": gpu, "labels": labels,
    "gain": gain, "break_even": break_even,
    "softmax": softmax, "memory": memory, "rewire": rewire,
}  # fmt: skip


_DEFAULTS = {"step": (*FUSED, *CORE, "bottleneck"), "topk": TOP, "rewire": REWIRE, "softmax": SOFTMAX}


def own_shapes(axes: dict[str, Sequence[Any]], providers: Sequence[str], kinds: Sequence[str], device: str) -> Plan:
    """All combinations of a user's own sizes, by the fields of ``Point``. ``providers``: by default those of the mode."""
    points = [
        Point(**dict(zip(axes, values, strict=True)), device=device) for values in itertools.product(*axes.values())
    ]
    chosen = {point: tuple(providers) or _DEFAULTS.get(point.mode, (*OURS, *CORE[1:])) for point in points}
    return [Sweep((point,), names, tuple(kinds)) for point, names in chosen.items()], Budget(1.0, 0.2, 5, 60)


def build(plan: Plan, only: Sequence[str] = (), memory_limit: int | None = None, energy: bool = False) -> list[Task]:
    """Tasks of a plan, optionally restricted to some providers; ``energy``: with the joules of a call."""
    sweeps, budget = plan
    budget = dataclasses.replace(budget, energy_seconds=_ENERGY_SECONDS if energy else 0.0)
    if only:
        for provider in only:
            get_provider(provider)
        sweeps = [dataclasses.replace(s, providers=tuple(p for p in s.providers if p in only)) for s in sweeps]
        sweeps = [s for s in sweeps if s.providers]
    return tasks(sweeps, budget, memory_limit)
