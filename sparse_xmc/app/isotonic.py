"""Isotonic regression: the rising curve nearest to the hits, by pooling adjacent violators."""

from __future__ import annotations

import numpy as np


def isotonic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(x, y)`` at the ends of the steps of the rising function of ``x`` with the least squares from ``y``.

    Args:
        x, y: ``[n]``, n at least 1; of equal ``x`` the mean of ``y`` counts, as often as there are any.

    Source: Barlow, Bartholomew, Bremner and Brunk, "Statistical Inference under Order Restrictions", 1972, section 1.2.
    """
    places, group = np.unique(x, return_inverse=True)
    weights = np.bincount(group).astype(np.float64)
    means = np.bincount(group, weights=y) / weights
    levels: list[float] = []  # of the blocks so far, with their weights and places
    sizes: list[float] = []
    counts: list[int] = []
    for mean, weight in zip(means.tolist(), weights.tolist(), strict=True):
        count = 1
        while levels and levels[-1] >= mean:
            size = sizes.pop()
            mean = (levels.pop() * size + mean * weight) / (size + weight)
            weight, count = weight + size, count + counts.pop()
        levels.append(mean)
        sizes.append(weight)
        counts.append(count)
    ends = np.cumsum(counts) - 1
    firsts = np.concatenate([[0], ends[:-1] + 1])
    kept = np.unique(np.concatenate([firsts, ends]))
    return places[kept].astype(np.float64), np.repeat(levels, counts)[kept]
