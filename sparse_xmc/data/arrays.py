"""Features and labels as arrays: SciPy sparse ``.npz`` files and dense ``.npy`` files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.checked import canonical_csr, check_compressed, check_coordinates
from sparse_xmc.data.errors import DataError, reading
from sparse_xmc.data.labels import LabelRows

_LONGEST_REASON = 200  # zipfile shows the whole file as a name
# other formats than CSR tell a number of rows, for which memory is needed, without holding anything for each
_ROWS_UNTOLD, _ROWS_PER_ENTRY = 1 << 24, 64


def _members(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        if not hasattr(archive, "files"):
            raise ValueError("a single array")
        names = {"format", "shape", "data", "indices", "indptr", "row", "col", "offsets"} & set(archive.files)
        return {name: archive[name] for name in names}


def _assembled(parts: dict[str, np.ndarray]) -> Any:
    """The matrix that ``scipy.sparse.save_npz`` took apart, its structure checked before SciPy sees it."""
    kind = parts["format"].item()
    kind = kind.decode("ascii") if isinstance(kind, bytes) else str(kind)
    shape = tuple(int(n) for n in parts["shape"])
    if len(shape) != 2 or min(shape) < 0 or parts["shape"].dtype.kind not in "iu":
        raise ValueError(f"shape {list(parts['shape'])}")
    data = parts["data"]
    if kind != "csr" and shape[0] > _ROWS_UNTOLD + _ROWS_PER_ENTRY * data.size:
        raise ValueError(f"{shape[0]} rows for {data.size} entries")
    if kind in ("csr", "csc"):
        major, minor = shape if kind == "csr" else shape[::-1]
        check_compressed(parts["indptr"], parts["indices"], data, major, minor)
        make = sp.csr_matrix if kind == "csr" else sp.csc_matrix
        return make((data, parts["indices"], parts["indptr"]), shape=shape)
    if kind == "coo":
        check_coordinates(parts["row"], parts["col"], data, shape)
        return sp.coo_matrix((data, (parts["row"], parts["col"])), shape=shape)
    raise ValueError(f"format {kind!r}, expected 'csr', 'csc' or 'coo'")


def load_csr(path: str | os.PathLike[str], name: str | None = None) -> sp.csr_matrix:
    """A matrix saved by ``scipy.sparse.save_npz`` (CSR, CSC or COO) as canonical CSR; ``name`` is what messages call it.

    Raises:
        DataError: the file is missing, truncated, inconsistent or holds something else.
    """
    called = name or path
    with reading(called):
        try:
            return canonical_csr(_assembled(_members(path)))
        except OSError:
            raise
        except KeyError as error:
            raise DataError(called, None, f"not a scipy sparse matrix: it lacks {error}") from None
        except Exception as error:  # archives and array headers that are damaged raise errors of many kinds
            raise DataError(called, None, f"not a scipy sparse matrix: {_reason(error)}") from None


def load_features(path: str | os.PathLike[str], name: str | None = None) -> sp.csr_matrix | np.ndarray:
    """Features ``[N, D]``: dense ``.npy``, memory-mapped, or sparse ``.npz``. Which of the two, the first bytes say.

    Their values are for ``check_features`` to judge.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    called = name or path
    with reading(called):
        with open(path, "rb") as file:
            dense = file.read(6) == b"\x93NUMPY"
        if not dense:
            return load_csr(path, name)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise DataError(called, None, f"not a NumPy array: {_reason(error)}") from None


def load_label_rows(path: str | os.PathLike[str], name: str | None = None) -> LabelRows:
    """Labels ``[N, L]`` of a sparse ``.npz``; a label is named by its column.

    Raises:
        DataError: as of ``load_csr``, or a value is NaN.
    """
    try:
        return LabelRows.from_csr(load_csr(path, name))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(name or path, None, str(error)) from None


def _reason(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "..."
