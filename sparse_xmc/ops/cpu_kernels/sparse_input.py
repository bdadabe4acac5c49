"""CPU kernels of a fixed fan-in layer whose input rows are sparse.

The inverted index (feature -> connections) turns the layer around: a row of ``n`` nonzeros meets ``n * L * K / D``
connections
on average instead of ``L * K``. Labels are walked in tiles; a tile owns its logits, weight gradients and bias
gradients, adds them in row order, and so no result depends on the number of threads.
"""

import math

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from sparse_xmc.ops.cpu_kernels import _threads
from sparse_xmc.ops.cpu_kernels._numeric import kernel

_TILE = 4096  # labels whose logits of one row stay in the L1 cache


@register_jitable(inline="always")
def _exp_of_negative(value):
    """``exp(value)`` for ``value <= 0`` to about 1e-7 relative, in operations that LLVM vectorises; 0 below -87."""
    scaled = np.float32(max(value, np.float32(-87.0)) * np.float32(1.44269504088896))
    whole = np.floor(scaled)
    t = np.float32((scaled - whole) * np.float32(0.693147180559945))
    p = np.float32(1.0 / 5040.0)
    for c in (1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        p = np.float32(p * t + np.float32(c))
    return np.float32(p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32))


@register_jitable
def _range_of_tile(positions, start, stop, low, high):
    """The part of ``positions[start:stop]`` (ascending) that lies in ``[low, high)``."""
    first = start + np.searchsorted(positions[start:stop], low)
    return first, first + np.searchsorted(positions[first:stop], high)


