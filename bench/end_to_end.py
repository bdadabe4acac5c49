"""A whole training step, transformer encoder and head together, for several heads; and a profile of the head's step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import environment, memory
from bench.measure import Budget, interleaved, warm_up
from bench.point import LEARNING_RATE, Point
from bench.problem import Problem
from bench.providers import get_provider
from bench.providers._linear import sparse_bce
from bench.rows import RowFile
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim.fused import FusedSGD

HEADS = ("dense", "sparse_xmc", "sparse_xmc_group32")


def _encoder(small: bool) -> nn.Module:
    """BERT-base's shape (or a miniature), random weights: nothing is downloaded."""
    width, depth, heads = (64, 1, 2) if small else (768, 12, 12)
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
    return nn.Sequential(nn.Embedding(30_522, width), nn.TransformerEncoder(layer, depth))


def _step(name: str, point: Point, problem: Problem, small: bool) -> Callable[[], Tensor]:
    encoder = _encoder(small).to(point.device)
    generator = torch.Generator(point.device).manual_seed(0)
    tokens = torch.randint(30_522, (point.B, 16 if small else 128), generator=generator, device=point.device)
    head_loss, head_optimizer = _head(name, point)
    optimizers = (torch.optim.AdamW(encoder.parameters(), lr=1e-5), head_optimizer)

    def run() -> Tensor:
        with torch.autocast(point.device, dtype=torch.bfloat16):
            features = encoder(tokens)[:, 0]
        loss = head_loss(features.to(point.torch_dtype), problem)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def _head(name: str, point: Point) -> tuple[Callable[[Tensor, Problem], Tensor], torch.optim.Optimizer]:
    options: dict[str, Any] = {"device": point.device, "dtype": point.torch_dtype}
    if name != "dense":
        group_size = 32 if name.endswith("group32") else 1
        sparse = FixedFanInLinear(point.D, point.L, point.K, group_size=group_size, seed=0, **options)
        fused = FusedSGD(LEARNING_RATE)
        sparse.fuse_optimizer(fused)
        return lambda x, problem: sparse.loss(x, problem.targets), fused
    dense = nn.Linear(point.D, point.L, **options)
    sgd = torch.optim.SGD(dense.parameters(), LEARNING_RATE)
    return lambda x, problem: sparse_bce(dense(x), problem.positive_rows, problem.targets.col_indices()), sgd


def measure(folder: Path, device: str, *, small: bool) -> int:
    """Appends a row per head: time and peak memory of a step of encoder and head."""
    sizes = {"L": 2_000, "D": 64, "K": 8, "B": 4} if small else {"L": 670_091, "D": 768, "K": 64, "B": 64}
    point = Point("step", dtype="float32" if small else "bfloat16", device=device, **sizes)
    problem, file, described = Problem(point), RowFile(folder), environment.describe(device)
    for name in HEADS:
        row: dict[str, Any] = {"kind": "end_to_end", "provider": name, **point.as_dict()}
        try:
            run = _step(name, point, problem, small)
            warm_up(run, 0.5, device)
            peak = memory.peak_growth(run, device)
            budget = Budget(0.1 if small else 3.0, min_samples=3, max_samples=30)
            timing = interleaved({name: run}, device, budget)[name]
            row |= {"status": "ok", "reason": None, "peak_bytes": peak, **vars(timing)}
        except Exception as error:  # a head that does not fit is a result
            row |= {"status": "error", "reason": f"{type(error).__name__}: {error}"[:300]}
        file.append({**row, **described})
        print(f"{point}  {name}: {row.get('p50_ms', row['reason'])}", flush=True)
        gc.collect()
    return 0


def profile(folder: Path, device: str, *, small: bool) -> int:
    """Writes ``profile.txt``: the kernels of a fused step, by time."""
    base = {"L": 2_000, "D": 64, "K": 8, "B": 4} if small else {"L": 670_091, "K": 64, "B": 128}
    point = Point("step", G=32, dtype="float32" if small else "bfloat16", device=device, **base)
    case = get_provider("sparse_xmc_fused").build(point, Problem(point))
    warm_up(case.run, 0.2, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(5):
            case.run()
        if device == "cuda":
            torch.cuda.synchronize()
    order = "cuda_time_total" if device == "cuda" else "cpu_time_total"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.txt").write_text(f"{point}\n{profiler.key_averages().table(sort_by=order, row_limit=25)}\n")
    return 0
