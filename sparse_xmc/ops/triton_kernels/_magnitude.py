"""Scores of connections as sortable integers, and the lowest ones of all rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

HIGHEST = tl.constexpr(0x7FFFFFFF)
_PROGRAMS = 2048


@triton.jit
def row_keys(weight_ptr, rows, k, L, K, group_size, USE_MAX: tl.constexpr):
    """Bit patterns of the scores of ``rows`` [ROWS], int32 ``[ROWS, BLOCK_K]``; HIGHEST outside the layer."""
    first = rows.to(tl.int64) * group_size
    known = (first < L)[:, None] & (k < K)[None, :]
    total = tl.zeros([rows.shape[0], k.shape[0]], tl.float32)
    for g in range(0, group_size):
        mask = ((first + g) < L)[:, None] & known
        w = tl.load(weight_ptr + (first + g)[:, None] * K + k[None, :], mask=mask, other=0.0)  # [ROWS, BLOCK_K]
        magnitude = tl.abs(w.to(tl.float32))
        if USE_MAX:
            total = tl.where(magnitude <= total, total, magnitude)
        else:
            total += magnitude
    if not USE_MAX:
        members = tl.maximum(tl.minimum(L - first, group_size), 1).to(tl.float32)
        total *= tl.div_rn(tl.full([rows.shape[0]], 1.0, tl.float32), members)[:, None]
    return tl.where(known, total.to(tl.int32, bitcast=True) & HIGHEST, HIGHEST)


@triton.jit
def _digits(
    weight_ptr, prefix_ptr, counts_ptr, R, L, K, group_size, shift,
    USE_MAX: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Counts the digit at ``shift`` of all keys whose higher digits are the prefix; the others count as digit 256."""
    k = tl.arange(0, BLOCK_K)
    prefix = tl.load(prefix_ptr)  # 0-dim
    counts = tl.zeros([512], tl.int32)
    for tile in range(tl.program_id(0), tl.cdiv(R, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        keys = row_keys(weight_ptr, rows, k, L, K, group_size, USE_MAX)
        counted = (rows < R)[:, None] & (k < K)[None, :] & ((keys >> shift) >> 8 == prefix)
        digit = tl.where(counted, (keys >> shift) & 255, 256)
        counts += tl.histogram(tl.reshape(digit, (ROWS * BLOCK_K,)), 512)
    bins = tl.arange(0, 512)
    tl.atomic_add(counts_ptr + bins, counts.to(tl.int64), mask=bins < 256, sem="relaxed")


@triton.jit
def _count_ties(
    weight_ptr, key_ptr, ties_ptr, R, L, K, group_size,
    USE_MAX: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK_K)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys = row_keys(weight_ptr, rows, k, L, K, group_size, USE_MAX)
    equal = (keys == tl.load(key_ptr)) & (rows < R)[:, None] & (k < K)[None, :]  # [ROWS, BLOCK_K]
    tl.store(ties_ptr + tl.program_id(0), tl.sum(tl.sum(equal.to(tl.int32), 1), 0))


@triton.jit
def _count_rows(
    weight_ptr, key_ptr, budget_ptr, counts_ptr, R, L, K, group_size, limit,
    USE_MAX: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK_K)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys = row_keys(weight_ptr, rows, k, L, K, group_size, USE_MAX)
    inside = (rows < R)[:, None] & (k < K)[None, :]
    key = tl.load(key_ptr)  # 0-dim
    below = tl.sum(((keys < key) & inside).to(tl.int32), 1)
    equal = tl.sum(((keys == key) & inside).to(tl.int32), 1)
    left = tl.load(budget_ptr + tl.program_id(0)) - (tl.cumsum(equal, 0) - equal)  # [ROWS]
    taken = tl.minimum(equal.to(tl.int64), tl.maximum(left, 0))
    tl.store(counts_ptr + rows, tl.minimum(below + taken, limit).to(tl.int16), mask=rows < R)


def tile_shape(fan_in: int) -> tuple[int, int]:
    """Rows and columns of a tile of slots."""
    block_k = triton.next_power_of_2(fan_in)
    # rows of no multiple of 16 slots are loaded element by element, each with an address of its own in registers
    rows = min(32, 2048 // block_k) if fan_in % 16 == 0 else min(32, 2048 // block_k) // 2
    return max(1, rows), block_k


def lowest_per_row(weight: Tensor, R: int, group_size: int, use_max: bool, number: int, limit: int) -> Tensor:
    """How many of the ``number`` lowest scores lie in each row of indices, at most ``limit``: [R] int16.

    Equal scores count in the order of rows. Exact: a selection digit by digit, which never leaves the device.
    """
    (L, K), device = weight.shape, weight.device
    tile_rows, block_k = tile_shape(K)
    tiles = triton.cdiv(R, tile_rows)
    shape = {"USE_MAX": use_max, "ROWS": tile_rows, "BLOCK_K": block_k}
    counts = torch.empty(R, dtype=torch.int16, device=device)
    key = torch.zeros(1, dtype=torch.int32, device=device)
    rank = torch.full((1,), number - 1, dtype=torch.int64, device=device)
    for shift in (24, 16, 8, 0):
        found = torch.zeros(256, dtype=torch.int64, device=device)
        _digits[(min(tiles, _PROGRAMS),)](weight, key, found, R, L, K, group_size, shift, **shape)
        ends = found.cumsum(0)
        digit = (ends <= rank).sum(0, keepdim=True)
        rank = rank - (ends - found).gather(0, digit)
        key = (key * 256 + digit).int()
    ties = torch.empty(tiles, dtype=torch.int64, device=device)
    _count_ties[(tiles,)](weight, key, ties, R, L, K, group_size, **shape)
    budget = rank + 1 - (ties.cumsum(0) - ties)
    _count_rows[(tiles,)](weight, key, budget, counts, R, L, K, group_size, limit, **shape)
    return counts
