"""Pieces that every kernel over label tiles shares: connections in, rows of the batch in and out.

Buffers are flat. A label-major tile holds label ``i`` of the tile and row ``b`` of the block at ``i * W + b``; the
tensors ``y`` and ``dy`` have it the other way round, so a tile is transposed in 8 x 8 blocks in the cache on its way.
"""

import numpy as np

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._numeric import decode, store
from sparse_xmc.ops.cpu_kernels._simd_blocks import transpose8


@kernel
def load_weights(weight, l0, labels, out):
    """weight[l0 + i, k] -> out[i * K + k]."""
    # weight [L, K], out [labels * K]
    K = weight.shape[1]
    for i in range(labels):
        for k in range(K):
            out[i * K + k] = decode(weight[l0 + i, k])


@kernel
def load_offsets(indices, group_size, l0, labels, W, out):
    """Where the row of a connection starts in a block of the slab -> out[i * K + k]."""
    # indices [R, K], out [labels * K] int64
    K = indices.shape[1]
    for i in range(labels):
        r = (l0 + i) // group_size
        for k in range(K):
            out[i * K + k] = np.int64(indices[r, k]) * W


@kernel
def gather_rows(slab, block, indices, r, out):
    """slab[block, indices[r, k], b] -> out[k * W + b]."""
    # slab [blocks, D, W], indices [R, K], out [K * W]
    W = slab.shape[2]
    for k in range(indices.shape[1]):
        out[k * W : k * W + W] = slab[block, np.int64(indices[r, k])]


@kernel
def _transpose(source, rows, columns, row_stride, target, column_stride):
    for i in range(0, rows, 8):
        for j in range(0, columns, 8):
            transpose8(
                source, i * row_stride + j, np.int64(row_stride), target, j * column_stride + i, np.int64(column_stride)
            )


@kernel
def load_batch(dy, b0, l0, labels, W, scratch, out):
    """dy[b0 + b, l0 + i] -> out[i * W + b], zero for rows beyond the batch. Both buffers hold W * (labels rounded up
    to 8) numbers."""
    # dy [B, L], scratch [W, stride], out [stride, W]
    stride = (labels + 7) // 8 * 8
    rows = min(W, dy.shape[0] - b0)
    for b in range(rows):
        for i in range(labels):
            scratch[b * stride + i] = decode(dy[b0 + b, l0 + i])
    scratch[rows * stride : W * stride] = 0
    _transpose(scratch, W, stride, stride, out, W)


@kernel
def save_batch(tile, b0, l0, labels, W, scratch, y):
    """tile[i * W + b] -> y[b0 + b, l0 + i], rounded once."""
    # tile [stride, W], scratch [W, stride], y [B, L]
    stride = (labels + 7) // 8 * 8
    _transpose(tile, stride, W, W, scratch, stride)
    for b in range(min(W, y.shape[0] - b0)):
        for i in range(labels):
            store(y, b0 + b, l0 + i, scratch[b * stride + i])
