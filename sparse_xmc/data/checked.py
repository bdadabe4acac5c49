"""Arrays from outside, checked in full before anything trusts them: what a file or a caller holds may be anything.

Sparse kernels (SciPy's, torch's and our own) read where ``indices`` and ``indptr`` point without looking.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

_BLOCK = 4096  # rows of a dense array checked at a time
WIDEST = 1 << 27  # features: models hold numbers for each of them, whatever the rows use
_KINDS = "biuf"  # booleans, integers and floats


def _integers(array: Any, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be a list of integers, got {array.dtype} {list(array.shape)}")
    if array.dtype.kind == "u" and array.itemsize == 8 and len(array) and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{what} holds {int(array.max())}, beyond 64-bit integers")
    return array


def _check_range(indices: np.ndarray, bound: int, what: str) -> None:
    if not len(indices):
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= bound:
        wrong = low if low < 0 else high
        raise ValueError(f"{what} hold {wrong}, outside [0, {bound})")


def check_compressed(
    indptr: Any,
    indices: Any,
    data: Any,
    num_major: int,
    num_minor: int,
    what: str = "the matrix",
    *,
    spare: bool = False,
) -> None:
    """Checks the structure of a compressed sparse matrix: CSR with (rows, columns), CSC with (columns, rows).

    Args:
        spare: whether ``indices`` and ``data`` may be longer than ``indptr`` says, as SciPy allows in memory.

    Raises:
        ValueError: lengths differ, ``indptr`` does not begin at 0 or falls, or an index is out of range.
    """
    indptr, indices = _integers(indptr, f"indptr of {what}"), _integers(indices, f"indices of {what}")
    data = np.asarray(data)
    if data.ndim != 1 or data.dtype.kind not in _KINDS:
        raise ValueError(f"values of {what} must be real numbers [nnz], got {data.dtype} {list(data.shape)}")
    if len(indptr) != num_major + 1:
        raise ValueError(f"indptr of {what} must hold {num_major + 1} entries, got {len(indptr)}")
    if len(indices) != len(data):
        raise ValueError(f"{what} has {len(indices)} indices and {len(data)} values")
    if indptr[0] != 0:
        raise ValueError(f"indptr of {what} must begin at 0, got {indptr[0]}")
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        i = falls[0]
        raise ValueError(f"indptr of {what} falls from {indptr[i]} to {indptr[i + 1]} at {i}")
    if indptr[-1] > len(indices) or (indptr[-1] != len(indices) and not spare):
        raise ValueError(f"indptr of {what} ends at {indptr[-1]}, there are {len(indices)} indices")
    _check_range(indices[: indptr[-1]], num_minor, f"indices of {what}")


def check_coordinates(rows: Any, columns: Any, data: Any, shape: tuple[int, int], what: str = "the matrix") -> None:
    """The same for triplets (COO)."""
    rows, columns = _integers(rows, f"rows of {what}"), _integers(columns, f"columns of {what}")
    data = np.asarray(data)
    if data.ndim != 1 or data.dtype.kind not in _KINDS:
        raise ValueError(f"values of {what} must be real numbers [nnz], got {data.dtype} {list(data.shape)}")
    if not len(rows) == len(columns) == len(data):
        raise ValueError(f"{what} has {len(rows)} rows, {len(columns)} columns and {len(data)} values")
    _check_range(rows, shape[0], f"rows of {what}")
    _check_range(columns, shape[1], f"columns of {what}")


def canonical_csr(matrix: Any, what: str = "the matrix", dtype: Any = None) -> sp.csr_matrix:
    """Any SciPy sparse matrix ``[N, M]`` as CSR whose rows hold each column once, in order and without stored zeros.

    Entries that stand twice are added. The caller's matrix is not changed; it is returned as it is where it is so.

    Raises:
        TypeError: not a sparse matrix.
        ValueError: not two-dimensional, not of real numbers, or of a broken structure.
    """
    if not sp.issparse(matrix):
        raise TypeError(f"{what} must be a SciPy sparse matrix, got {type(matrix).__name__}")
    if matrix.ndim != 2:
        raise ValueError(f"{what} must have two dimensions, got {list(matrix.shape)}")
    num_rows, num_columns = matrix.shape
    if matrix.format == "csr":
        check_compressed(matrix.indptr, matrix.indices, matrix.data, num_rows, num_columns, what, spare=True)
    elif matrix.format == "csc":
        check_compressed(matrix.indptr, matrix.indices, matrix.data, num_columns, num_rows, what, spare=True)
    elif matrix.format == "coo":
        check_coordinates(matrix.row, matrix.col, matrix.data, matrix.shape, what)
    elif matrix.format == "bsr":
        matrix.check_format(full_check=True)
    result = matrix.tocsr()
    check_compressed(result.indptr, result.indices, result.data, num_rows, num_columns, what, spare=True)
    if not isinstance(result, sp.csr_matrix):
        result = sp.csr_matrix((result.data, result.indices, result.indptr), shape=result.shape)
    if dtype is not None:
        with np.errstate(over="ignore"):
            result = result.astype(dtype, copy=False)
    if not _is_canonical(result):
        result = sp.csr_matrix((result.data.copy(), result.indices.copy(), result.indptr.copy()), shape=result.shape)
        result.sum_duplicates()
        result.eliminate_zeros()
        result.prune()
    result.has_sorted_indices = result.has_canonical_format = True
    return result


def _is_canonical(matrix: sp.csr_matrix) -> bool:
    """Looks at the entries: the flags of a matrix may be older than its arrays."""
    indices, indptr = matrix.indices, matrix.indptr
    if len(indices) != indptr[-1] or not matrix.data.all():
        return False
    rises = np.ones(len(indices) + 1, dtype=bool)
    np.greater(indices[1:], indices[:-1], out=rises[1:-1])
    rises[indptr] = True  # rows begin anew
    return bool(rises.all())


def check_finite(matrix: Any) -> None:
    """Raises:
    ValueError: a value is not finite in float32; the message names its row.
    """
    if sp.issparse(matrix):
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(matrix.data.astype(np.float32, copy=False)))
        if len(bad):
            row = np.searchsorted(matrix.indptr, bad[0], side="right") - 1
            raise ValueError(f"row {row} (from 0) holds a value that is not finite in float32")
        return
    for start in range(0, len(matrix), _BLOCK):
        with np.errstate(over="ignore"):
            finite = np.isfinite(matrix[start : start + _BLOCK].astype(np.float32, copy=False)).all(axis=1)
        if not finite.all():
            row = start + np.argmin(finite)
            raise ValueError(f"row {row} (from 0) holds a value that is not finite in float32")


def check_features(matrix: Any, what: str = "the features") -> sp.csr_matrix | np.ndarray:
    """Features ``[N, D]`` that every encoder can read: sparse ones canonical in float32, dense ones as they are.

    Raises:
        TypeError, ValueError: not a matrix of real numbers, of a broken structure, of more than 134,217,728 columns, or with
            values that are not finite in float32.
    """
    if not sp.issparse(matrix):
        if not isinstance(matrix, np.ndarray):
            raise TypeError(f"{what} must be a NumPy array or a SciPy sparse matrix, got {type(matrix).__name__}")
        if matrix.ndim != 2 or matrix.dtype.kind not in _KINDS:
            shape = list(matrix.shape)
            raise ValueError(f"{what} must be an array of real numbers [rows, features], got {matrix.dtype} {shape}")
    elif matrix.ndim == 2 and matrix.shape[1] > WIDEST:
        raise ValueError(f"{what} has {matrix.shape[1]} columns, more than {WIDEST}")
    else:
        matrix = canonical_csr(matrix, what, np.float32)
    check_finite(matrix)
    return matrix
