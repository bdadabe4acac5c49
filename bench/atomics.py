"""How fast a GPU adds float32 in its L2 cache, against gathering rows from there: what the input gradient's ways cost.

Few minutes of reading decide between atomics, an inverted index and dense tiles; this takes twenty seconds on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from bench import environment
from bench.measure import Budget, interleaved
from bench.rows import RowFile
from sparse_xmc.ops.triton_kernels import input_gradient, tuning

_ROWS = 64  # rows that a program touches at a time
_ADDITIONS = {False: 1 << 28, True: 1 << 12}  # small: to try the command in Triton's interpreter
_HEADLINE = (768, 128)  # the size whose rates are kept for the choice of a way
_BUDGET = Budget(0.3, min_samples=3, max_samples=20)


@triton.jit
def add_rows(index_ptr, out_ptr, stride, number, ROWS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Adds ones to ``number * ROWS`` rows of ``[D, stride]``, BLOCK_B columns a program."""
    columns = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    ones = tl.full((ROWS, BLOCK_B), 1.0, tl.float32)
    for place in range(tl.program_id(0), number, tl.num_programs(0)):
        rows = tl.load(index_ptr + place * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # [ROWS]
        tl.atomic_add(out_ptr + rows[:, None] * stride + columns[None, :], ones, sem="relaxed")


@triton.jit
def gather_rows(index_ptr, x_ptr, out_ptr, stride, number, ROWS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Sums ``number * ROWS`` rows of ``x [D, stride]`` into a row of ``out`` for each program."""
    columns = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    total = tl.zeros((ROWS, BLOCK_B), tl.float32)
    for place in range(tl.program_id(0), number, tl.num_programs(0)):
        rows = tl.load(index_ptr + place * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # [ROWS]
        total += tl.load(x_ptr + rows[:, None] * stride + columns[None, :]).to(tl.float32)  # [ROWS, BLOCK_B]
    out = tl.program_id(0).to(tl.int64) * stride + columns
    tl.store(out_ptr + out, tl.sum(total, 0))


def _point(D: int, B: int, device: str, programs: int, small: bool) -> dict[str, Any]:
    number = max(1, _ADDITIONS[small] // (_ROWS * B))
    generator = torch.Generator(device).manual_seed(0)
    indices = torch.randint(D, (number * _ROWS,), generator=generator, device=device, dtype=torch.int32)
    sums, x = torch.zeros(D, B, device=device), torch.randn(D, B, generator=generator, device=device)
    block = min(B, 64)
    grid, sizes = (min(programs, number), B // block), {"ROWS": _ROWS, "BLOCK_B": block, "num_warps": 4}
    sink = torch.empty(grid[0], B, device=device)
    gathered = x.bfloat16() if device == "cuda" else x
    calls = {
        "add": lambda: add_rows[grid](indices, sums, B, number, **sizes),
        "gather": lambda: gather_rows[grid](indices, gathered, sink, B, number, **sizes),
    }
    for call in calls.values():
        call()
    expected = torch.bincount(indices.long(), minlength=D).float()
    if not torch.equal(sums[:, 0], expected) or not torch.equal(sums[:, -1], expected):
        raise AssertionError("atomic additions were lost")
    wanted = gathered.float()[indices.long()].sum(0)
    torch.testing.assert_close(sink.sum(0), wanted, rtol=1e-3, atol=1e-2 * number**0.5)
    taken = interleaved(calls, device, _BUDGET)
    touched = number * _ROWS * B
    return {
        "additions_per_s": touched / taken["add"].p50_ms * 1e3,
        "gathered_bytes_per_s": touched * gathered.element_size() / taken["gather"].p50_ms * 1e3,
    }


def measure(folder: Path, device: str, *, small: bool = False) -> int:
    """Appends a row per size ``[D, B]``, after checking that every addition arrived."""
    file, described = RowFile(folder), environment.describe(device)
    programs = 8 * torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 2
    for D, B in ((64, 32),) if small else ((768, 32), (768, 64), (768, 128), (4096, 64), (90_000, 128)):
        row: dict[str, Any] = {"kind": "atomics", "provider": "triton", "D": D, "B": B, "device": device}
        try:
            row |= {"status": "ok", "reason": None, **_point(D, B, device, programs, small)}
            shown = f"{row['additions_per_s'] / 1e12:.3f} T additions/s, {row['gathered_bytes_per_s'] / 1e12:.2f} TB/s"
        except Exception as error:  # one size that fails must not cost the others
            row |= {"status": "error", "reason": f"{type(error).__name__}: {error}"[:300]}
            shown = row["reason"]
        file.append({**row, **described})
        print(f"[{D}, {B}]: {shown}", flush=True)
        if row["status"] == "ok" and device == "cuda" and (D, B) == _HEADLINE:
            remember(torch.cuda.get_device_name(), row["additions_per_s"], row["gathered_bytes_per_s"])
    for line in ways(torch.device(device)):
        print(line)
    return 0


def remember(gpu: str, additions: float, l2_bytes: float) -> None:
    """From now on the fused head's first guess at its way to the input gradient follows from these rates."""
    tuning.forget()
    input_gradient.remember_rates(gpu, additions, l2_bytes)
    tuning.forget()


def ways(device: torch.device) -> list[str]:
    """Predicted times of the ways to the input gradient, by the rates that are known of a device."""
    found = input_gradient.rates(device)
    lines = [f"predicted time of the input gradient, B=128 D=768 bfloat16, at {found}:"]
    for L, K in ((131_073, 32), (670_091, 32), (670_091, 64), (2_812_281, 128)):
        problem = input_gradient.Problem(128, L, 768, K, torch.bfloat16, torch.bfloat16)
        taken = input_gradient.seconds(problem, found).items()
        lines.append(f"L={L} K={K}: " + ", ".join(f"{way} {time * 1e3:.2f} ms" for way, time in taken))
    return lines
