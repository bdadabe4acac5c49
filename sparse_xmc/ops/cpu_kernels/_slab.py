"""Feature-major copies of ``x``: ``slab [blocks, D, W]`` holds ``x[block * W + b, d]`` at ``[block, d, b]``.

A connection then reads ``W`` neighbouring numbers. Rows beyond ``B`` are zero.
"""

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype

_WIDTHS = (8, 16, 32, 64)
_CACHE_BYTES = 400_000  # of one block, while labels stream past: most of a private L2 cache
_CONNECTION_LANES = 8  # what handling a connection costs beside its arithmetic, in lanes
_REGISTER_BYTES = 256  # of one row of sums: half of AVX2's register file


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


def make_slab(x: Tensor) -> Tensor:
    """x [B, D] (any dtype, any strides) -> slab [blocks, D, W] in the dtype that sums are accumulated in."""
    (B, D), dtype = x.shape, compute_dtype(x.dtype)
    W = block_width(B, D, dtype)
    slab = torch.zeros(-(-B // W), D, W, dtype=dtype)
    for block, rows in enumerate(x.split(W)):
        slab[block, :, : rows.shape[0]].copy_(rows.t())
    return slab
