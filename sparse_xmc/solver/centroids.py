"""Label centroids in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc import kernels
from sparse_xmc.solver.head import Block, column_counts, csr
from sparse_xmc.solver.threads import in_parts

_LABELS = 512  # a task


def centroids(
    x: sp.csr_matrix, targets: sp.csr_matrix, fan_in: int, labels: np.ndarray | None = None, *, power: float = 1.0
) -> Block:
    """The ``fan_in`` heaviest terms of each label's summed rows, over their norm to ``power``, the heaviest first.

    A label with fewer terms is filled up with other terms at weight 0.

    Args:
        x: rows ``[N, D]``.
        targets: binary ``[N, L]``.
        labels: those that are wanted ``[n]``; None: all.
        power: 1 makes centroids of unit length, 0 leaves long ones long.
    """
    if not 1 <= fan_in <= x.shape[1]:
        raise ValueError(f"fan_in must lie in [1, {x.shape[1]}], the number of terms, got {fan_in}")
    labels = np.arange(targets.shape[1]) if labels is None else labels.astype(np.int64)
    indices, weight = np.empty((len(labels), fan_in), np.int32), np.empty((len(labels), fan_in), np.float32)
    arguments = (*_rows_of(targets), *csr(x), x.shape[1], np.float32(power), filler(x, fan_in), labels)
    in_parts(kernels.load("centroids").centroid_terms, len(labels), _LABELS, *arguments, indices, weight)
    return Block(labels, indices, weight)


def centroid_weights(
    x: sp.csr_matrix, targets: sp.csr_matrix, labels: np.ndarray, indices: np.ndarray, *, power: float = 1.0
) -> np.ndarray:
    """The entries of the centroids of ``labels [n]`` at given terms ``[n, K]``."""
    weight = np.empty(indices.shape, np.float32)
    arguments = (*_rows_of(targets), *csr(x), x.shape[1], np.float32(power), labels.astype(np.int64), indices)
    in_parts(kernels.load("centroids").centroid_values, len(indices), _LABELS, *arguments, weight)
    return weight


def filler(x: sp.csr_matrix, fan_in: int) -> np.ndarray:
    """Terms that fill up a label's connections, the rarest ones first: they cost the least when rows are scored."""
    return np.argsort(column_counts(x), kind="stable")[: 2 * fan_in].astype(np.int32)


def _rows_of(targets: sp.csr_matrix) -> tuple[Any, Any]:
    by_label = targets.tocsc()
    return by_label.indptr.astype(np.int64), by_label.indices.astype(np.int32)
