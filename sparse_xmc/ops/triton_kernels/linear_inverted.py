"""Input gradient without atomics: each feature sums the connections that read it, in ascending order.

Labels are taken in chunks, one launch after another, so that the rows gathered (the output gradient of a chunk, or the
sums of its groups) stay in the L2 cache and the memory for them is bounded. The order of every sum is fixed: the
result is the same bits on each run on one GPU model and configuration.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.triton_kernels import linear_group
from sparse_xmc.ops.triton_kernels._dot import accumulator
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, cdiv, padded, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import batch_major, feature_major

# bytes of the rows that one launch gathers from: about half of the L2 cache of an H100 or H200
CHUNK_BYTES = 24 << 20
_PLANS = Plans()


@triton.jit
def _first_at_least(positions_ptr, low, high, value, STEPS: tl.constexpr):
    """The first place in ``positions[low:high]``, which ascend, whose value is at least ``value``."""
    for _ in range(STEPS):
        middle = (low + high) // 2
        smaller = tl.load(positions_ptr + middle, mask=low < high, other=0).to(tl.int64) < value  # 0-dim
        low, high = (
            tl.where((low < high) & smaller, middle + 1, low),
            tl.where((low < high) & (smaller == 0), middle, high),
        )
    return low


@triton.jit(do_not_specialize=["first", "last", "weight_start"])
def sum_connections_kernel(
    offsets_ptr,  # [D + 1]
    positions_ptr,  # [R * K]
    rows_ptr,  # [rows, stride]: row (p - first * K) // PER_ROW belongs to position p
    weight_ptr,  # [positions] from position weight_start on, or None
    out_ptr,  # [D, stride] in ACC, added to
    stride,
    first,  # first and one-past-last row of indices
    last,
    weight_start,
    K: tl.constexpr,
    PER_ROW: tl.constexpr,
    ACC: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    tiles = tl.cdiv(stride, BLOCK_B)
    pid = tl.program_id(0)
    feature = (pid // tiles).to(tl.int64)
    offs_b = (pid % tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < stride
    start, stop = first.to(tl.int64) * K, last.to(tl.int64) * K
    low, high = tl.load(offsets_ptr + feature), tl.load(offsets_ptr + feature + 1)  # 0-dim each
    low = _first_at_least(positions_ptr, low, high, start, STEPS)
    high = _first_at_least(positions_ptr, low, high, stop, STEPS)

    acc = tl.zeros((BLOCK_P, BLOCK_B), ACC)
    for place in range(0, (high - low).to(tl.int32), BLOCK_P):
        offs_p = low + place + tl.arange(0, BLOCK_P)
        mask_p = offs_p < high
        positions = tl.load(positions_ptr + offs_p, mask=mask_p, other=0).to(tl.int64)  # [BLOCK_P]
        row = (positions - start) // PER_ROW
        # [BLOCK_P, BLOCK_B]
        values = tl.load(
            rows_ptr + row[:, None] * stride + offs_b[None, :], mask=mask_p[:, None] & mask_b[None, :], other=0.0
        ).to(ACC)
        if weight_ptr is not None:
            # [BLOCK_P]
            values *= tl.load(weight_ptr + (positions - weight_start), mask=mask_p, other=0.0).to(ACC)[:, None]
        acc += values
    out_ptrs = out_ptr + feature * stride + offs_b
    total = tl.load(out_ptrs, mask=mask_b, other=0.0) + tl.sum(acc, axis=0)  # [BLOCK_B]
    tl.store(out_ptrs, total, mask=mask_b)


def backward_input(
    dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int, offsets: Tensor, positions: Tensor
) -> Tensor:
    """dy [B, L] -> dx [B, D] in dy's dtype; offsets and positions as ``transpose_indices`` returns them."""
    B, (R, K) = dy.shape[0], indices.shape
    acc = compute_dtype(dy.dtype)
    dxt = torch.zeros(in_features, padded(B), dtype=acc, device=dy.device)
    if B == 0:
        return batch_major(dxt, B, dy.dtype)
    if group_size == 1:
        rows_per_index_row, row_bytes = 1, padded(B) * dy.element_size()
    else:
        rows_per_index_row, row_bytes = K, padded(B) * acc.itemsize
    chunk = max(1, CHUNK_BYTES // (rows_per_index_row * row_bytes))
    for first in range(0, R, chunk):
        last = min(first + chunk, R)
        if group_size == 1:
            rows = feature_major(dy[:, first:last])
        else:
            rows = torch.empty((last - first) * K, padded(B), dtype=acc, device=dy.device)
            linear_group.connection_sums_(dy, weight, indices, rows, in_features, group_size, first, last)
        per_row, scale = (K, weight) if group_size == 1 else (1, None)
        sum_connections_(offsets, positions, rows, scale, dxt, first, last, K, per_row)
    return batch_major(dxt, B, dy.dtype)


def sum_connections_(
    offsets: Tensor,
    positions: Tensor,
    rows: Tensor,
    weight: Tensor | None,
    out: Tensor,
    first: int,
    last: int,
    fan_in: int,
    per_row: int,
    weight_start: int = 0,
) -> None:
    """Adds to ``out [D, stride]``, for every position ``p`` of a feature that lies in rows ``first`` to ``last - 1`` of
    the indices, row ``(p - first * K) // per_row`` of ``rows [:, stride]``, times ``weight``'s element ``p - weight_start``."""
    in_features, stride = out.shape
    arguments = (offsets, positions, rows, weight, out, stride, first, last, weight_start)
    number, sizes = positions.shape[0], (in_features, stride, fan_in, per_row)
    wide = max(first, last, weight_start) >= 1 << 31
    dtypes = (positions.dtype, rows.dtype, weight is not None and weight.dtype, out.dtype)
    key = (*sizes, number, wide, dtypes, out.device)
    launch = _PLANS.get(key)
    if launch is None:
        block_b = max(16, min(128, power_of_2(stride)))
        # a feature stands at most once in a row of indices
        constants = {"K": fan_in, "PER_ROW": per_row, "STEPS": (number // fan_in).bit_length(), "BLOCK_P": 16}
        grid = (in_features * cdiv(stride, block_b),)
        chosen = Launch(
            sum_connections_kernel, grid, ACC=accumulator(out.dtype), BLOCK_B=block_b, num_warps=4, **constants
        )
        launch = _PLANS.keep(key, chosen)
    launch(ready(out, offsets, positions, rows, weight), *arguments)
