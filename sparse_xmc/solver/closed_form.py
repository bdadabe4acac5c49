"""Heads for labels of one row each: no label has a second row to learn from or to be judged by, so the row is the label.

Rows come in with length 1, so that each term of a long row weighs little. What is left open, how far that is undone
(weights times ``size ** power`` for rows of ``size`` terms), is judged by queries made of the rows themselves: a random half of
the terms of each of a sample of rows, which are to find their own row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.centroids import centroids
from sparse_xmc.solver.head import Block, TermHead

POWERS = (0.0, 0.125, 0.25, 0.375, 0.5)
_QUERIES = 2000
_RANKED = 20


@dataclass(frozen=True)
class ClosedForm:
    """The head, the power of its rows' sizes, P@1 of each power, and scores and truth of the queries' best labels."""

    head: TermHead
    power: float
    tried: list[tuple[float, float]]
    judged: tuple[np.ndarray, np.ndarray]


def single_rows(frequencies: np.ndarray) -> bool:
    """Whether no label has a second row."""
    return bool(frequencies.max(initial=0) <= 1)


def closed_form(x: sp.csr_matrix, targets: sp.csr_matrix, fan_in: int, *, seed: int = 0) -> ClosedForm:
    """Connections to the ``fan_in`` heaviest terms of a label's row, weighted as the row is."""
    queries, own = _queries(x, targets, seed)
    block, sizes, bias = centroids(x, targets, fan_in), row_sizes(x, targets), np.zeros(targets.shape[1], np.float32)
    index = TermHead([block], bias).invert(x.shape[1])
    tried: list[tuple[float, float]] = []
    judged = (np.empty(0, np.float32), np.empty(0, bool))
    for power in POWERS:
        scale = sizes ** np.float32(power)
        scores, labels = replace(index, weights=index.weights * scale[index.labels]).topk(queries, _RANKED)
        hit = labels == own[:, None]
        value = 100 * float(hit[:, 0].mean()) if len(own) else 0.0
        if value > max((other for _, other in tried), default=-1.0):
            best, judged = power, (scores.ravel(), hit.ravel())
        tried.append((power, value))
    scaled = Block(block.labels, block.indices, block.weight * sizes[:, None] ** np.float32(best))
    return ClosedForm(TermHead([scaled], bias), best, tried, judged)


def row_sizes(x: sp.csr_matrix, targets: sp.csr_matrix) -> np.ndarray:
    """Terms of a label's row, on average of its rows ``[L]``; 1 where it has none."""
    by_label = targets.tocsc()
    rows = np.diff(by_label.indptr)
    terms = np.bincount(targets.indices, np.repeat(np.diff(x.indptr), np.diff(targets.indptr)), targets.shape[1])
    return np.maximum(terms / np.maximum(rows, 1), 1).astype(np.float32)


def _queries(x: sp.csr_matrix, targets: sp.csr_matrix, seed: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Half of the terms of sampled rows of two terms and more with a label ``[Q, D]``, and that label ``[Q]``."""
    rng = np.random.default_rng([seed, 2])
    usable = np.flatnonzero((np.diff(targets.indptr) > 0) & (np.diff(x.indptr) > 1))
    rows = np.sort(rng.permutation(usable)[:_QUERIES])
    sampled = x[rows].copy()
    draw = rng.random(sampled.nnz)
    for i in range(len(rows)):
        part = slice(sampled.indptr[i], sampled.indptr[i + 1])
        sampled.data[part][draw[part] > np.median(draw[part])] = 0
    sampled.eliminate_zeros()
    return sampled, targets.indices[targets.indptr[rows]]
