"""A level in front of a head: clusters of labels, told apart on all rows.

Where a few labels stand on very many rows and a row says little about each, what is learned about a cluster of labels
from all rows says what a label's own hard negatives can't: how likely any of them is.

Source: label trees as in Prabhu et al., "Parabel", WWW 2018, here one level of clusters, each with a fixed number of
connections, whose estimates are weighed by label frequency on held-out rows.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.bisection import balanced_clusters
from sparse_xmc.solver.centroids import centroids
from sparse_xmc.solver.examples import against_all, among
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.svm import select_with_bias, solve_with_bias

_TERMS = 64  # of a centroid that labels are clustered by
_FIRST_PASSES, _PASSES = 2, 5  # over the rows of a cluster


def cluster_labels(x: sp.csr_matrix, targets: sp.csr_matrix, count: int, seed: int) -> np.ndarray:
    """The cluster of each label ``[L]``, of at most ``count``: labels with similar centroids."""
    D, L = x.shape[1], targets.shape[1]
    near = centroids(x, targets, min(D, _TERMS))
    offsets = np.arange(0, near.indices.size + 1, near.indices.shape[1])
    vectors = sp.csr_matrix((near.weight.ravel(), near.indices.ravel(), offsets), (L, D))
    vectors.eliminate_zeros()
    size = -(-L // count)
    of = np.empty(L, np.int32)
    of[balanced_clusters(vectors, size, seed=seed)] = np.arange(L, dtype=np.int32) // size
    return of


def solve_clusters(
    wide: sp.csr_matrix, members: sp.csc_matrix, fan_in: int, *, most: int, seed: int = 0, progress: str | None = None
) -> TermHead:
    """A head of clusters: SVMs against other rows, with a bias, on the ``fan_in`` terms of largest weight.

    Args:
        wide: rows ``[N, D + 1]``, the last entry of each 1.
        members: the rows of each cluster ``[N, C]``.
        most: rows over all clusters that are no positives; of more an even share is taken.
    """
    count, D = members.shape[1], wide.shape[1] - 1
    found, labels, fan_in = against_all(members, most), np.arange(count), min(fan_in, D)
    shown = None if progress is None else f"{progress}, topology"
    indices = select_with_bias(wide, found, labels, fan_in, passes=_FIRST_PASSES, seed=seed, progress=shown)
    weight, bias = solve_with_bias(wide, found, labels, indices, passes=_PASSES, seed=seed, progress=progress)
    return TermHead([Block(labels, indices, weight)], bias)


def solve_within(
    wide: sp.csr_matrix, targets: sp.csr_matrix, members: sp.csc_matrix, of: np.ndarray, blocks: list[Block], *,
    most: int, seed: int = 0, progress: str | None = None,
) -> TermHead:  # fmt: skip
    """SVMs of labels among the rows of their clusters, with a bias, on the terms of ``blocks``."""
    bias, found, solved = np.empty(len(of), np.float32), among(targets.tocsc(), members, of, most), []
    for block in blocks:
        labels, indices = block.labels, block.indices
        weight, bias[labels] = solve_with_bias(wide, found, labels, indices, seed=seed, progress=progress)
        solved.append(Block(labels, indices, weight))
    return TermHead(solved, bias)


def members_of(targets: sp.csr_matrix, of: np.ndarray) -> sp.csc_matrix:
    """The rows of each cluster ``[N, C]``: those with one of its labels."""
    shape = (len(of), int(of.max()) + 1)
    members = (targets @ sp.csr_matrix((np.ones(len(of), np.float32), of, np.arange(len(of) + 1)), shape)).tocsc()
    members.sort_indices()
    return members
