"""Distinct random numbers without rejection, the same ones as ``triton_kernels/_sampling.py`` draws.

Rows are drawn in tiles of ``LANES``, for the sake of vector instructions; one after the other they are made distinct.
"""

import numpy as np
from numba.extending import register_jitable

from sparse_xmc.kernels import threads
from sparse_xmc.ops.cpu_kernels._philox import below, philox

LANES = 16
_MOST_ROWS = 1 << 13  # of a task: its rows are told apart by stamps of 16 bits


def row_tasks(rows: int) -> list[tuple[int, int]]:
    """Cuts ``range(rows)`` into tasks for the threads."""
    return threads.split(rows, max(4 * threads.num_threads(), -(-rows // _MOST_ROWS)))


@register_jitable
def draw(seed, first_row, stream, need, size, drawn):
    """Fills ``drawn[i, t]`` (i < ``need[t]``) with the i-th draw of row ``first_row + t``: a number up to
    ``size - need[t] + i``. ``drawn [N, LANES]`` has room for a multiple of four draws."""
    most = 0
    for t in range(LANES):
        most = max(most, np.int64(need[t]))
    for i in range(0, most, 4):
        for t in range(LANES):
            words = philox(seed, first_row + t, i >> 2, 0, stream)
            drawn[i, t], drawn[i + 1, t], drawn[i + 2, t], drawn[i + 3, t] = words
    for i in range(most):
        for t in range(LANES):
            drawn[i, t] = below(drawn[i, t], size - np.int64(need[t]) + i + 1)


@register_jitable
def make_distinct(drawn, t, count, size, chosen, marks, stamp):
    """Fills ``chosen[:count]`` with distinct numbers below ``size`` from the draws of row ``t``: every subset has the
    same chance.

    ``marks`` [>= size] holds no ``stamp`` before. Source: Floyd's algorithm, in Bentley, CACM 30(9), 1987.
    """
    for i in range(count):
        number = drawn[i, t]
        if marks[number] == stamp:
            number = np.uint32(size - count + i)
        marks[number] = stamp
        chosen[i] = number


@register_jitable
def ranks_to_free_features(indices, row, in_features, ranks, count, marks, stamp):
    """Maps distinct ``ranks[:count]`` below D - K one to one onto the features that are not in ``indices[row]``.

    A rank that is not held stands for itself; the j-th held feature below D - K for the j-th free one from there.
    ``marks`` [D] holds no ``stamp`` before.
    """
    K = indices.shape[1]
    free = np.uint64(in_features - K)
    for k in range(K):
        marks[np.uint64(indices[row, k])] = stamp
    for i in range(count):
        rank = np.uint64(ranks[i])
        if marks[rank] == stamp:
            skip = 0
            for k in range(K):
                skip += np.uint64(indices[row, k]) < rank
            feature = free
            while marks[feature] == stamp or skip > 0:
                skip -= marks[feature] != stamp
                feature += np.uint64(1)
            ranks[i] = feature
