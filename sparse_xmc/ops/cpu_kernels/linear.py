"""CPU kernels of the fixed fan-in layer.

``x`` is laid out feature-major (``_slab.py``) and labels are walked in small tiles, so that a connection is one
multiply-add of ``W`` neighbouring numbers out of the cache (``_simd.py``), and the tile's part of ``y`` or ``dy`` is
transposed in the cache (``_tiles.py``). Where a group of labels shares its connections, their rows of ``x`` are first
gathered into a ``[K, W]`` table, and the same loops run on that.

No result depends on the number of threads: ``backward_input`` adds up partial sums over label ranges that are a
function of the shape, in ascending order.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.cpu_kernels import _simd
from sparse_xmc.ops.cpu_kernels._logits import logits_tile
from sparse_xmc.ops.cpu_kernels._memory import empty
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, store
from sparse_xmc.ops.cpu_kernels._scaled import weight_argument
from sparse_xmc.ops.cpu_kernels._simd_blocks import fold, item, totals
from sparse_xmc.ops.cpu_kernels._slab import block_width, make_slab
from sparse_xmc.ops.cpu_kernels._tiles import gather_rows, load_batch, load_offsets, load_weights, save_batch

_TILE = 128  # labels, a multiple of 8
_PARTIALS = 16  # most label ranges that backward_input sums separately


class _Kernels(NamedTuple):
    forward: Any
    backward_input: Any
    backward_weight: Any


@functools.cache
def _kernels(W: int) -> _Kernels:
    """The kernels for batch blocks of W rows. They are compiled for the dtypes in use, at the first call."""

    @kernel
    def forward(slab, weight, indices, bias, y, group_size, block, start, stop):
        # slab [blocks, D, W], weight [L, K], indices [R, K], bias [L] or [0], y [B, L]
        # tile, scratch [_TILE, W]; buffers: weights, offsets [_TILE, K], a group's rows of x [K, W]
        K, group_row = indices.shape[1], -1
        tile, scratch = np.empty(_TILE * W, slab.dtype), np.empty(_TILE * W, slab.dtype)
        buffers = (np.empty(_TILE * K, slab.dtype), np.arange(_TILE * K) * W, np.empty(K * W, slab.dtype))
        for l0 in range(start, stop, _TILE):
            labels = min(_TILE, stop - l0)
            group_row = logits_tile(
                slab, block, weight, indices, bias, group_size, l0, labels, buffers, group_row, tile, W
            )
            save_batch(tile, block * W, l0, labels, W, scratch, y)

    @kernel
    def backward_input(dy, weight, indices, partial, group_size, block, part, start, stop):
        # dy [B, L], weight [L, K], indices [R, K], partial [blocks, parts, D, W]
        # sums [D, W]; weights, offsets [_TILE, K]; tile, scratch [_TILE, W]
        K = weight.shape[1]
        sums = partial[block, part].reshape(-1)
        sums[:] = 0
        weights, offsets = np.empty(_TILE * K, sums.dtype), np.empty(_TILE * K, np.int64)
        tile, scratch = np.empty(_TILE * W, sums.dtype), np.empty(_TILE * W, sums.dtype)
        for l0 in range(start, stop, _TILE):
            labels = min(_TILE, stop - l0)
            load_weights(weight, l0, labels, weights)
            load_batch(dy, block * W, l0, labels, W, scratch, tile)
            if group_size == 1:
                load_offsets(indices, 1, l0, labels, W, offsets)
                for i in range(labels):
                    upstream = _simd.load(tile, i * W, W)
                    for k in range(i * K, i * K + K):
                        at = item(offsets, k)
                        row = _simd.fma(_simd.splat(item(weights, k), W), upstream, _simd.load(sums, at, W))
                        _simd.store(sums, at, row)
            else:
                i = 0
                while i < labels:
                    r = (l0 + i) // group_size
                    end = min(labels, (r + 1) * group_size - l0)
                    for k in range(K):
                        at = np.int64(indices[r, k]) * W
                        row = _simd.load(sums, at, W)
                        for j in range(i, end):
                            row = _simd.fma(_simd.splat(item(weights, j * K + k), W), _simd.load(tile, j * W, W), row)
                        _simd.store(sums, at, row)
                    i = end

    @kernel
    def backward_weight(dy, slab, indices, dw, group_size, start, stop):
        # dy [B, L], slab [blocks, D, W], indices [R, K], dw [L, K]
        # sums, offsets [_TILE, K]; tile, scratch [_TILE, W]; group [K, W]; table: [D, W] of a block, or group
        K = dw.shape[1]
        sums = np.empty(_TILE * K, slab.dtype)
        tile, scratch = np.empty(_TILE * W, slab.dtype), np.empty(_TILE * W, slab.dtype)
        group = np.empty(K * W, slab.dtype)
        offsets = np.arange(_TILE * K) * W
        for l0 in range(start, stop, _TILE):
            labels = min(_TILE, stop - l0)
            if group_size == 1:
                load_offsets(indices, 1, l0, labels, W, offsets)
            sums[: labels * K] = 0
            for block in range(slab.shape[0]):
                table, gathered = slab[block].reshape(-1), -1
                if group_size > 1:
                    table = group
                load_batch(dy, block * W, l0, labels, W, scratch, tile)
                for i in range(labels):
                    r, first_offset = (l0 + i) // group_size, i * K
                    if group_size > 1:
                        first_offset = 0
                        if r != gathered:
                            gather_rows(slab, block, indices, r, group)
                            gathered = r
                    upstream = _simd.load(tile, i * W, W)
                    for k in range(0, K - 3, 4):
                        at = first_offset + k
                        products = totals(
                            fold(upstream, _simd.load(table, item(offsets, at), W)),
                            fold(upstream, _simd.load(table, item(offsets, at + 1), W)),
                            fold(upstream, _simd.load(table, item(offsets, at + 2), W)),
                            fold(upstream, _simd.load(table, item(offsets, at + 3), W)),
                        )
                        _simd.store(sums, i * K + k, _simd.load(sums, i * K + k, 4) + products)
                    for k in range(K - K % 4, K):
                        row = _simd.load(table, item(offsets, first_offset + k), W)
                        sums[i * K + k] += _simd.total(fold(upstream, row))
            for i in range(labels):
                for k in range(K):
                    store(dw, l0 + i, k, sums[i * K + k])

    return _Kernels(forward, backward_input, backward_weight)


def _label_ranges(L: int, work_per_label: int) -> list[tuple[int, int]]:
    """Pieces for the threads to take: several each, but none too small to be worth handing over."""
    pieces = min(4 * threads.num_threads(), 1 + L * work_per_label // 1_000_000)
    return threads.split(L, pieces, _TILE)


lay_out = make_slab


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None = None,
    laid_out: Tensor | None = None,
) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype."""
    B, (L, K) = x.shape[0], weight.shape
    y = empty(B, L, dtype=x.dtype)
    if B == 0:
        return y
    slab = make_slab(x) if laid_out is None else laid_out
    blocks, _, W = slab.shape
    bias = torch.empty(0, dtype=slab.dtype, device="cpu") if bias is None else bias.contiguous()
    weights = weight_argument(weight.contiguous(), weight_scale)
    tasks = [(block, *labels) for block in range(blocks) for labels in _label_ranges(L, K * W)]
    threads.run(
        _kernels(W).forward, tasks, as_numpy(slab), weights, *map(as_numpy, (indices.contiguous(), bias, y)), group_size
    )
    return y


