"""Feature-major copies of ``x``: ``slab [blocks, D, W]`` holds ``x[block * W + b, d]`` at ``[block, d, b]``.

A connection then reads ``W`` neighbouring numbers. ``W`` is a multiple of 8 (one AVX2 register of float32), rows
beyond ``B`` are zero, and a block is narrow enough to stay in the cache while labels stream past.
"""

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype

LANES = 8
_MAX_WIDTH = 64


def block_width(B: int) -> tuple[int, int]:
    """Number of batch blocks and rows per block."""
    blocks = max(1, -(-B // _MAX_WIDTH))
    rows = -(-B // blocks)
    return -(-B // (-(-rows // LANES) * LANES)) if B else 1, max(LANES, -(-rows // LANES) * LANES)


def make_slab(x: Tensor) -> Tensor:
    """x [B, D] (any dtype, any strides) -> slab [blocks, D, W] in the dtype that sums are accumulated in."""
    B, D = x.shape
    blocks, width = block_width(B)
    slab = torch.zeros(blocks, D, width, dtype=compute_dtype(x.dtype))
    for block in range(blocks):
        rows = x[block * width : (block + 1) * width]
        slab[block, :, : rows.shape[0]].copy_(rows.t())
    return slab
