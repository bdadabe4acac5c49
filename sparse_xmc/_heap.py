"""Memory that was freed and that the C library still holds."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Returns it to the system. Reading texts leaves the heap full of holes that the arrays after it are too large for.

    Does nothing where the C library can't.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
