"""Heads for labels of one row each: no label has a second row to learn from or to be judged by, so the row is the label.

Rows come in with length 1, so that each term of a long row weighs little. What is left open, how far that is undone
(weights times ``size ** power`` for rows of ``size`` terms), is judged by queries made of the rows themselves: a random half of
the terms of each of a sample of rows, which are to find their own row.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    block, tried, best = centroids(x, targets, fan_in), [], None
    sizes = row_sizes(x, targets)
    for power in POWERS:
        scaled = Block(block.labels, block.indices, block.weight * sizes[:, None] ** np.float32(power))
        head = TermHead([scaled], np.zeros(len(sizes), np.float32))
        scores, labels = head.invert(x.shape[1]).topk(queries, _RANKED)
        hit = labels == own[:, None]
        tried.append((power, 100 * float(hit[:, 0].mean()) if len(own) else 0.0))
        if best is None or tried[-1][1] > best.tried[-1][1]:
            best = ClosedForm(head, power, [tried[-1]], (scores.ravel(), hit.ravel()))
    assert best is not None
    return ClosedForm(best.head, best.power, tried, best.judged)


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
