"""Full search of kernel configurations on the GPU at hand, and what it gains over the first configuration.

The library remembers the winners in its cache (one json per GPU model) and uses them from then on.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import environment, suites
from bench.check import check_provider
from bench.measure import Budget, interleaved, warm_up
from bench.point import Point
from bench.problem import Problem
from bench.provider import Provider
from bench.providers import get_provider
from bench.rows import RowFile

_BUDGET = Budget(seconds=0.3, min_samples=5, max_samples=50)


_SUITES = ("target", "gpu")
_PARTS = {"full": ("forward", "backward_input", "backward_weight")}  # of a mode, each with kernels of its own


def points(small: bool) -> Iterator[tuple[str, Point]]:
    """(provider, point) of our kernels in the GPU suites, those of the target first; one of each kind that is tuned apart."""
    if small:
        base = Point("forward", 65_536, K=64, G=32, B=128, dtype="bfloat16", device="cuda")
        yield "sparse_xmc", base
        yield "sparse_xmc_fused", dataclasses.replace(base, mode="step")
        return
    seen = set()
    for name in _SUITES:
        for sweep in suites.SUITES[name]("cuda")[0]:
            for provider, point in itertools.product(sweep.providers, sweep.points):
                if not provider.startswith("sparse_xmc") or provider == "sparse_xmc_deterministic":
                    continue
                for mode in _PARTS.get(point.mode, (point.mode,)):
                    buckets = tuple((size - 1).bit_length() for size in (point.B, point.L, point.D))
                    kind = (provider, mode, buckets, point.K, point.G, point.dtype)
                    if kind not in seen:
                        seen.add(kind)
                        yield provider, dataclasses.replace(point, mode=mode)


def _median(provider: Provider, point: Point, mode: str) -> float:
    from sparse_xmc.ops.triton_kernels import tuning

    with tuning.forced(mode):
        case = provider.build(point, Problem(point))
        warm_up(case.run, 0.1, "cuda")
        return interleaved({"call": case.run}, "cuda", _BUDGET)["call"].p50_ms


def tune(folder: Path, *, small: bool = False, ship: bool = False) -> int:
    """Searches in full and appends a row per kernel and shape: first configuration against winner.

    Args:
        ship: whether the winners are also written into the package, where every installation finds them.
    """
    if not torch.cuda.is_available():
        print("tuning needs a GPU: none is visible, nothing was searched")
        return 1
    from sparse_xmc.ops.triton_kernels import _tuning_store as store

    file, described = RowFile(folder), environment.describe("cuda")
    for name, point in points(small):
        provider = get_provider(name)
        row: dict[str, Any] = {"kind": "tune", "provider": name, **point.as_dict()}
        try:
            reason = provider.unsupported(point)
            if reason is not None:
                row |= {"status": "unsupported", "reason": reason}
            else:
                check_provider(provider, point)
                first, best = _median(provider, point, "off"), _median(provider, point, "full")
                row |= {"status": "ok", "reason": None, "first_ms": first, "tuned_ms": best, "gain": first / best}
        except Exception as error:  # one shape that fails must not end the search of the others
            row |= {"status": "error", "reason": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
        file.append({**row, **described})
        figure = f"{row['first_ms']:.3f} -> {row['tuned_ms']:.3f} ms" if row["status"] == "ok" else row["reason"]
        print(f"{point}  {name}: {figure}", flush=True)
    winners = store.path(torch.cuda.get_device_name())
    if winners.exists():
        shutil.copy(winners, folder / "tuning.json")
        if ship:
            store.SHIPPED.mkdir(exist_ok=True)
            shutil.copy(winners, store.SHIPPED / winners.name)
    return 0
