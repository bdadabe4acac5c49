"""The structure of sparse rows, looked at in full before a kernel goes by it."""

import numpy as np

from sparse_xmc.kernels.compiled import kernel

_FINE, _BAD_START, _BAD_ROW, _BAD_END, _BAD_COLUMN = range(5)


@kernel
def _check(crow, col, width):
    """(what is wrong, where)."""
    # crow [B + 1], col [nnz]
    nnz = col.shape[0]
    if crow[0] != 0:
        return _BAD_START, 0
    for row in range(crow.shape[0] - 1):
        if crow[row + 1] < crow[row]:
            return _BAD_ROW, row
    if crow[crow.shape[0] - 1] != nnz:
        return _BAD_END, 0
    for i in range(nnz):
        if col[i] < 0 or col[i] >= width:
            return _BAD_COLUMN, i
    return _FINE, 0


def check_csr(crow: np.ndarray, col: np.ndarray, width: int, what: str, column: str) -> None:
    """Of row offsets ``[B + 1]`` and columns ``[nnz]``, named ``what`` and ``column`` in errors.

    Raises:
        ValueError: offsets do not ascend from 0 to the number of entries, or a column lies outside ``[0, width)``.
    """
    wrong, where = _check(crow, col, width)
    if wrong == _BAD_START:
        raise ValueError(f"crow_indices of {what} must start with 0, got {crow[0]}")
    if wrong == _BAD_END:
        raise ValueError(f"crow_indices of {what} must end with the number of entries {len(col)}, got {crow[-1]}")
    if wrong == _BAD_ROW:
        raise ValueError(
            f"crow_indices of {what} must not descend, got {crow[where]} before {crow[where + 1]} at row {where}"
        )
    if wrong == _BAD_COLUMN:
        verb = "hold" if what.endswith("s") else "holds"
        raise ValueError(f"{what} {verb} {column} {col[where]} (entry {where}), outside [0, {width})")
