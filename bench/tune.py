"""Full search of kernel configurations on the GPU at hand, and what it gains over the first configuration.

The library remembers the winners in its cache (one json per GPU model) and uses them from then on.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import environment
from bench.check import check_provider
from bench.measure import Budget, interleaved, warm_up
from bench.point import Point
from bench.problem import Problem
from bench.provider import Provider
from bench.providers import get_provider
from bench.rows import RowFile

_BUDGET = Budget(seconds=0.3, min_samples=5, max_samples=50)


def points(small: bool) -> Iterator[tuple[str, Point]]:
    """(provider, point) that cover every tuned kernel, dtype and a few shape buckets."""
    labels = (65_536,) if small else (131_072, 670_091, 2_812_281)
    for L in labels:
        for dtype in ("bfloat16",) if small else ("bfloat16", "float16", "float32"):
            for K, G in ((32, 1), (64, 32)) if small else ((32, 1), (64, 1), (64, 32), (128, 32), (64, 16)):
                base = Point("forward", L, K=K, G=G, B=128, dtype=dtype, device="cuda")
                for mode in ("forward", "backward_input", "backward_weight"):
                    yield "sparse_xmc", dataclasses.replace(base, mode=mode)
                for mode in ("step", "topk"):
                    yield "sparse_xmc_fused", dataclasses.replace(base, mode=mode)


def _median(provider: Provider, point: Point, mode: str) -> float:
    from sparse_xmc.ops.triton_kernels import tuning

    with tuning.forced(mode):
        case = provider.build(point, Problem(point))
        warm_up(case.run, 0.1, "cuda")
        return interleaved({"call": case.run}, "cuda", _BUDGET)["call"].p50_ms


def tune(folder: Path, *, small: bool = False) -> int:
    """Searches in full and appends a row per kernel and shape: first configuration against winner."""
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
    return 0
