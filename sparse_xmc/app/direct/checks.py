"""Whether arrays of a stored head are what they must be."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_xmc.kernels.distinct import check_distinct

_NARROW = 1 << 16  # terms that a 16-bit index tells apart


def index_type(in_features: int) -> type[np.generic]:
    """Of the indices of a head on so many terms."""
    return np.uint16 if in_features <= _NARROW else np.int32


def check_array(name: str, array: Any, dtype: Any, shape: tuple[int | None, ...]) -> None:
    """Raises:
    ValueError: the array has another dtype or shape; None stands for any length.
    """
    if array.dtype != dtype or array.ndim != len(shape):
        raise ValueError(f"{name} must be {np.dtype(dtype)} of {len(shape)} dimensions, is {array.dtype} {array.shape}")
    if any(wanted is not None and wanted != size for wanted, size in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must have the shape {list(shape)}, has {list(array.shape)}")


def check_block(name: str, indices: np.ndarray, weight_name: str, weight: np.ndarray, in_features: int) -> None:
    """Raises:
    ValueError: these are no indices, distinct within a row, and weights of the same labels.
    """
    check_array(name, indices, index_type(in_features), (None, None))
    check_array(weight_name, weight, np.float16, (None, None))
    if weight.shape != indices.shape or not 1 <= indices.shape[1] <= in_features or not len(indices):
        raise ValueError(
            f"a block needs labels, and 1 to {in_features} connections of each, got indices "
            f"{list(indices.shape)} and weights {list(weight.shape)}"
        )
    check_distinct(name, indices, in_features)
