"""Numba kernels on NumPy arrays, for which torch need not be there: sparse rows, labels, and how kernels are compiled and
spread over threads."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def load(name: str) -> ModuleType:
    """A module of kernels of this package, when it is needed.

    Raises:
        ModuleNotFoundError: Numba is not installed.
    """
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "numba":
            raise
        raise ModuleNotFoundError(
            "the cpu kernels of sparse_xmc need 'numba', which is not installed: pip install numba", name=error.name
        ) from error
