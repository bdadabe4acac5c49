"""Distinct random numbers without rejection, the same ones as ``cpu_kernels/_sampling.py`` draws."""

import triton
import triton.language as tl


@triton.jit
def draw_distinct(word, i, count, size, chosen):
    """The ``i``-th number of Floyd's algorithm for a block of rows [ROWS], given a random uint32 for each.

    ``chosen [ROWS, N]`` holds the numbers drawn so far and -1 elsewhere. Every subset of ``count`` numbers below
    ``size`` has the same chance. Source: Bentley, Communications of the ACM 30(9), 1987.
    """
    last = size - count + i
    drawn = ((word.to(tl.uint64) * (last + 1).to(tl.uint64)) >> 32).to(tl.int32)
    taken = tl.sum((chosen == drawn[:, None]).to(tl.int32), 1) > 0
    return tl.where(taken, last, drawn)


@triton.jit
def free_feature(held, rank, in_features, K):
    """Maps each row's ``rank`` [ROWS] below D - K one to one onto the features not in ``held [ROWS, N]``.

    A rank that is not held stands for itself; the j-th held feature below D - K for the j-th free one from there.
    """
    free = in_features - K
    taken = tl.sum((held == rank[:, None]).to(tl.int32), 1) > 0
    base = free + tl.sum((held < rank[:, None]).to(tl.int32), 1)
    feature = tl.where(taken, base, rank)
    # the condition is a scalar of its own: Triton 3.7 can't lower one that reduces a tensor the loop carries
    moved = tl.max(taken.to(tl.int32), 0)
    while moved > 0:
        passed = tl.sum(((held >= free) & (held <= feature[:, None])).to(tl.int32), 1)
        further = tl.where(taken, base + passed, feature)
        moved = tl.max((further != feature).to(tl.int32), 0)
        feature = further
    return feature
