"""Which rows a label learns from: its own, and those that name it wrongly in a shortlist, or all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sparse_xmc import kernels

_MOST = 1 << 25  # rows that are no positives, over all labels


@dataclass
class Examples:
    """``rows[ptr[l]:ptr[l + 1]]`` of label l, the first ``positives[l]`` of them its own.

    ``bias``: whether they tell how frequent the label is, so that a bias is learned from them.
    """

    ptr: np.ndarray
    rows: np.ndarray
    positives: np.ndarray
    bias: bool = False


def examples(targets: sp.csr_matrix, shortlists: np.ndarray) -> Examples:
    """``shortlists [N, S]`` hold labels, -1 for none; what a row's own labels are in ``targets [N, L]``."""
    lists = kernels.load("example_lists")
    L = targets.shape[1]
    row_ptr, labels = targets.indptr.astype(np.int64), targets.indices.astype(np.int32)
    positives, negatives = np.zeros(L, np.int64), np.zeros(L, np.int64)
    lists.count_examples(row_ptr, labels, shortlists, np.full(L, -1, np.int64), positives, negatives)
    ptr = np.concatenate([[0], np.cumsum(positives + negatives)])
    rows = np.empty(ptr[-1], np.int32)
    own = np.full(L, -1, np.int64)
    lists.fill_examples(row_ptr, labels, shortlists, own, ptr[:-1].copy(), ptr[:-1] + positives, rows)
    return Examples(ptr, rows, positives)


def everything(targets: sp.csr_matrix) -> Examples:
    """All rows for each label of ``targets [N, L]``; of very many an even share."""
    by_label = targets.tocsc()
    by_label.sort_indices()
    return against_all(by_label, _MOST)


def against_all(positives: sp.csc_matrix, most: int) -> Examples:
    """All rows for each label of ``positives [N, L]``, its own first; of the others an even share where they are more than
    ``most`` over all labels."""
    N, count = positives.shape
    everywhere = sp.csc_matrix((np.ones(N, np.float32), np.arange(N, dtype=np.int32), [0, N]), (N, 1))
    return among(positives, everywhere, np.zeros(count, np.int32), most)


def among(positives: sp.csc_matrix, members: sp.csc_matrix, of: np.ndarray, most: int) -> Examples:
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
    return Examples(ptr, rows, own, bias=True)
