"""CPU kernels of the fixed fan-in layer.

``x`` is laid out feature-major (``_slab.py``), labels are walked in small tiles, and the inner loops run over the batch.
The sums of ``forward`` and ``backward_weight`` do not depend on the number of threads. ``backward_input`` adds
partial sums of a number of label ranges that is a function of the shape, in ascending order, so it does not either.
"""

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.cpu_kernels import _threads
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, decode, kernel, store
from sparse_xmc.ops.cpu_kernels._slab import block_width, make_slab

_TILE = 32  # labels whose outputs are transposed together
_PARTIALS = 8  # label ranges that backward_input sums separately


@kernel
def _forward(slab, weight, indices, bias, y, group_size, block, start, stop):
    W, K = slab.shape[2], weight.shape[1]
    b0 = block * W
    rows = min(W, y.shape[0] - b0)
    table = slab[block]
    acc = np.empty((_TILE, W), slab.dtype)
    for l0 in range(start, stop, _TILE):
        labels = min(_TILE, stop - l0)
        for i in range(labels):
            label = l0 + i
            r = label // group_size
            total = acc[i]
            total[:] = decode(bias[label]) if bias.shape[0] > 0 else 0.0
            for k in range(0, K - 3, 4):
                w0, w1 = decode(weight[label, k]), decode(weight[label, k + 1])
                w2, w3 = decode(weight[label, k + 2]), decode(weight[label, k + 3])
                x0, x1 = table[np.uint64(indices[r, k])], table[np.uint64(indices[r, k + 1])]
                x2, x3 = table[np.uint64(indices[r, k + 2])], table[np.uint64(indices[r, k + 3])]
                for b in range(W):
                    total[b] += w0 * x0[b] + w1 * x1[b] + w2 * x2[b] + w3 * x3[b]
            for k in range(K - K % 4, K):
                w0, x0 = decode(weight[label, k]), table[np.uint64(indices[r, k])]
                for b in range(W):
                    total[b] += w0 * x0[b]
        for b in range(rows):
            for i in range(labels):
                store(y, b0 + b, l0 + i, acc[i, b])


@kernel
def _load_dy(dy, tile, b0, l0, labels):
    """dy[b0 + b, l0 + i] -> tile[i, b], zero beyond the batch."""
    rows = min(tile.shape[1], dy.shape[0] - b0)
    for i in range(labels):
        tile[i, rows:] = 0
    for b in range(rows):
        for i in range(labels):
            tile[i, b] = decode(dy[b0 + b, l0 + i])


@kernel
def _backward_input(dy, weight, indices, partial, group_size, part, block, start, stop):
    W, K = partial.shape[2], weight.shape[1]
    sums = partial[part]
    sums[:] = 0
    tile = np.empty((_TILE, W), partial.dtype)
    for l0 in range(start, stop, _TILE):
        labels = min(_TILE, stop - l0)
        _load_dy(dy, tile, block * W, l0, labels)
        for i in range(labels):
            label = l0 + i
            r = label // group_size
            upstream = tile[i]
            for k in range(K):
                w, row = decode(weight[label, k]), sums[np.uint64(indices[r, k])]
                for b in range(W):
                    row[b] += w * upstream[b]


@kernel
def _backward_weight(dy, slab, indices, dw, group_size, start, stop):
    W, K = slab.shape[2], dw.shape[1]
    tile = np.empty((_TILE, W), slab.dtype)
    acc = np.empty((_TILE, K), slab.dtype)
    for l0 in range(start, stop, _TILE):
        labels = min(_TILE, stop - l0)
        acc[:labels] = 0
        for block in range(slab.shape[0]):
            _load_dy(dy, tile, block * W, l0, labels)
            table = slab[block]
            for i in range(labels):
                r = (l0 + i) // group_size
                upstream = tile[i]
                for k in range(K):
                    row = table[np.uint64(indices[r, k])]
                    total = acc[i, k]
                    for b in range(W):
                        total += row[b] * upstream[b]
                    acc[i, k] = total
        for i in range(labels):
            for k in range(K):
                store(dw, l0 + i, k, acc[i, k])


def _label_ranges(L: int) -> list[tuple[int, int]]:
    return _threads.split(L, 4 * _threads.num_threads(), _TILE)


def forward(x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, group_size: int) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype."""
    (B, _), L = x.shape, weight.shape[0]
    y = torch.empty(B, L, dtype=x.dtype)
    if B == 0:
        return y
    slab = make_slab(x)
    bias = torch.zeros(0, dtype=weight.dtype) if bias is None else bias.contiguous()
    tasks = [(block, *labels) for block in range(slab.shape[0]) for labels in _label_ranges(L)]
    arrays = (slab, weight.contiguous(), indices.contiguous(), bias, y)
    _threads.run(_forward, tasks, *map(as_numpy, arrays), group_size)
    return y


def backward_input(
    dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int, deterministic: bool
) -> Tensor:
    """dy [B, L] -> dx [B, D] in dy's dtype. Always deterministic."""
    B, L = dy.shape
    dx = torch.empty(B, in_features, dtype=dy.dtype)
    if B == 0:
        return dx
    blocks, W = block_width(B)
    ranges = _threads.split(L, _PARTIALS, _TILE)
    partial = torch.empty(len(ranges), in_features, W, dtype=compute_dtype(dy.dtype))
    arrays = [as_numpy(t) for t in (dy.contiguous(), weight.contiguous(), indices.contiguous(), partial)]
    for block in range(blocks):
        tasks = [(part, block, *labels) for part, labels in enumerate(ranges)]
        _threads.run(_backward_input, tasks, *arrays, group_size)
        rows = dx[block * W : (block + 1) * W]
        total = partial[0]
        for other in partial[1:]:
            total += other
        rows.copy_(total[:, : rows.shape[0]].t())
    return dx


def backward_weight(dy: Tensor, x: Tensor, indices: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``."""
    L, K = dy.shape[1], indices.shape[1]
    if dy.shape[0] == 0:
        return torch.zeros(L, K, dtype=dtype)
    dw = torch.empty(L, K, dtype=dtype)
    arrays = [as_numpy(t) for t in (dy.contiguous(), make_slab(x), indices.contiguous(), dw)]
    _threads.run(_backward_weight, _label_ranges(L), *arrays, group_size)
    return dw
