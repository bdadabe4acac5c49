"""Device code that adds a tile's part of the input gradient."""

import triton
import triton.language as tl


@triton.jit
def add_part(pointers, part, mask, TILE: tl.constexpr):
    """Adds ``part`` where ``mask``, with atomics or as a read and a write of memory that belongs to this program."""
    if TILE.DX == "atomic":
        if TILE.EVEN:
            tl.atomic_add(pointers, part, sem="relaxed")
        else:
            tl.atomic_add(pointers, part, mask=mask, sem="relaxed")
    else:
        tl.static_assert(TILE.DX == "private")
        tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + part, mask=mask)  # of the shape of part
