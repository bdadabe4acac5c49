"""Indices that are known not to be negative, said to be so.

Numba lets a negative index count from the end and looks for one at each access; in a loop that gathers entries of a
vector that is a third to a half of the time.
"""

import numpy as np
from numba.extending import register_jitable


@register_jitable
def at(index):
    """An index of 32 bits."""
    return np.uint32(index)


@register_jitable
def span(ptr, i):
    """The entries of row ``i``, from ``ptr[i]`` to ``ptr[i + 1]``."""
    # ptr [rows + 1]
    return between(ptr[i], ptr[i + 1])


@register_jitable
def between(first, last):
    return range(np.uint64(first), np.uint64(last))
