"""Triton kernel of ``init_indices``: Floyd's algorithm on a block of rows at once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import index_dtype
from sparse_xmc.ops.triton_kernels._sampling import draw_distinct

BLOCK_ELEMENTS = 2048


@triton.jit(do_not_specialize=["seed", "first_row"])
def _init_indices(
    OUT,  # [R, K]
    seed,
    first_row,
    R,
    D,
    K,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_K)
    counter = (first_row + rows).to(tl.uint32)
    zero = counter * 0
    size = tl.zeros([ROWS], tl.int32) + D
    chosen = tl.full([ROWS, BLOCK_K], -1, tl.int32)
    for i0 in range(0, K, 4):
        words = tl.philox(seed, counter, zero + i0 // 4, zero, zero)
        for j in tl.static_range(4):
            drawn = draw_distinct(words[j], i0 + j, K, size, chosen)
            chosen = tl.where(k[None, :] == i0 + j, drawn[:, None], chosen)
    inside = (rows < R)[:, None] & (k < K)[None, :]
    tl.store(OUT + rows[:, None] * K + k[None, :], chosen.to(OUT.dtype.element_ty), mask=inside)


def init_indices(
    num_rows: int, in_features: int, fan_in: int, seed: int, first_row: int, device: torch.device
) -> Tensor:
    """[num_rows, fan_in], distinct in every row; ``first_row`` is added to the row in the counter."""
    out = torch.empty(num_rows, fan_in, dtype=index_dtype(in_features), device=device)
    block_k = triton.next_power_of_2(fan_in)
    rows = max(1, min(BLOCK_ELEMENTS // block_k, 32))
    grid = (triton.cdiv(num_rows, rows),)
    _init_indices[grid](out, seed, first_row, num_rows, in_features, fan_in, ROWS=rows, BLOCK_K=block_k)
    return out
