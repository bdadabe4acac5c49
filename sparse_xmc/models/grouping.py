"""Order of the labels for group-shared fan-in: neighbours in the order share their connections.

A model keeps one order of its labels, held by its ``LabelVocabulary``; the functions here make that order.
"""

from __future__ import annotations

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
    from sklearn.preprocessing import normalize

    unit = normalize(vectors.astype(np.float32))
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


def label_centroids(features: sp.csr_matrix | np.ndarray, targets: sp.csr_matrix) -> sp.csr_matrix | np.ndarray:
    """Mean feature row of each label's training rows ``[L, D]``; sparse where ``features`` are."""
    counts = np.maximum(np.asarray(targets.sum(axis=0)).ravel(), 1).astype(np.float32)
    means = sp.diags(1 / counts) @ (targets.T.tocsr() @ features)
    return means.tocsr() if sp.issparse(means) else np.asarray(means)


def group_order(
    kind: str,
    targets: sp.csr_matrix,
    group_size: int,
    *,
    features: sp.csr_matrix | np.ndarray | None = None,
    num_head: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """The order of labels for a kind of grouping; the first ``num_head`` positions hold the most frequent labels.

    Args:
        kind: ``"frequency"``, ``"random"`` or ``"clustered"`` (by the centroids of ``features`` over training rows).
        targets: training targets ``[N, L]``.
        num_head: labels of a dense head, which need no grouping.
    """
    frequencies = np.asarray(targets.sum(axis=0)).ravel()
    by_frequency = np.argsort(-frequencies, kind="stable")
    head, tail = by_frequency[:num_head], by_frequency[num_head:]
    if kind == "frequency":
        return by_frequency
    if kind == "random":
        return np.concatenate([head, np.random.default_rng(seed).permutation(tail)])
    if kind == "clustered":
        if features is None:
            raise ValueError("clustered grouping needs features of the training rows")
        tail_targets = targets[:, tail]
        return np.concatenate(
            [head, tail[balanced_clusters(label_centroids(features, tail_targets), group_size, seed=seed)]]
        )
    raise ValueError(f"kind must be 'frequency', 'random' or 'clustered', got {kind!r}")
