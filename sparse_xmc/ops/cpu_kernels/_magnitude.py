"""Scores of connections: the bit pattern of |w|, or of its mean or maximum over a group, as a sortable integer.

Scores are float32; NaN sorts above infinity. Sums over a group run in the order of its labels.
"""

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, decode

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_LOW_BITS = np.uint32(16)


@register_jitable
def score_row(weight, row, group_size, use_max, acc, keys, first_key=0, step=1):
    """Writes the scores of a row of indices to ``keys[first_key + k * step]`` (uint32); ``acc [K]`` is float32 scratch."""
    # weight [L, K]; group_size rows of it make one row of scores
    first, K = row * group_size, acc.shape[0]
    if group_size == 1:
        for k in range(K):
            keys[first_key + k * step] = np.float32(decode(weight[first, k])).view(np.uint32) & _MAGNITUDE
        return
    stop = min(first + group_size, weight.shape[0])
    acc[:] = 0
    for label in range(first, stop):
        for k in range(K):
            magnitude = np.abs(np.float32(decode(weight[label, k])))
            if not use_max:
                acc[k] += magnitude
            elif not magnitude <= acc[k]:
                acc[k] = magnitude
    inverse = np.float32(1.0) if use_max else np.float32(1.0) / np.float32(stop - first)
    for k in range(K):
        keys[first_key + k * step] = np.float32(acc[k] * inverse).view(np.uint32) & _MAGNITUDE


@kernel
def _histogram(weight, K, group_size, use_max, prefix, hist, task, start, stop):
    """Counts the high bits of all scores (``prefix`` -1), or the low bits of those whose high bits are ``prefix``."""
    # weight [L, K], hist [parts, bins]
    acc, keys = np.empty(K, np.float32), np.empty(K, np.uint32)
    counts = hist[task]
    for row in range(start, stop):
        score_row(weight, row, group_size, use_max, acc, keys)
        if prefix < 0:
            for k in range(K):
                counts[keys[k] >> _LOW_BITS] += 1
        else:
            for k in range(K):
                if keys[k] >> _LOW_BITS == prefix:
                    counts[keys[k] & np.uint32(0xFFFF)] += 1


@kernel
def _count_ties(weight, K, group_size, use_max, key, ties, task, start, stop):
    # weight [L, K], ties [parts]
    acc, keys = np.empty(K, np.float32), np.empty(K, np.uint32)
    total = 0
    for row in range(start, stop):
        score_row(weight, row, group_size, use_max, acc, keys)
        for k in range(K):
            total += keys[k] == key
    ties[task] = total


@kernel
def _count_rows(weight, group_size, use_max, key, budget, limit, counts, K, task, start, stop):
    # weight [L, K], budget [parts], counts [R] int16
    acc, keys = np.empty(K, np.float32), np.empty(K, np.uint32)
    left = budget[task]
    for row in range(start, stop):
        score_row(weight, row, group_size, use_max, acc, keys)
        below, equal = 0, 0
        for k in range(K):
            below += keys[k] < key
            equal += keys[k] == key
        taken = min(equal, max(0, left))
        left -= equal
        counts[row] = min(limit, below + taken)


def _select(hist, rank):
    """Bin that holds the ``rank``-th smallest element (from 0), and its rank inside that bin."""
    totals = hist.sum(0)
    ends = np.cumsum(totals)
    found = int(np.searchsorted(ends, rank, side="right"))
    return found, rank - int(ends[found] - totals[found])


def lowest_per_row(weight: Tensor, R: int, group_size: int, use_max: bool, number: int, limit: int) -> Tensor:
    """How many of the ``number`` lowest scores lie in each row of indices, at most ``limit``: [R] int16.

    Equal scores count in the order of rows. Exact: a selection by the high, then the low half of the bit pattern.
    """
    K = weight.shape[1]
    array = as_numpy(weight)
    tasks = [(i, *span) for i, span in enumerate(threads.split(R, threads.num_threads()))]
    hist = np.zeros((len(tasks), 1 << 15), np.int64)
    threads.run(_histogram, tasks, array, K, group_size, use_max, -1, hist)
    high, rank = _select(hist, number - 1)
    hist = np.zeros((len(tasks), 1 << 16), np.int64)
    threads.run(_histogram, tasks, array, K, group_size, use_max, high, hist)
    low, rank = _select(hist, rank)
    key = np.uint32(high << 16 | low)
    ties = np.empty(len(tasks), np.int64)
    threads.run(_count_ties, tasks, array, K, group_size, use_max, key, ties)
    budget = rank + 1 - (np.cumsum(ties) - ties)
    counts = torch.empty(R, dtype=torch.int16, device="cpu")
    threads.run(_count_rows, tasks, array, group_size, use_max, key, budget, limit, as_numpy(counts), K)
    return counts
