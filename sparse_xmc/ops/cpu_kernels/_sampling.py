"""Distinct random numbers without rejection, the same ones as ``triton_kernels/_sampling.py`` draws."""

import numpy as np
from numba.extending import register_jitable

from sparse_xmc.ops.cpu_kernels._philox import below, philox


@register_jitable
def sample_distinct(seed, row, stream, count, size, chosen, marks):
    """Fills ``chosen[:count]`` with distinct numbers below ``size``: every subset has the same chance.

    ``marks`` [>= size] is all zero before and after. Source: Floyd's algorithm, in Bentley, CACM 30(9), 1987.
    """
    for i in range(0, count, 4):
        words = philox(seed, row, i >> 2, 0, stream)
        for j in range(min(4, count - i)):
            last = np.uint64(size - count + i + j)
            drawn = below(words[j], last + np.uint64(1))
            if marks[drawn]:
                drawn = last
            marks[drawn] = 1
            chosen[i + j] = drawn
    for i in range(count):
        marks[np.uint64(chosen[i])] = 0


@register_jitable
def ranks_to_free_features(held, in_features, ranks, count, marks):
    """Maps distinct ``ranks[:count]`` below D - K one to one onto the features that are not in ``held [K]``.

    A rank that is not held stands for itself; the j-th held feature below D - K for the j-th free one from there.
    """
    K = held.shape[0]
    free = np.uint64(in_features - K)
    for k in range(K):
        marks[np.uint64(held[k])] = 1
    for i in range(count):
        rank = np.uint64(ranks[i])
        if marks[rank]:
            skip = 0
            for k in range(K):
                skip += np.uint64(held[k]) < rank
            feature = free
            while marks[feature] or skip > 0:
                skip -= 1 - np.int64(marks[feature])
                feature += np.uint64(1)
            ranks[i] = feature
    for k in range(K):
        marks[np.uint64(held[k])] = 0
