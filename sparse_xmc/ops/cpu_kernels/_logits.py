"""Logits of one label tile for one block of the batch, in float32 (float64), in the cache."""

import numpy as np
from numba.core import types
from numba.extending import overload

from sparse_xmc.ops.cpu_kernels import _simd
from sparse_xmc.ops.cpu_kernels._numeric import decode
from sparse_xmc.ops.cpu_kernels._scaled import load_scaled_weights
from sparse_xmc.ops.cpu_kernels._simd_blocks import item
from sparse_xmc.ops.cpu_kernels._tiles import gather_rows, load_offsets, load_weights


def logits_tile(slab, block, weight, indices, bias, group_size, l0, labels, buffers, group_row, tile, W):
    """Fills ``tile[i * W + b]`` with the logit of label ``l0 + i`` for row ``b`` of the block.

    ``weight`` may be a pair of 8-bit weights and their scales (``_scaled.py``).
    ``buffers``: ``(weights [tile * K], offsets [tile * K] int64, group [K * W])``; with groups the offsets must hold
    ``k * W``. ``group_row`` is the row of indices that ``group`` holds (-1: none); returns the one it holds now.
    """


@overload(logits_tile, prefer_literal=True)
def _logits_tile(slab, block, weight, indices, bias, group_size, l0, labels, buffers, group_row, tile, W):
    if not isinstance(W, types.IntegerLiteral):
        return None
    lanes = W.literal_value
    load = load_scaled_weights if isinstance(weight, types.BaseTuple) else load_weights

    def impl(slab, block, weight, indices, bias, group_size, l0, labels, buffers, group_row, tile, W):
        # slab [blocks, D, W], weight [L, K], indices [R, K], bias [L] or [0], tile [labels, W]
        # table: [D, W] of the block, or group [K, W]: what a connection's offset points into
        weights, offsets, group = buffers
        K, zero = indices.shape[1], slab.dtype.type(0)
        table = slab[block].reshape(-1)
        load(weight, l0, labels, weights)
        if group_size > 1:
            table = group
        else:
            load_offsets(indices, 1, l0, labels, lanes, offsets)
        for i in range(labels):
            r, first_offset = (l0 + i) // group_size, i * K
            if group_size > 1:
                first_offset = 0
                if r != group_row:
                    gather_rows(slab, block, indices, r, group)
                    group_row = r
            initial = slab.dtype.type(decode(bias[l0 + i])) if bias.shape[0] > 0 else zero
            # A narrow sum would wait for its own last multiply-add: two chains take turns.
            even, odd = _simd.splat(initial, lanes), _simd.splat(zero, lanes)
            paired = K // 2 * 2 if lanes <= 32 else 0
            for k in range(0, paired, 2):
                row = _simd.load(table, item(offsets, first_offset + k), lanes)
                even = _simd.fma(_simd.splat(item(weights, i * K + k), lanes), row, even)
                row = _simd.load(table, item(offsets, first_offset + k + 1), lanes)
                odd = _simd.fma(_simd.splat(item(weights, i * K + k + 1), lanes), row, odd)
            for k in range(paired, K):
                row = _simd.load(table, item(offsets, first_offset + k), lanes)
                even = _simd.fma(_simd.splat(item(weights, i * K + k), lanes), row, even)
            _simd.store(tile, i * lanes, even + odd)
        return np.int64(group_row)

    return impl
