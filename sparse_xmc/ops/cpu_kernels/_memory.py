"""Allocation of large results.

A page fault per 4 KiB costs more than computing the numbers on that page: writing 50 MB of fresh memory takes
about 20 ms in small pages and 4 ms in huge ones. Linux gives huge pages to whoever asks (``madvise``).
"""

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_HUGE = 2 << 20


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the CPU, in huge pages where the platform has them. The advice may be ignored."""
    out = torch.empty(*shape, dtype=dtype, device="cpu")
    if out.nbytes >= 2 * _HUGE and (advise := _madvise()) is not None:
        start = -(-out.data_ptr() // _HUGE) * _HUGE
        length = (out.data_ptr() + out.nbytes - start) // _HUGE * _HUGE
        advise(start, length, mmap.MADV_HUGEPAGE)
    return out
