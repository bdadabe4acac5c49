"""Matrices as the kernels read and write them: inputs feature by feature, logits in rows that start aligned.

One launch each way: as operations of torch a transposition with padding takes three.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import logits_stride
from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, cdiv, padded, power_of_2, ready
from sparse_xmc.ops.triton_kernels._rounding import round_nearest

_BLOCK = 64
_PLANS = Plans()


@triton.jit(do_not_specialize=["rows", "columns"])
def transpose_kernel(
    from_ptr,  # [rows, columns], any strides
    stride_r,
    stride_c,
    to_ptr,  # [written, stride]: row c holds column c, zeros from column ``rows`` on
    stride,
    rows,
    columns,
    width,  # columns to write, the padding included
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles = tl.cdiv(columns, BLOCK_C)
    offs_c = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_r = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (offs_r < rows)[:, None] & (offs_c < columns)[None, :]
    # [BLOCK_R, BLOCK_C]
    tile = tl.load(from_ptr + offs_r[:, None] * stride_r + offs_c[None, :] * stride_c, mask=inside, other=0.0)
    out = tl.trans(round_nearest(tile, to_ptr.dtype.element_ty))
    written = (offs_c < columns)[:, None] & (offs_r < width)[None, :]
    tl.store(to_ptr + offs_c[:, None] * stride + offs_r[None, :], out, mask=written)


def _transpose_(source: Tensor, out: Tensor, rows: int, columns: int) -> None:
    """Writes the first rows and columns of ``source`` to ``out [columns, >= rows]``, whose rows it fills up with zeros."""
    stride_r, stride_c = source.stride()
    stride, width = out.stride(0), out.shape[1]
    key = (rows, columns, stride_r, stride_c, stride, width, source.dtype, out.dtype, source.device)
    launch = _PLANS.get(key)
    if launch is None:
        block_r = block_c = _BLOCK
        if interpreting():  # a large tile takes no longer than a small one
            block_r = min(1 << 14, power_of_2(width))
            block_c = min((1 << 20) // block_r, power_of_2(columns))
        grid = (cdiv(columns, block_c) * cdiv(width, block_r),)
        launch = _PLANS.keep(key, Launch(transpose_kernel, grid, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4))
    if launch.grid[0]:
        launch(ready(source), source, stride_r, stride_c, out, stride, rows, columns, width)


def feature_major(x: Tensor) -> Tensor:
    """``x [B, D] -> [D, padded(B)]`` contiguous, zeros in the padding: a gathered feature is one contiguous row."""
    B, D = x.shape
    out = torch.empty(D, padded(B), dtype=x.dtype, device=x.device)
    _transpose_(x, out, B, D)
    return out


def batch_major(sums: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """``sums [D, >= B] -> [B, D]`` contiguous in ``dtype``: the way back of ``feature_major``, rounding once."""
    out = torch.empty(num_rows, sums.shape[0], dtype=dtype, device=sums.device)
    _transpose_(sums, out, sums.shape[0], num_rows)
    return out


def empty_logits(x: Tensor, out_features: int) -> Tensor:
    """``[B, L]`` in x's dtype whose rows lie ``logits_stride`` apart; the gaps belong to it too, the last one included."""
    stride = logits_stride(x.device, out_features)
    rows = torch.empty(x.shape[0], stride, dtype=x.dtype, device=x.device)
    if stride == out_features:
        return rows
    if x.is_meta:
        return rows[:, :out_features]
    # no view: the caller may change logits in place
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        rows.untyped_storage(), 0, (x.shape[0], out_features), (stride, 1)
    )


def readable_labels(dy: Tensor) -> int:
    """How many labels of every row of ``dy [B, L]`` may be read: more than L where rows are padded as those of logits."""
    (B, L), stride = dy.shape, padded(dy.shape[1])
    if stride == L:
        return L
    if dy.is_meta:
        return stride if dy.stride() == (stride, 1) else L
    room = dy.untyped_storage().nbytes() // dy.element_size() - dy.storage_offset()
    return stride if dy.stride() == (stride, 1) and B * stride <= room else L