@kernel
def _row_logits(b, crow, col, values, weight, offsets, positions, bias, group_size, r0, r1, z):
    """Logits of one row and the labels of the index rows ``[r0, r1)``."""
    L, K = weight.shape
    l0, labels = r0 * group_size, min(r1 * group_size, L) - r0 * group_size
    for i in range(labels):
        z[i] = bias[l0 + i] if bias.shape[0] > 0 else np.float32(0)
    flat = weight.reshape(-1)
    for j in range(crow[b], crow[b + 1]):
        value = values[j]
        first, last = offsets[col[j]], offsets[col[j] + 1]
        if r0 > 0 or r1 * K < positions.shape[0]:
            first, last = _range_of_tile(positions, first, last, r0 * K, r1 * K)
        if group_size == 1:
            for q in range(first, last):
                p = np.uint32(positions[q])
                z[p // np.uint32(K) - np.uint32(l0)] += value * flat[p]
        else:
            for q in range(first, last):
                r, k = positions[q] // K, positions[q] % K
                for label in range(r * group_size, min((r + 1) * group_size, L)):
                    z[label - l0] += value * weight[label, k]


@kernel
def _forward(crow, col, values, weight, offsets, positions, bias, group_size, y, r0, r1):
    l0, l1 = r0 * group_size, min(r1 * group_size, weight.shape[0])
    for b in range(crow.shape[0] - 1):
        _row_logits(b, crow, col, values, weight, offsets, positions, bias, group_size, r0, r1, y[b, l0:l1])


@kernel
def _bce(z, slope):
    """Sum of softplus; ``slope`` becomes the sigmoid."""
    for i in range(z.shape[0]):
        e = _exp_of_negative(-abs(z[i]))
        slope[i] = (np.float32(1) if z[i] >= 0 else e) / (np.float32(1) + e)
    total = 0.0
    for i in range(z.shape[0]):
        s = slope[i]
        if z[i] < np.float32(-5.0):
            total += s * (np.float32(1) + s * (np.float32(0.5) + s * np.float32(1 / 3)))
        else:
            total += max(z[i], np.float32(0)) + math.log1p(math.exp(-abs(z[i])))
    return total


@kernel
def _squared_hinge(z, slope):
    """Sum of ``max(0, 1 + z)^2``; ``slope`` becomes its derivative."""
    total = np.float32(0)
    for i in range(z.shape[0]):
        margin = max(np.float32(0), np.float32(1) + z[i])
        slope[i] = np.float32(2) * margin
        total += margin * margin
    return total


@kernel
def _loss(
    crow,
    col,
    values,
    weight,
    offsets,
    positions,
    bias,
    group_size,
    target_crow,
    target_col,
    hinge,
    gradients,
    dw,
    db,
    sums,
    tile,
    r0,
    r1,
):
    L, K = weight.shape
    l0, l1 = r0 * group_size, min(r1 * group_size, L)
    z, slope = np.empty(l1 - l0, np.float32), np.empty(l1 - l0, np.float32)
    flat = dw.reshape(-1)
    total = 0.0
    for b in range(crow.shape[0] - 1):
        _row_logits(b, crow, col, values, weight, offsets, positions, bias, group_size, r0, r1, z)
        total += _squared_hinge(z, slope) if hinge else _bce(z, slope)
        previous = np.int64(-1)
        for t in range(target_crow[b], target_crow[b + 1]):
            label = target_col[t]
            if label < l0 or label >= l1 or label == previous:
                continue
            previous = label
            i = label - l0
            if hinge:
                wrong, right = max(np.float32(0), 1 + z[i]), max(np.float32(0), 1 - z[i])
                total += right * right - wrong * wrong
                slope[i] = -2 * right
            else:
                total -= z[i]
                slope[i] -= np.float32(1)
        if not gradients:
            continue
        if db.shape[0] > 0:
            for i in range(l1 - l0):
                db[l0 + i] += slope[i]
        for j in range(crow[b], crow[b + 1]):
            value = values[j]
            first, last = offsets[col[j]], offsets[col[j] + 1]
            if r0 > 0 or r1 * K < positions.shape[0]:
                first, last = _range_of_tile(positions, first, last, r0 * K, r1 * K)
            if group_size == 1:
                for q in range(first, last):
                    p = np.uint32(positions[q])
                    flat[p] += value * slope[p // np.uint32(K) - np.uint32(l0)]
            else:
                for q in range(first, last):
                    r, k = positions[q] // K, positions[q] % K
                    for label in range(r * group_size, min((r + 1) * group_size, L)):
                        dw[label, k] += value * slope[label - l0]
    sums[tile] = total


def _tiles(num_index_rows: int, group_size: int) -> list[tuple[int, int]]:
    parts = max(2, -(-num_index_rows * group_size // _TILE))
    return _threads.split(num_index_rows, parts)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def forward(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    weight: Tensor,
    offsets: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    """Logits [B, L] float32 of sparse rows; ``offsets``, ``positions``: the inverted index of the connections."""
    y = torch.empty(len(crow) - 1, weight.shape[0])
    bias = weight.new_empty(0) if bias is None else bias
    rows = -(-weight.shape[0] // group_size)
    arguments = _arrays(crow, col, values, weight, offsets, positions, bias)
    _threads.run(_forward, _tiles(rows, group_size), *arguments, group_size, y.numpy())
    return y


def loss_gradients(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    weight: Tensor,
    offsets: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    target_crow: Tensor,
    target_col: Tensor,
    loss: str,
    group_size: int,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of the loss over rows and labels, dw [L, K], db [L]) in one sweep; dw and db are empty unless asked for."""
    dw = torch.zeros_like(weight) if gradients else weight.new_empty(0, weight.shape[1])
    db = torch.zeros_like(bias) if gradients and bias is not None else weight.new_empty(0)
    bias = weight.new_empty(0) if bias is None else bias
    tiles = [(i, *tile) for i, tile in enumerate(_tiles(-(-weight.shape[0] // group_size), group_size))]
    sums = np.zeros(len(tiles))
    arguments = _arrays(crow, col, values, weight, offsets, positions, bias)
    targets = _arrays(target_crow, target_col)
    _threads.run(
        _loss, tiles, *arguments, group_size, *targets, loss == "squared_hinge", gradients, dw.numpy(), db.numpy(), sums
    )
    return torch.tensor(sums.sum(), dtype=torch.float32), dw, db
