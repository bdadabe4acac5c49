"""Ways of the fused head to the input gradient, and which of them a call takes.

===========  =============================================================================================
"atomic"     every tile adds its part to ``[D, B]`` with atomics, in no fixed order
"private"    programs add to buffers of their own, which are summed: deterministic, for labels in groups
"rows"       derivatives of a chunk of labels are written down and summed by feature, by an inverted index of the
             topology: deterministic, for labels with connections of their own (``linear_inverted``)
===========  =============================================================================================

Atomics cost ``B * L * K`` additions in the L2 cache, the rows as many reads of half the size or less.
"""

import contextlib
from collections.abc import Iterator

import torch

from sparse_xmc.ops._arguments import compute_dtype

WAYS = ("atomic", "private", "rows")
# bytes of the derivatives of one launch: about half of the L2 cache of an H100 or H200
CHUNK_BYTES = 24 << 20
_FORCED: list[str] = []


@contextlib.contextmanager
def forced(chosen: str) -> Iterator[None]:
    """Takes one way inside a block, for comparisons; a call that it can't serve raises."""
    if chosen not in WAYS:
        raise ValueError(f"the way must be one of {WAYS}, got {chosen!r}")
    _FORCED.append(chosen)
    try:
        yield
    finally:
        _FORCED.pop()


def way(B: int, L: int, D: int, K: int, G: int, dtype: torch.dtype) -> str:
    """The way of a call, from its shape; a deterministic one where torch is told to use deterministic algorithms."""
    if _FORCED:
        if _FORCED[-1] == "rows" and G > 1:
            raise ValueError(f"the way 'rows' takes a group size of 1, got {G}")
        return _FORCED[-1]
    if torch.are_deterministic_algorithms_enabled():
        return "rows" if G == 1 else "private"
    return "atomic"


def dz_dtype(dtype: torch.dtype) -> torch.dtype:
    """How derivatives are written down: bfloat16 for bfloat16 inputs; float16 has too few small numbers."""
    return dtype if dtype == torch.bfloat16 else compute_dtype(dtype)


def labels_at_once(stride: int, dtype: torch.dtype, multiple: int) -> int:
    """How many labels a launch of the way "rows" takes."""
    row_bytes = max(1, stride) * dz_dtype(dtype).itemsize
    return max(1, CHUNK_BYTES // row_bytes // multiple) * multiple
