"""Distinct random numbers without rejection, the same ones as ``triton_kernels/_sampling.py`` draws."""

import numpy as np
from numba.extending import register_jitable

from sparse_xmc.ops.cpu_kernels._philox import below, philox


@register_jitable
def new_bitmap(size):
    return np.zeros((size + 63) // 64, np.uint64)


@register_jitable
def sample_distinct(seed, row, stream, count, size, chosen, bitmap):
    """Fills ``chosen[:count]`` with distinct numbers below ``size``: every subset has the same chance.

    ``bitmap`` is all zero before and after. Source: Floyd's algorithm, in Bentley, Communications of the ACM 30(9), 1987.
    """
    one, low = np.uint64(1), np.uint64(63)
    for i in range(0, count, 4):
        words = philox(seed, row, i >> 2, 0, stream)
        for j in range(min(4, count - i)):
            last = np.uint64(size - count + i + j)
            drawn = below(words[j], last + one)
            if (bitmap[drawn >> np.uint64(6)] >> (drawn & low)) & one:
                drawn = last
            bitmap[drawn >> np.uint64(6)] |= one << (drawn & low)
            chosen[i + j] = drawn
    for i in range(count):
        bitmap[np.uint64(chosen[i]) >> np.uint64(6)] = 0
