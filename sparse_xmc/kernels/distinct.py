"""Connections as they must be: in range and distinct within their row."""

from __future__ import annotations

import numpy as np

_CHECKED = 1 << 20  # indices looked at at a time


def check_distinct(name: str, indices: np.ndarray, in_features: int) -> None:
    """Raises:
    ValueError: an entry of ``indices [R, K]`` lies outside ``[0, in_features)`` or stands twice in its row.
    """
    step = max(1, _CHECKED // max(1, indices.shape[1]))
    for start in range(0, len(indices) if indices.shape[1] else 0, step):
        rows = np.sort(indices[start : start + step], axis=1)
        bad = (rows[:, 0] < 0) | (rows[:, -1] >= in_features)
        if bad.any():
            at = int(np.argmax(bad))
            value = rows[at, 0] if rows[at, 0] < 0 else rows[at, -1]
            raise ValueError(f"{name}[{start + at}] holds {value}, outside [0, {in_features})")
        twice = rows[:, 1:] == rows[:, :-1]
        if twice.any():
            at, slot = (int(found[0]) for found in np.nonzero(twice))
            raise ValueError(f"{name}[{start + at}] holds {rows[at, slot]} twice: the indices of a row are distinct")
