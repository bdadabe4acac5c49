"""CPU kernel of streaming top-k: logits exist a label tile at a time, each thread keeps k candidates per row.

A row's candidates are a heap with the worst on top, so nearly every label is dismissed by one comparison with it, made
for a whole block of rows at once.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.cpu_kernels._logits import logits_tile
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy
from sparse_xmc.ops.cpu_kernels._scaled import weight_argument
from sparse_xmc.ops.cpu_kernels._slab import make_slab

_TILE = 64  # labels, a multiple of 8


@kernel
def _worse(score, label, other_score, other_label):
    """Whether the first comes after the second: NaN leads as in torch.topk, equals go by label."""
    if score != score or other_score != other_score:
        return other_score != other_score and (score == score or label > other_label)
    return score < other_score or (score == other_score and label > other_label)


@kernel
def _sift_down(scores, labels, score, label):
    """Puts a candidate in the place of the worst one."""
    # scores, labels [k]: a heap with the worst on top
    k, at = scores.shape[0], 0
    while 2 * at + 1 < k:
        child = 2 * at + 1
        if child + 1 < k and _worse(scores[child + 1], labels[child + 1], scores[child], labels[child]):
            child += 1
        if not _worse(scores[child], labels[child], score, label):
            break
        scores[at], labels[at] = scores[child], labels[child]
        at = child
    scores[at], labels[at] = score, label


@kernel
def _excluded(offsets, columns, row, label):
    # offsets [B + 1], columns [nnz], ascending within a row
    first, last = offsets[row], offsets[row + 1]
    while first < last:
        middle = (first + last) // 2
        if columns[middle] < label:
            first = middle + 1
        else:
            last = middle
    return first < offsets[row + 1] and columns[first] == label


@functools.cache
def _kernel(W: int) -> Any:
    """The kernel for batch blocks of W rows."""

    @kernel
    def topk(
        slab, weight, indices, bias, group_size, offsets, columns, scores, labels, no_label, block, part, start, stop
    ):
        # slab [blocks, D, W], weight [L, K], indices [R, K], bias [L] or [0], offsets [B + 1] and columns [nnz], or [0]
        # scores, labels [parts, B, k]; tile [_TILE, W]; buffers: weights, offsets [_TILE, K], a group's rows of x [K, W]
        K, b0 = indices.shape[1], block * W
        rows = min(W, scores.shape[1] - b0)
        tile = np.empty(_TILE * W, slab.dtype)
        buffers = (np.empty(_TILE * K, slab.dtype), np.arange(_TILE * K) * W, np.empty(K * W, slab.dtype))
        worst = np.full(W, -np.inf, slab.dtype)
        empty, group_row = rows, -1  # rows that still hold a place without a label
        for l0 in range(start, stop, _TILE):
            count = min(_TILE, stop - l0)
            group_row = logits_tile(
                slab, block, weight, indices, bias, group_size, l0, count, buffers, group_row, tile, W
            )
            for i in range(count):
                hits = 0
                for b in range(W):
                    hits += not tile[i * W + b] <= worst[b]
                if hits == 0 and empty == 0:
                    continue
                for b in range(rows):
                    score = tile[i * W + b]
                    mine, mine_labels = scores[part, b0 + b], labels[part, b0 + b]
                    if not _worse(mine[0], mine_labels[0], score, l0 + i):
                        continue
                    if columns.shape[0] > 0 and _excluded(offsets, columns, b0 + b, l0 + i):
                        continue
                    was_empty = mine_labels[0] == no_label
                    _sift_down(mine, mine_labels, score, l0 + i)
                    worst[b] = mine[0]
                    empty -= was_empty and mine_labels[0] != no_label

    return topk


def topk(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    k: int,
    group_size: int,
    exclude_offsets: Tensor | None,
    exclude_labels: Tensor | None,
    weight_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [B, D] -> (scores [B, k] in x's dtype, labels [B, k] int64), by descending score, then ascending label.

    ``exclude_labels`` are the labels, ascending within each row, that must not be returned; row b's lie between
    ``exclude_offsets[b]`` and ``exclude_offsets[b + 1]``. Every row has at least k others.
    """
    B, (L, K) = x.shape[0], weight.shape
    if B == 0:
        return x.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device="cpu")
    slab = make_slab(x)
    blocks, _, W = slab.shape
    pieces = min(2 * threads.num_threads(), 1 + L * K * W // 1_000_000, max(1, L // (2 * k)))
    ranges = threads.split(L, pieces, _TILE)
    tasks = [(block, part, *span) for block in range(blocks) for part, span in enumerate(ranges)]
    scores = torch.full((len(ranges), B, k), -torch.inf, dtype=compute_dtype(x.dtype), device="cpu")
    labels = torch.full((len(ranges), B, k), L, dtype=torch.int64, device="cpu")
    if exclude_offsets is None or exclude_labels is None:
        exclude_offsets = exclude_labels = torch.empty(0, dtype=torch.int64, device="cpu")
    bias = torch.empty(0, dtype=slab.dtype, device="cpu") if bias is None else bias.contiguous()
    weights = weight_argument(weight.contiguous(), weight_scale)
    layer = [as_numpy(t) for t in (indices.contiguous(), bias)]
    results = [as_numpy(t) for t in (exclude_offsets, exclude_labels, scores, labels)]
    threads.run(_kernel(W), tasks, as_numpy(slab), weights, *layer, group_size, *results, L)
    labels, order = labels.transpose(0, 1).reshape(B, -1).sort(dim=1)
    scores, best = scores.transpose(0, 1).reshape(B, -1).gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores[:, :k].to(x.dtype), labels.gather(1, best[:, :k])
