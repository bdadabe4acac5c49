"""Feature-major copies of ``x``: ``slab [blocks, D, W]`` holds ``x[block * W + b, d]`` at ``[block, d, b]``.

A connection then reads ``W`` neighbouring numbers. Rows beyond ``B`` are zero.
"""

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.cpu_kernels._numeric import bfloat16_to_float32, float16_to_float32
from sparse_xmc.ops.cpu_kernels._pointers import advance, at_address, pointer
from sparse_xmc.ops.cpu_kernels._storage import BFLOAT16, FLOAT32, FLOAT64, location

_WIDTHS = (8, 16, 32, 64)
_CACHE_BYTES = 400_000  # of one block, while labels stream past: most of a private L2 cache
_CONNECTION_LANES = 8  # what handling a connection costs beside its arithmetic, in lanes
_REGISTER_BYTES = 256  # of one row of sums: half of AVX2's register file
_FEATURES = 16  # read of a row at a time: a cache line


def block_width(B: int, D: int, dtype: torch.dtype) -> int:
    """Rows of the batch per block, ``W``.

    The widest that stays in the cache, since reading a connection costs the same for any width, unless a narrower one
    wastes fewer lanes. A ``D`` so large that nothing fits gets whole cache lines.
    """
    fitting = [
        W
        for W in _WIDTHS
        if W * dtype.itemsize <= 64
        or (W * dtype.itemsize <= _REGISTER_BYTES and D * W * dtype.itemsize <= _CACHE_BYTES)
    ]
    return min(fitting, key=lambda W: (-(-B // W) * (W + _CONNECTION_LANES), -W))


@register_jitable
def _same(value):
    return value


def _filler(numbers, decode):
    """A function that fills a block from tensors of one float format."""

    @register_jitable
    def fill(address, row_stride, column_stride, count, D, width, block):
        # x [count, D] by strides, block [D, width]
        x = at_address(address, numbers)
        bad = False
        for f0 in range(0, D, _FEATURES):
            f1 = min(f0 + _FEATURES, D)
            for b in range(count):
                row = advance(x, b * row_stride)
                for f in range(f0, f1):
                    value = decode(row[f * column_stride])
                    block[f * width + b] = value
                    bad |= not abs(value) < np.inf
        for f in range(D):
            for b in range(count, width):
                block[f * width + b] = 0
        return bad

    return fill


_fill32, _fill64 = _filler(np.float32, _same), _filler(np.float64, _same)
_fill_bfloat16, _fill_float16 = _filler(np.uint16, bfloat16_to_float32), _filler(np.int16, float16_to_float32)


@kernel
def _fill(address, code, row_stride, column_stride, B, D, W, last_width, slab):
    """Fills ``slab`` block by block and returns whether all of x is finite."""
    # x [B, D] by strides, slab [blocks, D, W], the last block [D, last_width]
    bad = False
    for first in range(0, B, W):
        count = min(W, B - first)
        width = W if first + W < B else last_width
        block = advance(pointer(slab), first * D)
        if code == FLOAT32:
            start = np.uint64(address + first * row_stride * 4)
            bad |= _fill32(start, row_stride, column_stride, count, D, width, block)
        elif code == FLOAT64:
            start = np.uint64(address + first * row_stride * 8)
            bad |= _fill64(start, row_stride, column_stride, count, D, width, block)
        elif code == BFLOAT16:
            start = np.uint64(address + first * row_stride * 2)
            bad |= _fill_bfloat16(start, row_stride, column_stride, count, D, width, block)
        else:
            start = np.uint64(address + first * row_stride * 2)
            bad |= _fill_float16(start, row_stride, column_stride, count, D, width, block)
    return not bad


def fill_slab(x: Tensor, slab: np.ndarray, W: int, last_width: int) -> bool:
    """Copies ``x [B, D]`` (any float dtype, any strides) to ``slab [blocks * D * W]``, whose last block is ``last_width``
    wide; returns whether x is finite."""
    return _fill(*location(x), *x.stride(), *x.shape, W, last_width, slab)


def make_slab(x: Tensor) -> Tensor:
    """x [B, D] (any dtype, any strides) -> slab [blocks, D, W] in the dtype that sums are accumulated in."""
    (B, D), dtype = x.shape, compute_dtype(x.dtype)
    W = block_width(B, D, dtype)
    slab = torch.empty(-(-B // W), D, W, dtype=dtype, device="cpu")
    fill_slab(x, slab.view(-1).numpy(), W, W)
    return slab
