"""Which rows a label learns from: its own, and those that name it wrongly in a shortlist."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sparse_xmc import kernels


@dataclass
class Examples:
    """``rows[ptr[l]:ptr[l + 1]]`` of label l, the first ``positives[l]`` of them its own."""

    ptr: np.ndarray
    rows: np.ndarray
    positives: np.ndarray


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
