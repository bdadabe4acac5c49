"""Whether arrays of a stored head are what they must be."""

from __future__ import annotations

from typing import Any

import numpy as np

_NARROW = 1 << 16  # terms that a 16-bit index tells apart
_CHECKED = 1 << 16  # rows of indices looked at at a time


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
    _check_distinct(name, indices, in_features)


def _check_distinct(name: str, indices: np.ndarray, in_features: int) -> None:
    for start in range(0, len(indices), _CHECKED):
        rows = np.sort(indices[start : start + _CHECKED], axis=1)
        bad = (rows[:, 0] < 0) | (rows[:, -1] >= in_features)
        if bad.any():
            row = rows[int(np.argmax(bad))]
            value = row[0] if row[0] < 0 else row[-1]
            raise ValueError(f"{name}[{start + int(np.argmax(bad))}] holds {value}, outside [0, {in_features})")
        twice = rows[:, 1:] == rows[:, :-1]
        if twice.any():
            at, slot = (int(found[0]) for found in np.nonzero(twice))
            raise ValueError(f"{name}[{start + at}] holds {rows[at, slot]} twice: the indices of a row are distinct")
