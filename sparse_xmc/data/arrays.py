"""Features and labels as arrays: scipy CSR ``.npz`` files and dense ``.npy`` files."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.errors import DataError, reading

_ROWS = 4096  # checked at a time


def load_csr(path: str | os.PathLike[str]) -> sp.csr_matrix:
    """A matrix saved by ``scipy.sparse.save_npz``, as CSR.

    Raises:
        DataError: the file is missing, truncated or holds something else.
    """
    with reading(path):
        try:
            return sp.load_npz(path).tocsr()
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DataError(path, None, f"not a scipy sparse matrix: {error}") from None


def load_features(path: str | os.PathLike[str]) -> sp.csr_matrix | np.ndarray:
    """Features ``[N, D]``: dense float ``.npy``, memory-mapped, or sparse ``.npz`` in float32.

    Raises:
        DataError: the file cannot be read, has the wrong shape or type, or holds values that are not finite in float32.
    """
    if os.fspath(path).endswith(".npz"):
        with np.errstate(over="ignore"):
            matrix = load_csr(path).astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(matrix.data))
        if len(bad):
            row = np.searchsorted(matrix.indptr, bad[0], side="right") - 1
            raise DataError(path, None, f"row {row} (from 0) holds a value that is not finite in float32")
        return matrix
    with reading(path):
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise DataError(path, None, f"not a NumPy array: {error}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(path, None, f"expected a float array [rows, features], got {array.dtype} {list(array.shape)}")
    for start in range(0, len(array), _ROWS):
        with np.errstate(over="ignore"):
            finite = np.isfinite(array[start : start + _ROWS].astype(np.float32, copy=False)).all(axis=1)
        if not finite.all():
            row = start + np.argmin(finite)
            raise DataError(path, None, f"row {row} (from 0) holds a value that is not finite in float32")
    return array
