"""Philox4x32, bit for bit what ``tl.philox`` gives: random words that depend on a key and a counter only.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np
from numba import uint32, uint64
from numba.extending import register_jitable

_ROUND_A, _ROUND_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_A, _KEY_B = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_SHIFT = np.uint64(32)


@register_jitable(inline="always")  # loops over counters become vector instructions only so
def philox(seed, c0, c1, c2, c3, rounds=10):
    """Four uint32 words for a 64-bit ``seed`` and a counter of four 32-bit integers."""
    k0, k1 = uint32(seed), uint32(uint64(seed) >> _SHIFT)
    d0, d1, d2, d3 = uint32(c0), uint32(c1), uint32(c2), uint32(c3)
    for _ in range(rounds):
        a, b = _ROUND_A * uint64(d0), _ROUND_B * uint64(d2)
        d0, d1, d2, d3 = uint32(b >> _SHIFT ^ d1 ^ k0), uint32(b), uint32(a >> _SHIFT ^ d3 ^ k1), uint32(a)
        k0, k1 = uint32(k0 + _KEY_A), uint32(k1 + _KEY_B)
    return d0, d1, d2, d3


@register_jitable
def below(word, bound):
    """Maps a uniform uint32 ``word`` to [0, bound), as the high half of their product (bias below bound / 2^32)."""
    return (uint64(word) * uint64(bound)) >> _SHIFT
