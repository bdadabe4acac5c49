"""Order of the labels for group-shared fan-in: neighbours in the order share their connections.

A model keeps one order of its labels, held by its ``LabelVocabulary``; the functions here make that order.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.bisection import balanced_clusters


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