def backward_input(
    dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int, deterministic: bool
) -> Tensor:
    """dy [B, L] -> dx [B, D] in dy's dtype. Always deterministic."""
    (B, L), K = dy.shape, weight.shape[1]
    dx = torch.empty(B, in_features, dtype=dy.dtype, device="cpu")
    if B == 0:
        return dx
    dtype = compute_dtype(dy.dtype)
    W = block_width(B, in_features, dtype)
    blocks = -(-B // W)
    # A range pays for clearing and adding its partial sums with at least 64 connections per feature.
    ranges = threads.split(L, max(1, min(-(-_PARTIALS // blocks), L * K // (64 * in_features))), _TILE)
    partial = torch.empty(blocks, len(ranges), in_features, W, dtype=dtype, device="cpu")
    tasks = [(block, part, *labels) for block in range(blocks) for part, labels in enumerate(ranges)]
    arrays = (dy.contiguous(), weight.contiguous(), indices.contiguous(), partial)
    threads.run(_kernels(W).backward_input, tasks, *map(as_numpy, arrays), group_size)
    for rows, sums in zip(dx.split(W), partial, strict=True):
        total = sums[0]
        for part in sums[1:]:
            total += part
        rows.copy_(total[:, : rows.shape[0]].t())
    return dx


def backward_weight(
    dy: Tensor, x: Tensor, indices: Tensor, group_size: int, dtype: torch.dtype, laid_out: Tensor | None = None
) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``."""
    (B, L), K = dy.shape, indices.shape[1]
    if B == 0:
        return torch.zeros(L, K, dtype=dtype, device="cpu")
    dw = empty(L, K, dtype=dtype)
    slab = make_slab(x) if laid_out is None else laid_out
    arrays = (dy.contiguous(), slab, indices.contiguous(), dw)
    threads.run(_kernels(slab.shape[2]).backward_weight, _label_ranges(L, B * K), *map(as_numpy, arrays), group_size)
    return dw
