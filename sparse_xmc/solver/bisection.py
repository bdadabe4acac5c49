"""Clusters of equal size, by halving: labels beside each other share connections, or a level in front of a head."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp


def balanced_clusters(vectors: np.ndarray | sp.csr_matrix, group_size: int, *, seed: int = 0) -> np.ndarray:
    """An order of the rows in which every run of ``group_size`` rows is a cluster; the last run may be short.

    Recursive bisection: a node's rows are split by their projection on the difference of two means (spherical 2-means
    with sizes balanced to a multiple of ``group_size``), until a node fits into one group. Near-linear:
    ``O(nnz log(L / G))``.

    Args:
        vectors: one row per label ``[L, D]``: dense or sparse, of any length (rows are normalised).
        group_size: labels per group.

    Returns:
        A permutation ``[L]``: ``order[i]`` is the row at position ``i``.

    Source: balanced 2-means label trees of Parabel (Prabhu et al., WWW 2018, section 3), cut into groups of exactly G.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    unit = _of_unit_length(vectors)
    rng = np.random.default_rng(seed)
    pending: list[np.ndarray] = [np.arange(unit.shape[0])]
    order: list[np.ndarray] = []
    while pending:
        rows = pending.pop()
        if len(rows) <= group_size:
            order.append(rows)
            continue
        groups = -(-len(rows) // group_size)
        left = (groups + 1) // 2 * group_size
        halves = _bisect(unit[rows], left, rng)
        pending.append(rows[halves[left:]])
        pending.append(rows[halves[:left]])
    return np.concatenate(order) if order else np.empty(0, dtype=np.int64)


def _bisect(unit: np.ndarray | sp.csr_matrix, left: int, rng: np.random.Generator, rounds: int = 8) -> np.ndarray:
    """Rows by decreasing closeness to the first of two means; the first ``left`` of them are its half."""

    def mean(rows: np.ndarray) -> np.ndarray:
        return np.asarray(unit[rows].mean(axis=0), dtype=np.float32).ravel()

    first, second = rng.choice(unit.shape[0], 2, replace=False)
    direction = mean(np.array([first])) - mean(np.array([second]))
    previous = None
    order = np.arange(unit.shape[0])
    for _ in range(rounds):
        order = np.argsort(-np.asarray(unit @ direction).ravel(), kind="stable")
        chosen = np.zeros(len(order), dtype=bool)
        chosen[order[:left]] = True
        if previous is not None and np.array_equal(chosen, previous):
            break
        previous = chosen
        direction = mean(np.flatnonzero(chosen)) - mean(np.flatnonzero(~chosen))
    return order


def _of_unit_length(vectors: np.ndarray | sp.csr_matrix) -> np.ndarray | sp.csr_matrix:
    """Rows over their lengths in float32; those of length 0 stay."""
    rows: Any = vectors.astype(np.float32)
    squares = rows.multiply(rows).sum(axis=1) if sp.issparse(rows) else (rows * rows).sum(axis=1)
    lengths = np.sqrt(np.asarray(squares, dtype=np.float32).ravel())
    scale = (1 / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return sp.csr_matrix(sp.diags(scale) @ rows) if sp.issparse(rows) else rows * scale[:, None]
