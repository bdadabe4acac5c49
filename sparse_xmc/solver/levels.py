"""A level in front of a head: clusters of labels, told apart on all rows.

Where a few labels stand on very many rows and a row says little about each, what is learned about a cluster of labels
from all rows says what a label's own hard negatives can't: how likely any of them is.

Source: label trees as in Prabhu et al., "Parabel", WWW 2018, here one level of clusters, each with a fixed number of
connections, whose estimates are weighed by label frequency on held-out rows.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from sparse_xmc import kernels
from sparse_xmc.solver.bisection import balanced_clusters
from sparse_xmc.solver.centroids import centroids
from sparse_xmc.solver.examples import Examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.svm import OFFSET, select, solve

_FEWEST, _SMALLEST = 4, 4  # clusters, and labels of one
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
    found, labels, fan_in = _against_all(members, most), np.arange(count), min(fan_in, D)
    constant = Block(labels, np.full((count, 1), D, np.int32), np.full((count, 1), np.inf, np.float32))
    shown = None if progress is None else f"{progress}, topology"
    indices = select(
        wide, found, constant, fan_in + 1, passes=_FIRST_PASSES, seed=seed, progress=shown
    )  # the constant is the first of them
    weight = solve(wide, found, labels, indices, passes=_PASSES, seed=seed, progress=progress)
    bias = (weight[:, 0] + OFFSET).astype(np.float32)
    return TermHead([Block(labels, np.ascontiguousarray(indices[:, 1:]), np.ascontiguousarray(weight[:, 1:]))], bias)


def solve_within(
    wide: sp.csr_matrix, targets: sp.csr_matrix, members: sp.csc_matrix, of: np.ndarray, blocks: list[Block], *,
    most: int, seed: int = 0, progress: str | None = None,
) -> TermHead:  # fmt: skip
    """SVMs of labels among the rows of their clusters, with a bias, on the terms of ``blocks``."""
    D, bias = wide.shape[1] - 1, np.full(len(of), OFFSET, np.float32)
    found, solved = _among(targets.tocsc(), members, of, most), []
    for block in blocks:
        indices = np.hstack([block.indices, np.full((len(block.labels), 1), D, np.int32)])
        weight = solve(wide, found, block.labels, indices, seed=seed, progress=progress)
        solved.append(Block(block.labels, block.indices, np.ascontiguousarray(weight[:, :-1])))
        bias[block.labels] += weight[:, -1]
    return TermHead(solved, bias)


def widened(x: sp.csr_matrix) -> sp.csr_matrix:
    """Rows with a 1 behind their terms."""
    wide = sp.csr_matrix(sp.hstack([x, np.ones((x.shape[0], 1), np.float32)], format="csr"), dtype=np.float32)
    wide.sort_indices()
    return wide


def members_of(targets: sp.csr_matrix, of: np.ndarray) -> sp.csc_matrix:
    """The rows of each cluster ``[N, C]``: those with one of its labels."""
    shape = (len(of), int(of.max()) + 1)
    members = (targets @ sp.csr_matrix((np.ones(len(of), np.float32), of, np.arange(len(of) + 1)), shape)).tocsc()
    members.sort_indices()
    return members


def _against_all(members: sp.csc_matrix, most: int) -> Examples:
    """All rows for each cluster, those that are in it first; of the others an even share where they are too many."""
    N, count = members.shape
    everywhere = sp.csc_matrix((np.ones(N, np.float32), np.arange(N, dtype=np.int32), [0, N]), (N, 1))
    return _among(members, everywhere, np.zeros(count, np.int32), most)


def _among(positives: sp.csc_matrix, members: sp.csc_matrix, of: np.ndarray, most: int) -> Examples:
    """For each label ``positives [N, L]`` and an even share of the other rows of ``members [N, C]`` of its cluster: at
    most about ``most`` rows over all labels, besides the positives."""
    own, near = (np.diff(m.indptr).astype(np.int64) for m in (positives, members))
    others = near[of] - own
    step = max(1, -(-int(others.sum()) // most))
    ptr = np.concatenate([[0], np.cumsum(own - -others // step)])
    rows = np.empty(ptr[-1], np.int32)
    fill = kernels.load("example_lists").fill_within
    pointers = [(m.indptr.astype(np.int64), m.indices.astype(np.int32, copy=False)) for m in (positives, members)]
    fill(*pointers[0], *pointers[1], of, step, np.full(positives.shape[0], -1, np.int64), ptr, rows)
    return Examples(ptr, rows, own)
